//! The audit trail: who did what to what, when. Only ever added to.

use raworc_core::permissions::Actor;
use raworc_core::time::Time;

use crate::StoreError;
use crate::sql::{Connection, sql};

/// Adds an entry.
///
/// # Errors
/// Where the store fails.
pub async fn append(
    connection: &mut Connection,
    now: Time,
    actor: &Actor,
    action: &str,
    target: &str,
) -> Result<(), StoreError> {
    sql("INSERT INTO audit (id, at, account_id, account, action, target) VALUES ($1, $2, $3, $4, $5, $6)")
        .bind(uuid::Uuid::now_v7().to_string())
        .bind(now.0)
        .bind(actor.account.to_string())
        .bind(actor.name.clone())
        .bind(action)
        .bind(target)
        .execute(connection)
        .await?;
    Ok(())
}
