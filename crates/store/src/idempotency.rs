//! `Idempotency-Key`: which request made which thing.

use raworc_core::ids::AccountId;
use raworc_core::time::Time;

use crate::StoreError;
use crate::sql::{Read, sql};
use crate::tx::Tx;

/// What a key was used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// Stands for the request: method, path and body.
    pub fingerprint: String,
    /// The id of what the request made.
    pub resource_id: String,
}

/// What this account has used `key` for.
///
/// # Errors
/// Where the store fails.
pub async fn find(connection: &mut Read, account: AccountId, key: &str) -> Result<Option<Used>, StoreError> {
    sql("SELECT fingerprint, resource_id FROM idempotency_keys WHERE account_id = $1 AND key = $2")
        .bind(account.to_string())
        .bind(key)
        .fetch_optional(connection, |row| {
            Ok(Used { fingerprint: row.text("fingerprint")?, resource_id: row.text("resource_id")? })
        })
        .await
}

/// Remembers what `key` was used for.
///
/// # Errors
/// [`StoreError::Conflict`] where it was used before.
pub async fn insert(tx: &mut Tx, account: AccountId, key: &str, used: &Used, now: Time) -> Result<(), StoreError> {
    sql("INSERT INTO idempotency_keys (account_id, key, fingerprint, resource_id, created_at) \
         VALUES ($1, $2, $3, $4, $5)")
    .bind(account.to_string())
    .bind(key)
    .bind(used.fingerprint.clone())
    .bind(used.resource_id.clone())
    .bind(now.0)
    .execute(tx)
    .await?;
    Ok(())
}

/// Forgets keys from before `until`.
///
/// # Errors
/// Where the store fails.
pub async fn prune(tx: &mut Tx, until: Time) -> Result<usize, StoreError> {
    sql("DELETE FROM idempotency_keys WHERE created_at < $1").bind(until.0).execute(tx).await
}
