//! Versions of workspaces.

use raworc_core::checkpoints::Cause;
use raworc_core::ids::{LayerId, SessionId};
use raworc_core::time::Time;
use serde::{Deserialize, Serialize};

use crate::StoreError;
use crate::rows::{Row, bigint, word};
use crate::sql::{Read, Sound, sql};
use crate::tx::Tx;

/// How far a checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Wanted.
    Pending,
    /// Its layer is fixed, and being brought to the disk.
    Saving,
    /// It can be used, whatever happens.
    Ready,
    /// It could not be taken.
    Failed,
}

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointRow {
    /// Whose.
    pub session_id: SessionId,
    /// 1, 2, 3, … in its session.
    pub n: u64,
    /// The name someone gave it; one with a name is kept.
    pub label: Option<String>,
    /// Why.
    pub cause: Cause,
    /// How far it is.
    pub status: Status,
    /// The last event of the session that belongs to it.
    pub seq: u64,
    /// The topmost layer; none where the workspace is empty, or the checkpoint not yet taken.
    pub layer_id: Option<LayerId>,
    /// Bytes of all files.
    pub bytes: u64,
    /// All files.
    pub files: u64,
    /// Bytes of the files that changed since the one before.
    pub changed_bytes: u64,
    /// From the moment it was begun until it was safe.
    pub took_micros: u64,
    /// How long the container stood still for it.
    pub frozen_micros: u64,
    /// Why it could not be taken.
    pub error: Option<String>,
    /// Who wanted it.
    pub created_by: String,
    /// When it was wanted.
    pub created_at: Time,
}

pub(crate) fn checkpoint(row: &Row<'_>) -> Result<CheckpointRow, StoreError> {
    row.record("checkpoints", |row| {
        Ok(CheckpointRow {
            session_id: row.id("session_id")?,
            n: row.count("n")?,
            label: row.optional_text("label")?,
            cause: row.word("cause")?,
            status: row.word("status")?,
            seq: row.count("seq")?,
            layer_id: row.optional_id("layer_id")?,
            bytes: row.count("bytes")?,
            files: row.count("files")?,
            changed_bytes: row.count("changed_bytes")?,
            took_micros: row.count("took_micros")?,
            frozen_micros: row.count("frozen_micros")?,
            error: row.optional_text("error")?,
            created_by: row.text("created_by")?,
            created_at: row.time("created_at")?,
        })
    })
}

/// Adds a checkpoint.
///
/// # Errors
/// Where the store fails.
pub async fn insert(tx: &mut Tx, row: &CheckpointRow) -> Result<(), StoreError> {
    sql("INSERT INTO checkpoints (session_id, n, label, cause, status, seq, layer_id, bytes, files, changed_bytes, \
         took_micros, frozen_micros, error, created_by, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)")
    .bind(row.session_id.to_string())
    .bind(bigint(row.n))
    .bind(row.label.clone())
    .bind(word(row.cause)?)
    .bind(word(row.status)?)
    .bind(bigint(row.seq))
    .bind(row.layer_id.map(|id| id.to_string()))
    .bind(bigint(row.bytes))
    .bind(bigint(row.files))
    .bind(bigint(row.changed_bytes))
    .bind(bigint(row.took_micros))
    .bind(bigint(row.frozen_micros))
    .bind(row.error.clone())
    .bind(row.created_by.clone())
    .bind(row.created_at.0)
    .execute(tx)
    .await?;
    Ok(())
}

/// Stores everything about a checkpoint that can change.
///
/// # Errors
/// Where the store fails.
pub async fn update(tx: &mut Tx, row: &CheckpointRow) -> Result<(), StoreError> {
    sql("UPDATE checkpoints SET label = $1, status = $2, seq = $3, layer_id = $4, bytes = $5, files = $6, \
         changed_bytes = $7, took_micros = $8, frozen_micros = $9, error = $10 WHERE session_id = $11 AND n = $12")
    .bind(row.label.clone())
    .bind(word(row.status)?)
    .bind(bigint(row.seq))
    .bind(row.layer_id.map(|id| id.to_string()))
    .bind(bigint(row.bytes))
    .bind(bigint(row.files))
    .bind(bigint(row.changed_bytes))
    .bind(bigint(row.took_micros))
    .bind(bigint(row.frozen_micros))
    .bind(row.error.clone())
    .bind(row.session_id.to_string())
    .bind(bigint(row.n))
    .execute(tx)
    .await?;
    Ok(())
}

