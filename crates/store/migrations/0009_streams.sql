-- Terminals, and commands whose streams are attached: one row for as long as it runs, so that its end is told whatever
-- dies meanwhile. `kind` is `terminal` or `exec`.

CREATE TABLE streams (
    id         TEXT   NOT NULL PRIMARY KEY,
    session_id TEXT   NOT NULL REFERENCES sessions (id),
    generation BIGINT NOT NULL,
    kind       TEXT   NOT NULL,
    command    TEXT   NOT NULL,
    actor      TEXT   NOT NULL,
    opened_at  BIGINT NOT NULL
);
CREATE INDEX streams_session ON streams (session_id, id);
