-- Providers of models. `api_key` is encrypted with the key file of the data directory.
CREATE TABLE providers (
    id              TEXT   NOT NULL PRIMARY KEY,
    name            TEXT   NOT NULL UNIQUE,
    kind            TEXT   NOT NULL,
    base_url        TEXT,
    api_key         TEXT,
    models          TEXT   NOT NULL,
    timeout_seconds BIGINT NOT NULL,
    builtin         BIGINT NOT NULL,
    version         BIGINT NOT NULL,
    created_at      BIGINT NOT NULL,
    updated_at      BIGINT NOT NULL
);
