-- What a layer takes on the disk by itself, and what everything takes that is shown from it down: at most, until it is counted
-- exactly. Files are not as large as they say they are: there are holes in them, and everything takes its place.
ALTER TABLE layers ADD COLUMN own_disk_bytes BIGINT NOT NULL DEFAULT 0;
ALTER TABLE layers ADD COLUMN disk_bytes BIGINT NOT NULL DEFAULT 0;
ALTER TABLE layers ADD COLUMN disk_is_exact BIGINT NOT NULL DEFAULT 0;
UPDATE layers SET own_disk_bytes = changed_bytes, disk_bytes = bytes;
-- How much of it has no form in an archive.
ALTER TABLE layers ADD COLUMN left_out BIGINT NOT NULL DEFAULT 0;
