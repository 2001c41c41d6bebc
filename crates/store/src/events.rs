//! The log of a session. Only ever added to.

use raworc_core::ids::{Generation, SessionId};
use raworc_core::time::Time;
use serde_json::{Map, Value};
use sqlx::AnyConnection;
use sqlx::any::AnyRow;

use crate::StoreError;
use crate::rows::{Columns, bigint};

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

fn event(row: &AnyRow) -> Result<EventRow, StoreError> {
    let columns = Columns(row);
    Ok(EventRow {
        session_id: columns.id("session_id")?,
        seq: columns.count("seq")?,
        kind: columns.text("kind")?,
        at: columns.time("at")?,
        actor: columns.text("actor")?,
        generation: columns.count("generation")?,
        data: columns.json("data")?,
    })
}

/// Adds an entry; its `seq` is the caller's to count (see [`SessionRow::last_seq`](crate::sessions::SessionRow)).
///
/// # Errors
/// [`StoreError::Conflict`] where the `seq` is taken.
pub async fn insert(connection: &mut AnyConnection, row: &EventRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO events (session_id, seq, kind, at, actor, generation, data) VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(row.session_id.to_string())
    .bind(bigint(row.seq))
    .bind(row.kind.clone())
    .bind(row.at.0)
    .bind(row.actor.clone())
    .bind(i64::from(row.generation))
    .bind(serde_json::to_string(&row.data)?)
    .execute(connection)
    .await?;
    Ok(())
}

/// Entries after `after`, in order.
///
/// # Errors
/// Where the store fails.
pub async fn list(
    connection: &mut AnyConnection,
    session: SessionId,
    after: u64,
    limit: u32,
) -> Result<Vec<EventRow>, StoreError> {
    let rows = sqlx::query("SELECT * FROM events WHERE session_id = $1 AND seq > $2 ORDER BY seq LIMIT $3")
        .bind(session.to_string())
        .bind(bigint(after))
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await?;
    rows.iter().map(event).collect()
}

/// The data of entries of one kind after `after`, in order.
///
/// # Errors
/// Where the store fails.
pub async fn data_of_kind(
    connection: &mut AnyConnection,
    session: SessionId,
    kind: &str,
    after: u64,
) -> Result<Vec<Map<String, Value>>, StoreError> {
    let rows = sqlx::query("SELECT data FROM events WHERE session_id = $1 AND seq > $2 AND kind = $3 ORDER BY seq")
        .bind(session.to_string())
        .bind(bigint(after))
        .bind(kind)
        .fetch_all(connection)
        .await?;
    rows.iter().map(|row| Columns(row).json("data")).collect()
}
