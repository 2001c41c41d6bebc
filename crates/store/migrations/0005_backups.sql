-- When a session's newest checkpoint is to be sent to its registry, and how that went so far.
ALTER TABLE sessions ADD COLUMN backup_at BIGINT;
ALTER TABLE sessions ADD COLUMN backup TEXT NOT NULL DEFAULT '{}';
CREATE INDEX sessions_backup ON sessions (backup_at) WHERE backup_at IS NOT NULL;
