-- Why a session's workspace is to be saved by itself, from the commit that brings the occasion until a checkpoint is recorded.
ALTER TABLE sessions ADD COLUMN save_due TEXT;
CREATE INDEX sessions_save_due ON sessions (id) WHERE save_due IS NOT NULL;
