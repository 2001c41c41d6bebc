//! Conversations.

use std::ops::RangeInclusive;

use raworc_api::message::{MessageError, MessageUsage, Role, Status};
use raworc_core::ids::{MessageId, SessionId};
use raworc_core::time::Time;
use serde_json::{Map, Value};

use crate::StoreError;
use crate::conversation::{self, SegmentRow};
use crate::rows::{Row, bigint, word};
use crate::sql::{Batch, Read, Statement, sql};
use crate::tx::Tx;

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub struct MessageRow {
    /// Its id.
    pub id: MessageId,
    /// Whose conversation.
    pub session_id: SessionId,
    /// Its place: the `seq` of the event that added it.
    pub seq: u64,
    /// Who speaks.
    pub role: Role,
    /// The text.
    pub content: String,
    /// Name of the agent that is to answer, or that spoke.
    pub agent: Option<String>,
    /// How far it is.
    pub status: Status,
    /// What it answers.
    pub reply_to: Option<MessageId>,
    /// How often work on it began.
    pub attempts: u32,
    /// How often its container died under it.
    pub losses: u32,
    /// The event at which work on it last began; its output follows.
    pub started_seq: Option<u64>,
    /// Someone asked to end it.
    pub cancel_wanted: bool,
    /// Why it did not end well.
    pub error: Option<MessageError>,
    /// How it ran.
    pub usage: Option<MessageUsage>,
    /// The sender's.
    pub metadata: Map<String, Value>,
    /// When it was added.
    pub created_at: Time,
    /// When it ended.
    pub finished_at: Option<Time>,
    /// The event that ended it.
    pub finished_seq: Option<u64>,
}

pub(crate) fn message(row: &Row<'_>) -> Result<MessageRow, StoreError> {
    row.record("messages", |row| {
        Ok(MessageRow {
            id: row.id("id")?,
            session_id: row.id("session_id")?,
            seq: row.count("seq")?,
            role: row.word("role")?,
            content: row.text("content")?,
            agent: row.optional_text("agent")?,
            status: row.word("status")?,
            reply_to: row.optional_id("reply_to")?,
            attempts: row.count("attempts")?,
            losses: row.count("losses")?,
            started_seq: row.optional_count("started_seq")?,
            cancel_wanted: row.boolean("cancel_wanted")?,
            error: row.optional_json("error")?,
            usage: row.optional_json("usage")?,
            metadata: row.json("metadata")?,
            created_at: row.time("created_at")?,
            finished_at: row.optional_time("finished_at")?,
            finished_seq: row.optional_count("finished_seq")?,
        })
    })
}

/// A message and its number in its session.
pub(crate) fn numbered(row: &Row<'_>) -> Result<(u64, MessageRow), StoreError> {
    let message = message(row)?;
    Ok((row.record("messages", |row| row.count("n"))?, message))
}

/// Adds a message, which gets the next number of its session.
///
/// # Errors
/// Where the store fails.
pub async fn insert(tx: &mut Tx, row: &MessageRow) -> Result<(), StoreError> {
    let n = conversation::next_number(tx, row.session_id).await?;
    sql("INSERT INTO messages (id, session_id, seq, role, content, agent, status, reply_to, attempts, cancel_wanted, \
         error, usage, metadata, created_at, finished_at, finished_seq, n) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)")
    .bind(row.id.to_string())
    .bind(row.session_id.to_string())
    .bind(bigint(row.seq))
    .bind(word(row.role)?)
    .bind(row.content.clone())
    .bind(row.agent.clone())
    .bind(word(row.status)?)
    .bind(row.reply_to.map(|id| id.to_string()))
    .bind(i64::from(row.attempts))
    .bind(i64::from(row.cancel_wanted))
    .bind(row.error.as_ref().map(serde_json::to_string).transpose()?)
    .bind(row.usage.as_ref().map(serde_json::to_string).transpose()?)
    .bind(serde_json::to_string(&row.metadata)?)
    .bind(row.created_at.0)
    .bind(row.finished_at.map(|at| at.0))
    .bind(row.finished_seq.map(bigint))
    .bind(bigint(n))
    .execute(tx)
    .await?;
    Ok(())
}

