-- Images that are here: what containers can run, and checkpoints from elsewhere. `summary` is shown in lists; `content` is what
-- came with a checkpoint besides its files.
CREATE TABLE images (
    id         TEXT   NOT NULL PRIMARY KEY,
    owner_id   TEXT   NOT NULL REFERENCES accounts (id),
    owner_name TEXT   NOT NULL,
    shared     BIGINT NOT NULL,
    name       TEXT   NOT NULL,
    digest     TEXT   NOT NULL,
    layer_id   TEXT,
    summary    TEXT   NOT NULL,
    content    TEXT,
    bytes      BIGINT NOT NULL,
    files      BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX images_name ON images (owner_id, name);
CREATE INDEX images_shared ON images (name) WHERE shared = 1;
CREATE INDEX images_layer ON images (layer_id) WHERE layer_id IS NOT NULL;

-- A layer as an archive: the digest of the tar, and the descriptor of the blob that it was or is to be in registries.
ALTER TABLE layers ADD COLUMN diff_id TEXT;
ALTER TABLE layers ADD COLUMN blob TEXT;
CREATE INDEX layers_diff_id ON layers (diff_id) WHERE diff_id IS NOT NULL;

-- What the root of a session's containers stands on, where that is an image.
ALTER TABLE sessions ADD COLUMN image_layer_id TEXT;
CREATE INDEX sessions_image_layer ON sessions (image_layer_id) WHERE image_layer_id IS NOT NULL;
