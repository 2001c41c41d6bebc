//! What is stored of a session, and when: what people configure apart from what the machine does.

use raworc_core::session;

use super::SessionRow;
use crate::StoreError;
use crate::rows::{bigint, word};
use crate::sql::{Statement, sql};
use crate::tx::Tx;

/// Adds a session.
///
/// # Errors
/// Where the store fails.
pub async fn insert(tx: &mut Tx, row: &SessionRow) -> Result<(), StoreError> {
    sql(
        "INSERT INTO sessions (id, name, starting_prompt, owner_id, owner_name, settings, parent_id, machine, state, \
         container, deadline_at, deleted_at, last_seq, host_received, version, messages_ended, busy_micros, created_at, \
         updated_at, parent_checkpoint, layer_id, writable_id, checkpoints, rewinds, image_layer_id, edition) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, \
         $23, $24, $25, $26)",
    )
    .bind(row.id.to_string())
    .bind(row.name.clone())
    .bind(row.starting_prompt.clone())
    .bind(row.owner_id.to_string())
    .bind(row.owner_name.clone())
    .bind(serde_json::to_string(&row.settings)?)
    .bind(row.parent_id.map(|id| id.to_string()))
    .bind(serde_json::to_string(&row.machine)?)
    .bind(row.machine.state.as_str())
    .bind(word(row.machine.container)?)
    .bind(session::deadline(&row.machine).map(|at| at.0))
    .bind(row.machine.deleted_at.map(|at| at.0))
    .bind(bigint(row.last_seq))
    .bind(bigint(row.host_received))
    .bind(row.version)
    .bind(bigint(row.messages_ended))
    .bind(bigint(row.busy_micros))
    .bind(row.created_at.0)
    .bind(row.updated_at.0)
    .bind(row.parent_checkpoint.map(bigint))
    .bind(row.layer_id.map(|id| id.to_string()))
    .bind(row.writable_id.to_string())
    .bind(bigint(row.checkpoints))
    .bind(serde_json::to_string(&row.rewinds)?)
    .bind(row.image_layer_id.map(|id| id.to_string()))
    .bind(row.edition)
    .execute(tx)
    .await?;
    Ok(())
}

/// Stores what the machine did, and counts the version up. What people configure is left as it is.
///
/// # Errors
/// [`StoreError::Conflict`] where someone else changed the session since it was read.
pub async fn update(tx: &mut Tx, row: &mut SessionRow) -> Result<(), StoreError> {
    let statement = sql(
        "UPDATE sessions SET machine = $1, state = $2, container = $3, deadline_at = $4, deleted_at = $5, last_seq = $6, \
         host_received = $7, version = $8, messages_ended = $9, busy_micros = $10, updated_at = $11, layer_id = $12, \
         writable_id = $13, checkpoints = $14, rewinds = $15, backup_at = $16, backup = $17, image_layer_id = $18, \
         purged_at = $19, save_due = $20 WHERE id = $21 AND version = $22",
    )
    .bind(serde_json::to_string(&row.machine)?)
    .bind(row.machine.state.as_str())
    .bind(word(row.machine.container)?)
    .bind(session::deadline(&row.machine).map(|at| at.0))
    .bind(row.machine.deleted_at.map(|at| at.0))
    .bind(bigint(row.last_seq))
    .bind(bigint(row.host_received))
    .bind(row.version + 1)
    .bind(bigint(row.messages_ended))
    .bind(bigint(row.busy_micros))
    .bind(row.updated_at.0)
    .bind(row.layer_id.map(|id| id.to_string()))
    .bind(row.writable_id.to_string())
    .bind(bigint(row.checkpoints))
    .bind(serde_json::to_string(&row.rewinds)?)
    .bind(row.backup_at.map(|at| at.0))
    .bind(serde_json::to_string(&row.backup)?)
    .bind(row.image_layer_id.map(|id| id.to_string()))
    .bind(row.purged_at.map(|at| at.0))
    .bind(row.save_due.map(word).transpose()?);
    run(statement, tx, row).await
}

/// Stores that the log has grown, and which reports of the host it has; the rest of the session is left as it is.
///
/// # Errors
/// As [`update`].
pub async fn update_log(tx: &mut Tx, row: &mut SessionRow) -> Result<(), StoreError> {
    let statement = sql(
        "UPDATE sessions SET last_seq = $1, host_received = $2, version = $3, updated_at = $4 WHERE id = $5 AND version = $6",
    )
    .bind(bigint(row.last_seq))
    .bind(bigint(row.host_received))
    .bind(row.version + 1)
    .bind(row.updated_at.0);
    run(statement, tx, row).await
}

/// Stores what people configure, and counts the edition and the version up.
///
/// # Errors
/// As [`update`].
pub async fn configure(tx: &mut Tx, row: &mut SessionRow) -> Result<(), StoreError> {
    let statement =
        sql("UPDATE sessions SET name = $1, settings = $2, edition = $3, version = $4 WHERE id = $5 AND version = $6")
            .bind(row.name.clone())
            .bind(serde_json::to_string(&row.settings)?)
            .bind(row.edition + 1)
            .bind(row.version + 1);
    run(statement, tx, row).await?;
    row.edition += 1;
    Ok(())
}

/// Runs an update that ends in the session's id and version, and counts the version up.
async fn run(statement: Statement, tx: &mut Tx, row: &mut SessionRow) -> Result<(), StoreError> {
    let done = statement.bind(row.id.to_string()).bind(row.version).execute(tx).await?;
    if done == 0 {
        return Err(StoreError::Conflict);
    }
    row.version += 1;
    Ok(())
}