/// Stores how far a message is: everything that can change.
///
/// # Errors
/// Where the store fails.
pub async fn update(tx: &mut Tx, row: &MessageRow) -> Result<(), StoreError> {
    sql("UPDATE messages SET status = $1, attempts = $2, cancel_wanted = $3, error = $4, finished_at = $5, \
         started_seq = $6, losses = $7, finished_seq = $8 WHERE id = $9")
    .bind(word(row.status)?)
    .bind(i64::from(row.attempts))
    .bind(i64::from(row.cancel_wanted))
    .bind(row.error.as_ref().map(serde_json::to_string).transpose()?)
    .bind(row.finished_at.map(|at| at.0))
    .bind(row.started_seq.map(bigint))
    .bind(i64::from(row.losses))
    .bind(row.finished_seq.map(bigint))
    .bind(row.id.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

/// The message of this id in the conversation of this session, its own or one that it shares.
///
/// # Errors
/// Where the store fails.
pub async fn find(connection: &mut Read, session: SessionId, id: MessageId) -> Result<Option<MessageRow>, StoreError> {
    let own = sql("SELECT * FROM messages WHERE id = $1 AND session_id = $2")
        .bind(id.to_string())
        .bind(session.to_string())
        .fetch_optional(connection, message)
        .await?;
    match own {
        Some(own) => Ok(Some(own)),
        None => conversation::find(connection, session, id, "id").await,
    }
}

/// The newest answer to a message in the conversation of this session.
///
/// # Errors
/// Where the store fails.
pub async fn reply_to(
    connection: &mut Read,
    session: SessionId,
    id: MessageId,
) -> Result<Option<MessageRow>, StoreError> {
    // (`|| ''` keeps the database from looking through the whole conversation.)
    let own = sql("SELECT * FROM messages WHERE reply_to = $1 AND session_id || '' = $2 ORDER BY seq DESC")
        .bind(id.to_string())
        .bind(session.to_string())
        .fetch_first(connection, message)
        .await?;
    match own {
        Some(own) => Ok(Some(own)),
        None => conversation::find(connection, session, id, "reply_to").await,
    }
}

/// Messages that wait in this session, the one whose turn is next first.
///
/// # Errors
/// Where the store fails.
pub async fn queued(connection: &mut Read, session: SessionId, limit: u32) -> Result<Vec<MessageRow>, StoreError> {
    // The first condition is that of the index of open messages. (`+` keeps the database from going through the whole conversation.)
    let found = sql(
        "SELECT * FROM messages WHERE session_id = $1 AND status IN ('queued', 'processing') AND status = 'queued' \
                     ORDER BY +seq",
    )
    .bind(session.to_string())
    .fetch_page(connection, limit, message)
    .await?;
    Ok(found.rows)
}

/// Messages after the place `after`, in order, first what the session shares of others, then its own without those that were taken
/// back: at most `limit`, and about so many bytes.
///
/// # Errors
/// Where the store fails.
pub async fn list(
    connection: &mut Read,
    session: SessionId,
    status: Option<Status>,
    after: u64,
    bounds: (u32, usize),
) -> Result<Batch<MessageRow>, StoreError> {
    let all = "SELECT * FROM messages WHERE session_id = $1 AND seq > $2 AND rewound = 0 ORDER BY seq";
    let some = "SELECT * FROM messages WHERE session_id = $1 AND seq > $2 AND rewound = 0 AND status = $3 ORDER BY seq";
    let query = sql(if status.is_some() { some } else { all }).bind(session.to_string()).bind(bigint(after));
    let query = match status {
        Some(status) => query.bind(word(status)?),
        None => query,
    };
    let shared = conversation::of_session(connection, session, after).await?;
    let mut batch = Batch { damaged: shared.damaged, ..Batch::empty() };
    // What is shared has ended.
    let may_be_shared = !matches!(status, Some(Status::Queued | Status::Processing));
    for segment in shared.rows.into_iter().filter(|_| may_be_shared) {
        segment.extend(connection, &mut batch, (status, after), bounds).await?;
        if batch.has_more {
            return Ok(batch);
        }
    }
    query.extend_batch(connection, &mut batch, bounds, message).await?;
    Ok(batch)
}

/// Messages of these parts of the log that had ended by the end of their part, whether taken back since or not: the newest, in order,
/// as many as are not longer than `bytes_max` together, but at least one; and how many there are before them.
///
/// # Errors
/// Where the store fails.
pub async fn newest_ended_in(
    connection: &mut Read,
    session: SessionId,
    ranges: &[RangeInclusive<u64>],
    bytes_max: usize,
) -> Result<(Vec<MessageRow>, u64), StoreError> {
    let shared = conversation::all_of_session(connection, session).await?;
    let (mut newest, mut count, mut bytes, mut is_full) = (Vec::new(), 0, 0, false);
    for range in ranges.iter().rev() {
        let all = ended(session, range, "COUNT(*) AS n", "").fetch_optional(connection, |row| row.count("n")).await?;
        count += all.unwrap_or(0_u64);
        let inherited: Vec<&SegmentRow> = shared.iter().filter(|segment| segment.is_in(range)).collect();
        count += inherited.iter().map(|segment| segment.segment.count()).sum::<u64>();
        // The session's own messages are newer than those that it shares.
        for source in std::iter::once(None).chain(inherited.into_iter().rev().map(Some)) {
            if is_full {
                break;
            }
            let room = bytes_max.saturating_sub(bytes);
            let batch = match source {
                None => {
                    let query = ended(session, range, "*", "ORDER BY seq DESC");
                    query.fetch_batch(connection, (u32::MAX, room), message).await?
                }
                Some(segment) => segment.newest(connection, room).await?,
            };
            bytes += batch.bytes;
            is_full = batch.has_more || bytes >= bytes_max;
            newest.extend(batch.rows);
        }
    }
    newest.reverse();
    let older = count.saturating_sub(newest.len() as u64);
    Ok((newest, older))
}

fn ended(session: SessionId, range: &RangeInclusive<u64>, what: &str, order: &str) -> Statement {
    let text = format!(
        "SELECT {what} FROM messages WHERE session_id = $1 AND seq >= $2 AND seq <= $3 \
         AND finished_at IS NOT NULL AND (finished_seq IS NULL OR finished_seq <= $3) {order}"
    );
    sql(text).bind(session.to_string()).bind(bigint(*range.start())).bind(bigint(*range.end()))
}

/// Takes back every message of a session before the event `at`, except for those in these parts of its log that had ended by the end of
/// their part.
///
/// # Errors
/// Where the store fails.
pub async fn rewind(
    tx: &mut Tx,
    session: SessionId,
    ranges: &[RangeInclusive<u64>],
    at: u64,
) -> Result<(), StoreError> {
    sql("UPDATE messages SET rewound = 1 WHERE session_id = $1 AND seq < $2")
        .bind(session.to_string())
        .bind(bigint(at))
        .execute(tx)
        .await?;
    for range in ranges {
        sql("UPDATE messages SET rewound = 0 WHERE session_id = $1 AND seq >= $2 AND seq <= $3 \
             AND finished_at IS NOT NULL AND (finished_seq IS NULL OR finished_seq <= $3)")
        .bind(session.to_string())
        .bind(bigint(*range.start()))
        .bind(bigint(*range.end()))
        .execute(tx)
        .await?;
    }
    Ok(())
}
