-- Since when a deleted session's files are gone for good; its conversation and its log stay.
ALTER TABLE sessions ADD COLUMN purged_at BIGINT;
