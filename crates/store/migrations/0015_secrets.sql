-- Secrets of accounts: what they are for, and their value, encrypted with the key file of the data directory.
CREATE TABLE secrets (
    id         TEXT   NOT NULL PRIMARY KEY,
    owner_id   TEXT   NOT NULL REFERENCES accounts (id),
    name       TEXT   NOT NULL,
    target     TEXT   NOT NULL,
    value      TEXT   NOT NULL,
    version    BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    UNIQUE (owner_id, name)
);
