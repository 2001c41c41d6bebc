-- Grows with each change of what people configure, as `version` does with each change at all.
ALTER TABLE sessions ADD COLUMN edition BIGINT NOT NULL DEFAULT 1;
