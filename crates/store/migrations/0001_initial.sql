-- One text for SQLite and PostgreSQL: TEXT and BIGINT only. Ids are UUIDs as text, times microseconds since 1970,
-- truth values 0 or 1, documents JSON as text.

CREATE TABLE settings (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE accounts (
    id         TEXT   NOT NULL PRIMARY KEY,
    name       TEXT   NOT NULL UNIQUE,
    role       TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    closed_at  BIGINT
);

CREATE TABLE tokens (
    id         TEXT   NOT NULL PRIMARY KEY,
    account_id TEXT   NOT NULL REFERENCES accounts (id),
    name       TEXT   NOT NULL,
    hash       TEXT   NOT NULL UNIQUE,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT
);
CREATE INDEX tokens_account ON tokens (account_id, id);

CREATE TABLE agents (
    id         TEXT   NOT NULL PRIMARY KEY,
    name       TEXT   NOT NULL UNIQUE,
    definition TEXT   NOT NULL,
    builtin    BIGINT NOT NULL,
    version    BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

CREATE TABLE sessions (
    id                  TEXT   NOT NULL PRIMARY KEY,
    name                TEXT   NOT NULL,
    starting_prompt     TEXT   NOT NULL,
    owner_id            TEXT   NOT NULL REFERENCES accounts (id),
    owner_name          TEXT   NOT NULL,
    settings            TEXT   NOT NULL,
    parent_id           TEXT,
    -- The state machine's part, whole; the columns after it repeat what is searched for.
    machine             TEXT   NOT NULL,
    state               TEXT   NOT NULL,
    container           TEXT   NOT NULL,
    deadline_at         BIGINT,
    deleted_at          BIGINT,
    last_seq            BIGINT NOT NULL,
    host_received       BIGINT NOT NULL,
    version             BIGINT NOT NULL,
    messages_ended      BIGINT NOT NULL,
    busy_micros         BIGINT NOT NULL,
    created_at          BIGINT NOT NULL,
    updated_at          BIGINT NOT NULL
);
CREATE INDEX sessions_created ON sessions (created_at, id);
CREATE INDEX sessions_owner ON sessions (owner_id, created_at, id);
CREATE INDEX sessions_name ON sessions (name);
CREATE INDEX sessions_state ON sessions (state, created_at, id);
CREATE INDEX sessions_parent ON sessions (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX sessions_deadline ON sessions (deadline_at) WHERE deadline_at IS NOT NULL;
CREATE INDEX sessions_container ON sessions (container) WHERE container <> 'none';

CREATE TABLE session_agents (
    session_id TEXT   NOT NULL REFERENCES sessions (id),
    place      BIGINT NOT NULL,
    agent_id   TEXT   NOT NULL REFERENCES agents (id),
    PRIMARY KEY (session_id, place)
);
CREATE INDEX session_agents_agent ON session_agents (agent_id);

CREATE TABLE messages (
    id               TEXT   NOT NULL PRIMARY KEY,
    session_id       TEXT   NOT NULL REFERENCES sessions (id),
    seq              BIGINT NOT NULL,
    role             TEXT   NOT NULL,
    content          TEXT   NOT NULL,
    agent            TEXT,
    status           TEXT   NOT NULL,
    reply_to         TEXT,
    attempts         BIGINT NOT NULL,
    started_seq      BIGINT,
    cancel_wanted    BIGINT NOT NULL,
    error            TEXT,
    usage            TEXT,
    metadata         TEXT   NOT NULL,
    created_at       BIGINT NOT NULL,
    finished_at      BIGINT
);
CREATE UNIQUE INDEX messages_seq ON messages (session_id, seq);
CREATE INDEX messages_waiting ON messages (session_id, status, seq) WHERE status IN ('queued', 'processing');
CREATE INDEX messages_reply ON messages (reply_to) WHERE reply_to IS NOT NULL;

CREATE TABLE events (
    session_id TEXT   NOT NULL,
    seq        BIGINT NOT NULL,
    kind       TEXT   NOT NULL,
    at         BIGINT NOT NULL,
    actor      TEXT   NOT NULL,
    generation BIGINT NOT NULL,
    data       TEXT   NOT NULL,
    PRIMARY KEY (session_id, seq)
);

CREATE TABLE idempotency_keys (
    account_id  TEXT   NOT NULL,
    key         TEXT   NOT NULL,
    fingerprint TEXT   NOT NULL,
    resource_id TEXT   NOT NULL,
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (account_id, key)
);
CREATE INDEX idempotency_keys_created ON idempotency_keys (created_at);

CREATE TABLE audit (
    id         TEXT   NOT NULL PRIMARY KEY,
    at         BIGINT NOT NULL,
    account_id TEXT   NOT NULL,
    account    TEXT   NOT NULL,
    action     TEXT   NOT NULL,
    target     TEXT   NOT NULL
);
CREATE INDEX audit_at ON audit (at);
