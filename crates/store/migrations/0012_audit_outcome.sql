-- What came of it: `done` or `refused`. Entries are read in the order of their ids, which is that of their times.
ALTER TABLE audit ADD COLUMN outcome TEXT NOT NULL DEFAULT 'done';
