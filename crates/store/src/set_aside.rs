//! Sessions whose record is damaged, or whose columns say different things.

use raworc_core::ids::{AccountId, SessionId};
use raworc_core::session;
use raworc_core::time::Time;

use crate::StoreError;
use crate::conversation;
use crate::rows::{Row, word};
use crate::sessions::{SessionRow, find, session as read, update};
use crate::sql::{Read, sql};
use crate::tx::Tx;

/// The owner of a session whose record may be damaged; none where that is damaged, too.
///
/// # Errors
/// Where the store fails.
pub async fn owner_of(connection: &mut Read, id: SessionId) -> Result<Option<AccountId>, StoreError> {
    let found = sql("SELECT owner_id FROM sessions WHERE id = $1")
        .bind(id.to_string())
        .fetch_first(connection, |row| row.id("owner_id"))
        .await?;
    Ok(found)
}

/// The word in the column `state` of a session that was deleted while its record was damaged.
const DELETED: &str = "DELETED";

/// Whether the columns that repeat what is searched for say something else than the machine; and whether that is because it was
/// deleted while its record was damaged.
pub(crate) fn repeats(row: &Row<'_>) -> Result<(SessionRow, Repeated), StoreError> {
    let found = read(row)?;
    let machine = &found.machine;
    let is_right = row.text("state").ok().as_deref() == Some(machine.state.as_str())
        && row.text("container").ok() == word(machine.container).ok()
        && row.optional_integer("deadline_at").ok() == Some(session::deadline(machine).map(|at| at.0))
        && row.optional_integer("deleted_at").ok() == Some(machine.deleted_at.map(|at| at.0));
    let repeated = match (is_right, row.text("state").ok().as_deref()) {
        (true, _) => Repeated::Consistent,
        (false, Some(DELETED)) => Repeated::Deleted,
        (false, _) => Repeated::Stale,
    };
    Ok((found, repeated))
}

/// What the columns say that repeat what is searched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeated {
    /// The same as the machine.
    Consistent,
    /// Something else: they are to be written again.
    Stale,
    /// That it was deleted while its record was damaged: that is to be done properly.
    Deleted,
}

/// Writes the columns of a session again that repeat others, whether in its own record or in the log.
///
/// # Errors
/// Where the store fails.
pub async fn repeat(tx: &mut Tx, id: SessionId) -> Result<(), StoreError> {
    let Some(mut row) = find(tx, id).await? else { return Ok(()) };
    let newest = sql("SELECT COALESCE((SELECT MAX(seq) FROM events WHERE session_id = $1 AND typeof(seq) = 'integer'), 0) AS seq, \
                      COALESCE((SELECT MAX(n) FROM checkpoints WHERE session_id = $1 AND typeof(n) = 'integer'), 0) AS n")
    .bind(id.to_string())
    .fetch_optional(tx, |row| Ok((row.count("seq")?, row.count("n")?)))
    .await?;
    let (seq, n) = newest.unwrap_or_default();
    let inherited = conversation::last_seq(tx, id).await?;
    (row.last_seq, row.checkpoints) = (row.last_seq.max(seq).max(inherited), row.checkpoints.max(n));
    update(tx, &mut row).await
}

/// Has no loop look for a session whose record is damaged. What it changes is written again when the record is as it must be.
///
/// # Errors
/// Where the store fails.
pub async fn set_aside(tx: &mut Tx, id: &str) -> Result<(), StoreError> {
    sql("UPDATE sessions SET container = 'none', deadline_at = NULL WHERE id = $1 \
         AND (container <> 'none' OR deadline_at IS NOT NULL)")
    .bind(id)
    .execute(tx)
    .await?;
    Ok(())
}

/// Deletes a session whose record is damaged, as far as that can be: it is hidden, and nothing looks after it.
///
/// # Errors
/// Where the store fails.
pub async fn delete_damaged(tx: &mut Tx, id: SessionId, now: Time) -> Result<(), StoreError> {
    set_aside(tx, &id.to_string()).await?;
    sql("UPDATE sessions SET state = $1, deleted_at = $2 WHERE id = $3")
        .bind(DELETED)
        .bind(now.0)
        .bind(id.to_string())
        .execute(tx)
        .await?;
    Ok(())
}
