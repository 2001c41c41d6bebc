//! Terminals, and commands whose streams are attached, for as long as they run.

use raworc_core::ids::{Generation, SessionId};
use raworc_core::time::Time;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::StoreError;
use crate::rows::{Row, word};
use crate::sql::{Read, Sound, sql};
use crate::tx::Tx;

/// What it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A terminal.
    Terminal,
    /// A command without one.
    Exec,
}

/// One that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRow {
    /// Its id.
    pub id: Uuid,
    /// In which session.
    pub session_id: SessionId,
    /// In which container.
    pub generation: Generation,
    /// What it is.
    pub kind: Kind,
    /// What runs, as it is told.
    pub command: String,
    /// Who opened it.
    pub actor: String,
    /// When.
    pub opened_at: Time,
}

pub(crate) fn stream(row: &Row<'_>) -> Result<StreamRow, StoreError> {
    row.record("streams", read)
}

fn read(row: &Row<'_>) -> Result<StreamRow, StoreError> {
    Ok(StreamRow {
        id: row.id("id")?,
        session_id: row.id("session_id")?,
        generation: row.count("generation")?,
        kind: row.word("kind")?,
        command: row.text("command")?,
        actor: row.text("actor")?,
        opened_at: row.time("opened_at")?,
    })
}

/// Adds one.
///
/// # Errors
/// Where the store fails.
pub async fn insert(tx: &mut Tx, row: &StreamRow) -> Result<(), StoreError> {
    sql("INSERT INTO streams (id, session_id, generation, kind, command, actor, opened_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)")
    .bind(row.id.to_string())
    .bind(row.session_id.to_string())
    .bind(i64::from(row.generation))
    .bind(word(row.kind)?)
    .bind(row.command.clone())
    .bind(row.actor.clone())
    .bind(row.opened_at.0)
    .execute(tx)
    .await?;
    Ok(())
}

/// The one of this id.
///
/// # Errors
/// Where the store fails.
pub async fn find(connection: &mut Read, id: Uuid) -> Result<Option<StreamRow>, StoreError> {
    sql("SELECT * FROM streams WHERE id = $1").bind(id.to_string()).fetch_optional(connection, stream).await
}

/// Those of a session, the oldest first. What is damaged is set aside.
///
/// # Errors
/// Where the store fails.
pub async fn of_session(connection: &mut Read, session: SessionId) -> Result<Sound<StreamRow>, StoreError> {
    sql("SELECT * FROM streams WHERE session_id = $1 ORDER BY id")
        .bind(session.to_string())
        .fetch_sound(connection, stream)
        .await
}

/// Removes all of a session, damaged ones too.
///
/// # Errors
/// Where the store fails.
pub async fn remove_all(tx: &mut Tx, session: SessionId) -> Result<(), StoreError> {
    sql("DELETE FROM streams WHERE session_id = $1").bind(session.to_string()).execute(tx).await?;
    Ok(())
}

/// Removes one that has ended; whether it was there.
///
/// # Errors
/// Where the store fails.
pub async fn remove(tx: &mut Tx, id: Uuid) -> Result<bool, StoreError> {
    let count = sql("DELETE FROM streams WHERE id = $1").bind(id.to_string()).execute(tx).await?;
    Ok(count > 0)
}
