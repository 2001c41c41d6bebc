-- What workspaces are made of. A layer lies on its parent; what a session writes to (`sessions.writable_id`) becomes one
-- when it is sealed. The sizes are those of the whole view from this layer down, but for `changed_bytes` and `entries`.
CREATE TABLE layers (
    id            TEXT   NOT NULL PRIMARY KEY,
    parent_id     TEXT,
    depth         BIGINT NOT NULL,
    changed_bytes BIGINT NOT NULL,
    bytes         BIGINT NOT NULL,
    files         BIGINT NOT NULL,
    entries       BIGINT NOT NULL,
    created_at    BIGINT NOT NULL
);
CREATE INDEX layers_parent ON layers (parent_id) WHERE parent_id IS NOT NULL;

CREATE TABLE checkpoints (
    session_id    TEXT   NOT NULL REFERENCES sessions (id),
    n             BIGINT NOT NULL,
    label         TEXT,
    cause         TEXT   NOT NULL,
    status        TEXT   NOT NULL,
    seq           BIGINT NOT NULL,
    layer_id      TEXT,
    bytes         BIGINT NOT NULL,
    files         BIGINT NOT NULL,
    changed_bytes BIGINT NOT NULL,
    took_micros   BIGINT NOT NULL,
    frozen_micros BIGINT NOT NULL,
    error         TEXT,
    created_by    TEXT   NOT NULL,
    created_at    BIGINT NOT NULL,
    PRIMARY KEY (session_id, n)
);
CREATE INDEX checkpoints_open ON checkpoints (status) WHERE status IN ('pending', 'saving');
CREATE INDEX checkpoints_layer ON checkpoints (layer_id) WHERE layer_id IS NOT NULL;

ALTER TABLE sessions ADD COLUMN layer_id TEXT;
-- Before there were layers, a session's directory had the session's id.
ALTER TABLE sessions ADD COLUMN writable_id TEXT NOT NULL DEFAULT '';
UPDATE sessions SET writable_id = id;
ALTER TABLE sessions ADD COLUMN checkpoints BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN parent_checkpoint BIGINT;
ALTER TABLE sessions ADD COLUMN rewinds TEXT NOT NULL DEFAULT '[]';
CREATE INDEX sessions_writable ON sessions (writable_id);
CREATE INDEX sessions_layer ON sessions (layer_id) WHERE layer_id IS NOT NULL;

-- The event that ended it; and whether it was taken back since.
ALTER TABLE messages ADD COLUMN finished_seq BIGINT;
ALTER TABLE messages ADD COLUMN rewound BIGINT NOT NULL DEFAULT 0;
