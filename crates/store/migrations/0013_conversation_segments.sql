-- Messages of a session are numbered 1, 2, 3, …, in the order of `seq`, so that two numbers name a part of a conversation.
ALTER TABLE messages ADD COLUMN n BIGINT NOT NULL DEFAULT 0;
UPDATE messages SET n = numbered.n
    FROM (SELECT id, ROW_NUMBER() OVER (PARTITION BY session_id ORDER BY seq) AS n FROM messages) AS numbered
    WHERE messages.id = numbered.id;
-- It has all that the log says of an inherited message, so that its text is not read for that.
CREATE INDEX messages_n ON messages (session_id, n, seq, id, role, agent);
CREATE INDEX messages_finished ON messages (session_id, finished_seq, seq) WHERE finished_seq IS NOT NULL;

-- A remix shares the conversation of its parent: messages `from_n` to `to_n` of the session `source_id`, none of which was added after
-- the event `to_seq` there. In the remix they have the places from `seq` on, one after another.
CREATE TABLE conversation_segments (
    session_id TEXT   NOT NULL REFERENCES sessions (id),
    seq        BIGINT NOT NULL,
    source_id  TEXT   NOT NULL REFERENCES sessions (id),
    from_n     BIGINT NOT NULL,
    to_n       BIGINT NOT NULL,
    to_seq     BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    actor      TEXT   NOT NULL,
    at         BIGINT NOT NULL,
    PRIMARY KEY (session_id, seq)
);
