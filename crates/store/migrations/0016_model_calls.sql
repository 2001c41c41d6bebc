-- Calls of models by programs in sessions: what was counted, and what was said. `request` and `answer` are bodies as they were sent, without
-- what exceeds their bound. They come last, so that counting does not read them.

CREATE TABLE model_calls (
    id            TEXT   NOT NULL PRIMARY KEY,
    session_id    TEXT   NOT NULL REFERENCES sessions (id),
    seq           BIGINT NOT NULL,
    turn_id       TEXT,
    agent         TEXT,
    provider      TEXT   NOT NULL,
    model         TEXT   NOT NULL,
    input_tokens  BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    cost_micros   BIGINT NOT NULL,
    called_at     BIGINT NOT NULL,
    request       TEXT   NOT NULL,
    answer        TEXT   NOT NULL
);
CREATE INDEX model_calls_session ON model_calls (session_id, seq);
