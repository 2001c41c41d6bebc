//! The log of a session. Only ever added to.

use raworc_core::events::{LogEvent, RecordDamaged};
use raworc_core::ids::{Generation, SessionId};
use raworc_core::time::Time;
use serde_json::{Map, Value};

use crate::StoreError;
use crate::conversation;
use crate::rows::{Row, bigint};
use crate::sql::{Batch, Read, sql};
use crate::tx::Tx;

/// One entry.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRow {
    /// Whose.
    pub session_id: SessionId,
    /// 1, 2, 3, … without gaps.
    pub seq: u64,
    /// `noun.verb`.
    pub kind: String,
    /// When.
    pub at: Time,
    /// Who.
    pub actor: String,
    /// In which container.
    pub generation: Generation,
    /// Depends on the kind.
    pub data: Map<String, Value>,
}

pub(crate) fn event(row: &Row<'_>) -> Result<EventRow, StoreError> {
    row.record("events", |row| {
        Ok(EventRow {
            session_id: row.id("session_id")?,
            seq: row.count("seq")?,
            kind: row.text("kind")?,
            at: row.time("at")?,
            actor: row.text("actor")?,
            generation: row.count("generation")?,
            data: row.json("data")?,
        })
    })
}

/// An entry to be shown: in the place of one that is damaged stands one that says so, with the same number.
fn shown(row: &Row<'_>) -> Result<EventRow, StoreError> {
    event(row).or_else(|error| match error {
        StoreError::Damaged(damage) => Ok(EventRow {
            session_id: row.id("session_id")?,
            seq: row.count("seq")?,
            kind: RecordDamaged::KIND.to_owned(),
            at: row.time("at").unwrap_or(Time(0)),
            actor: "system".to_owned(),
            generation: row.count("generation").unwrap_or(0),
            data: LogEvent::from(RecordDamaged { column: damage.column }).data()?,
        }),
        error => Err(error),
    })
}

/// Adds an entry; its `seq` is the caller's to count (see [`SessionRow::last_seq`](crate::sessions::SessionRow)).
///
/// # Errors
/// [`StoreError::Conflict`] where the `seq` is taken.
pub async fn insert(tx: &mut Tx, row: &EventRow) -> Result<(), StoreError> {
    sql("INSERT INTO events (session_id, seq, kind, at, actor, generation, data) VALUES ($1, $2, $3, $4, $5, $6, $7)")
        .bind(row.session_id.to_string())
        .bind(bigint(row.seq))
        .bind(row.kind.clone())
        .bind(row.at.0)
        .bind(row.actor.clone())
        .bind(i64::from(row.generation))
        .bind(serde_json::to_string(&row.data)?)
        .execute(tx)
        .await?;
    Ok(())
}

/// Entries after `after`, in order: at most so many, and about so many bytes; see [`RecordDamaged`].
///
/// # Errors
/// Where the store fails.
pub async fn batch(
    connection: &mut Read,
    session: SessionId,
    after: u64,
    bounds: (u32, usize),
) -> Result<Batch<EventRow>, StoreError> {
    let (mut batch, mut after) = (Batch::empty(), after);
    for segment in conversation::of_session(connection, session, after).await?.rows {
        if after.saturating_add(1) < segment.seq {
            let before = "SELECT * FROM events WHERE session_id = $1 AND seq > $2 AND seq < $3 ORDER BY seq";
            let query = sql(before).bind(session.to_string()).bind(bigint(after)).bind(bigint(segment.seq));
            query.extend_batch(connection, &mut batch, bounds, shown).await?;
        }
        segment.extend_log(connection, &mut batch, after, bounds).await?;
        if batch.has_more {
            return Ok(batch);
        }
        after = after.max(segment.last_seq());
    }
    sql("SELECT * FROM events WHERE session_id = $1 AND seq > $2 ORDER BY seq")
        .bind(session.to_string())
        .bind(bigint(after))
        .extend_batch(connection, &mut batch, bounds, shown)
        .await?;
    Ok(batch)
}

/// How long the data of the next entry after `after` is, in bytes; none where there is no such entry yet.
///
/// # Errors
/// Where the store fails.
pub async fn next_bytes(connection: &mut Read, session: SessionId, after: u64) -> Result<Option<usize>, StoreError> {
    let next = after.saturating_add(1);
    let shared = conversation::of_session(connection, session, after).await?.rows;
    if shared.iter().any(|segment| (segment.seq..=segment.last_seq()).contains(&next)) {
        // It is computed, and short.
        return Ok(Some(0));
    }
    sql("SELECT octet_length(data) AS bytes FROM events WHERE session_id = $1 AND seq > $2 ORDER BY seq LIMIT 1")
        .bind(session.to_string())
        .bind(bigint(after))
        .fetch_optional(connection, |row| row.count("bytes"))
        .await
}

/// Whether the conversation has changed after entry `after`.
///
/// # Errors
/// Where the store fails.
pub async fn has_spoken(connection: &mut Read, session: SessionId, after: u64) -> Result<bool, StoreError> {
    let found = sql("SELECT 1 AS found FROM events WHERE session_id = $1 AND seq > $2 \
                     AND (kind LIKE 'message.%' OR kind = 'session.rewound') LIMIT 1")
    .bind(session.to_string())
    .bind(bigint(after))
    .fetch_optional(connection, |row| row.integer("found"))
    .await?;
    Ok(found.is_some())
}

/// The data of entries of one kind after `after`, in order.
///
/// # Errors
/// Where the store fails.
pub async fn data_of_kind(
    connection: &mut Read,
    session: SessionId,
    kind: &str,
    after: u64,
) -> Result<Vec<Map<String, Value>>, StoreError> {
    let found = sql("SELECT * FROM events WHERE session_id = $1 AND seq > $2 AND kind = $3 ORDER BY seq")
        .bind(session.to_string())
        .bind(bigint(after))
        .bind(kind)
        .fetch_sound(connection, event)
        .await?;
    Ok(found.rows.into_iter().map(|row| row.data).collect())
}