/// The checkpoint of this number.
///
/// # Errors
/// Where the store fails.
pub async fn find(connection: &mut Read, session: SessionId, n: u64) -> Result<Option<CheckpointRow>, StoreError> {
    sql("SELECT * FROM checkpoints WHERE session_id = $1 AND n = $2")
        .bind(session.to_string())
        .bind(bigint(n))
        .fetch_optional(connection, checkpoint)
        .await
}

/// The newest one with this label.
///
/// # Errors
/// Where the store fails.
pub async fn labelled(
    connection: &mut Read,
    session: SessionId,
    label: &str,
) -> Result<Option<CheckpointRow>, StoreError> {
    sql("SELECT * FROM checkpoints WHERE session_id = $1 AND label = $2 ORDER BY n DESC LIMIT 1")
        .bind(session.to_string())
        .bind(label)
        .fetch_optional(connection, checkpoint)
        .await
}

/// The newest one that can be used.
///
/// # Errors
/// Where the store fails.
pub async fn newest(connection: &mut Read, session: SessionId) -> Result<Option<CheckpointRow>, StoreError> {
    sql("SELECT * FROM checkpoints WHERE session_id = $1 AND status = 'ready' ORDER BY n DESC")
        .bind(session.to_string())
        .fetch_first(connection, checkpoint)
        .await
}

/// A session's checkpoints after number `after`, in order.
///
/// # Errors
/// Where the store fails.
pub async fn list(
    connection: &mut Read,
    session: SessionId,
    after: u64,
    limit: u32,
) -> Result<Sound<CheckpointRow>, StoreError> {
    sql("SELECT * FROM checkpoints WHERE session_id = $1 AND n > $2 ORDER BY n")
        .bind(session.to_string())
        .bind(bigint(after))
        .fetch_page(connection, limit, checkpoint)
        .await
}

/// Those of a session that are begun and not done, in order.
///
/// # Errors
/// Where the store fails.
pub async fn open_of(connection: &mut Read, session: SessionId) -> Result<Vec<CheckpointRow>, StoreError> {
    let found = sql("SELECT * FROM checkpoints WHERE session_id = $1 AND status IN ('pending', 'saving') ORDER BY n")
        .bind(session.to_string())
        .fetch_sound(connection, checkpoint)
        .await?;
    Ok(found.rows)
}

/// Sessions with checkpoints that are begun and not done.
///
/// # Errors
/// Where the store fails.
pub async fn sessions_with_open(connection: &mut Read) -> Result<Vec<SessionId>, StoreError> {
    let found = sql("SELECT DISTINCT session_id FROM checkpoints WHERE status IN ('pending', 'saving')")
        .fetch_sound(connection, |row| row.id("session_id"))
        .await?;
    Ok(found.rows)
}

/// Numbers of a session's usable checkpoints, oldest first, and whether they have a label.
///
/// # Errors
/// Where the store fails.
pub async fn kept(connection: &mut Read, session: SessionId) -> Result<Vec<(u64, bool)>, StoreError> {
    let found = sql("SELECT * FROM checkpoints WHERE session_id = $1 AND status = 'ready' ORDER BY n")
        .bind(session.to_string())
        .fetch_sound(connection, checkpoint)
        .await?;
    Ok(found.rows.into_iter().map(|row| (row.n, row.label.is_some())).collect())
}

/// Numbers of all of a session's checkpoints, in whatever state, and whether they have a label.
///
/// # Errors
/// Where the store fails.
pub async fn all(connection: &mut Read, session: SessionId) -> Result<Vec<(u64, bool)>, StoreError> {
    sql("SELECT n, label FROM checkpoints WHERE session_id = $1 ORDER BY n")
        .bind(session.to_string())
        .fetch_all(connection, |row| Ok((row.count("n")?, row.optional_text("label")?.is_some())))
        .await
}

/// Forgets a checkpoint.
///
/// # Errors
/// Where the store fails.
pub async fn delete(tx: &mut Tx, session: SessionId, n: u64) -> Result<(), StoreError> {
    sql("DELETE FROM checkpoints WHERE session_id = $1 AND n = $2")
        .bind(session.to_string())
        .bind(bigint(n))
        .execute(tx)
        .await?;
    Ok(())
}
