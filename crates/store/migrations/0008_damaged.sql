-- Records that cannot say what they stand on: on good days there are none. While there is one, no layer is of no use.
CREATE INDEX sessions_doubtful ON sessions (id)
    WHERE length(id) <> 36 OR length(writable_id) <> 36 OR length(layer_id) <> 36 OR length(image_layer_id) <> 36;
CREATE INDEX checkpoints_doubtful ON checkpoints (session_id) WHERE length(session_id) <> 36 OR length(layer_id) <> 36;
CREATE INDEX images_doubtful ON images (id) WHERE length(id) <> 36 OR length(layer_id) <> 36;
CREATE INDEX layers_doubtful ON layers (id) WHERE length(id) <> 36 OR length(parent_id) <> 36;
