//! `Idempotency-Key`: which request made which thing.

use raworc_core::ids::AccountId;
use raworc_core::time::Time;
use sqlx::AnyConnection;

use crate::StoreError;
use crate::rows::Columns;

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
pub async fn find(connection: &mut AnyConnection, account: AccountId, key: &str) -> Result<Option<Used>, StoreError> {
    let row = sqlx::query("SELECT fingerprint, resource_id FROM idempotency_keys WHERE account_id = $1 AND key = $2")
        .bind(account.to_string())
        .bind(key)
        .fetch_optional(connection)
        .await?;
    row.map(|row| {
        let columns = Columns(&row);
        Ok(Used { fingerprint: columns.text("fingerprint")?, resource_id: columns.text("resource_id")? })
    })
    .transpose()
}

/// Remembers what `key` was used for.
///
/// # Errors
/// [`StoreError::Conflict`] where it was used before.
pub async fn insert(
    connection: &mut AnyConnection,
    account: AccountId,
    key: &str,
    used: &Used,
    now: Time,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO idempotency_keys (account_id, key, fingerprint, resource_id, created_at) \
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(account.to_string())
    .bind(key)
    .bind(used.fingerprint.clone())
    .bind(used.resource_id.clone())
    .bind(now.0)
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets keys from before `until`.
///
/// # Errors
/// Where the store fails.
pub async fn prune(connection: &mut AnyConnection, until: Time) -> Result<u64, StoreError> {
    let done =
        sqlx::query("DELETE FROM idempotency_keys WHERE created_at < $1").bind(until.0).execute(connection).await?;
    Ok(done.rows_affected())
}
