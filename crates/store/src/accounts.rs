//! Accounts and their tokens.

use raworc_core::ids::{AccountId, TokenId};
use raworc_core::permissions::{Actor, Role};
use raworc_core::time::Time;
use sqlx::AnyConnection;
use sqlx::any::AnyRow;

use crate::StoreError;
use crate::rows::{Columns, word};

/// An account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountRow {
    /// Its id.
    pub id: AccountId,
    /// Its name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// When it was made.
    pub created_at: Time,
    /// When it was closed.
    pub closed_at: Option<Time>,
}

/// A token's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// Its id.
    pub id: TokenId,
    /// Whose.
    pub account_id: AccountId,
    /// What for.
    pub name: String,
    /// When it was made.
    pub created_at: Time,
    /// When it stops working.
    pub expires_at: Option<Time>,
    /// When it was revoked.
    pub revoked_at: Option<Time>,
}

fn account(row: &AnyRow) -> Result<AccountRow, StoreError> {
    let columns = Columns(row);
    Ok(AccountRow {
        id: columns.id("id")?,
        name: columns.text("name")?,
        role: columns.word("role")?,
        created_at: columns.time("created_at")?,
        closed_at: columns.optional_time("closed_at")?,
    })
}

fn token(row: &AnyRow) -> Result<TokenRow, StoreError> {
    let columns = Columns(row);
    Ok(TokenRow {
        id: columns.id("id")?,
        account_id: columns.id("account_id")?,
        name: columns.text("name")?,
        created_at: columns.time("created_at")?,
        expires_at: columns.optional_time("expires_at")?,
        revoked_at: columns.optional_time("revoked_at")?,
    })
}

/// Adds an account.
///
/// # Errors
/// [`StoreError::Conflict`] where the name is taken.
pub async fn insert(connection: &mut AnyConnection, row: &AccountRow) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO accounts (id, name, role, created_at) VALUES ($1, $2, $3, $4)")
        .bind(row.id.to_string())
        .bind(row.name.clone())
        .bind(word(row.role)?)
        .bind(row.created_at.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// The account of this id or name.
///
/// # Errors
/// Where the store fails.
pub async fn find(connection: &mut AnyConnection, id_or_name: &str) -> Result<Option<AccountRow>, StoreError> {
    let row = sqlx::query("SELECT * FROM accounts WHERE id = $1 OR name = $1")
        .bind(id_or_name)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(account).transpose()
}

/// Accounts by name, after the name `after`.
///
/// # Errors
/// Where the store fails.
pub async fn list(connection: &mut AnyConnection, after: &str, limit: u32) -> Result<Vec<AccountRow>, StoreError> {
    let rows = sqlx::query("SELECT * FROM accounts WHERE name > $1 ORDER BY name LIMIT $2")
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await?;
    rows.iter().map(account).collect()
}

/// Whether any account is there.
///
/// # Errors
/// Where the store fails.
pub async fn any(connection: &mut AnyConnection) -> Result<bool, StoreError> {
    Ok(sqlx::query("SELECT id FROM accounts LIMIT 1").fetch_optional(connection).await?.is_some())
}

/// Closes an account: its tokens no longer work.
///
/// # Errors
/// Where the store fails.
pub async fn close(connection: &mut AnyConnection, id: AccountId, now: Time) -> Result<(), StoreError> {
    sqlx::query("UPDATE accounts SET closed_at = $1 WHERE id = $2 AND closed_at IS NULL")
        .bind(now.0)
        .bind(id.to_string())
        .execute(connection)
        .await?;
    Ok(())
}

/// Adds a token; `hash` stands for its secret.
///
/// # Errors
/// Where the store fails.
pub async fn insert_token(connection: &mut AnyConnection, row: &TokenRow, hash: &str) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO tokens (id, account_id, name, hash, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(row.id.to_string())
    .bind(row.account_id.to_string())
    .bind(row.name.clone())
    .bind(hash)
    .bind(row.created_at.0)
    .bind(row.expires_at.map(|at| at.0))
    .execute(connection)
    .await?;
    Ok(())
}

/// Who the token with this hash speaks for at `now`: nobody where it is unknown, expired, revoked, or its account closed.
///
/// # Errors
/// Where the store fails.
pub async fn actor_by_token(
    connection: &mut AnyConnection,
    hash: &str,
    now: Time,
) -> Result<Option<Actor>, StoreError> {
    let row = sqlx::query(
        "SELECT a.id, a.name, a.role FROM tokens t JOIN accounts a ON a.id = t.account_id \
         WHERE t.hash = $1 AND t.revoked_at IS NULL AND a.closed_at IS NULL \
         AND (t.expires_at IS NULL OR t.expires_at > $2)",
    )
    .bind(hash)
    .bind(now.0)
    .fetch_optional(connection)
    .await?;
    row.map(|row| {
        let columns = Columns(&row);
        Ok(Actor { account: columns.id("id")?, name: columns.text("name")?, role: columns.word("role")? })
    })
    .transpose()
}

/// An account's tokens by age, after the id `after`.
///
/// # Errors
/// Where the store fails.
pub async fn list_tokens(
    connection: &mut AnyConnection,
    owner: AccountId,
    after: &str,
    limit: u32,
) -> Result<Vec<TokenRow>, StoreError> {
    let rows = sqlx::query("SELECT * FROM tokens WHERE account_id = $1 AND id > $2 ORDER BY id LIMIT $3")
        .bind(owner.to_string())
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await?;
    rows.iter().map(token).collect()
}

/// Revokes a token of this account; false where there is no such token.
///
/// # Errors
/// Where the store fails.
pub async fn revoke_token(
    connection: &mut AnyConnection,
    owner: AccountId,
    id: TokenId,
    now: Time,
) -> Result<bool, StoreError> {
    let done = sqlx::query("UPDATE tokens SET revoked_at = COALESCE(revoked_at, $1) WHERE id = $2 AND account_id = $3")
        .bind(now.0)
        .bind(id.to_string())
        .bind(owner.to_string())
        .execute(connection)
        .await?;
    Ok(done.rows_affected() > 0)
}
