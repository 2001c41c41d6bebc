-- How often a message's container died under it: `attempts` counts those that someone wished to end, too.
ALTER TABLE messages ADD COLUMN losses BIGINT NOT NULL DEFAULT 0;
