//! Accounts and their tokens.

use raworc_core::ids::{AccountId, TokenId};
use raworc_core::permissions::{Actor, Role};
use raworc_core::time::Time;

use crate::StoreError;
use crate::rows::{Row, word};
use crate::sql::{Read, Sound, sql};
use crate::tx::Tx;

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

/// Whom a token speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated {
    /// The account.
    pub actor: Actor,
    /// When the token stops working.
    pub expires_at: Option<Time>,
}

pub(crate) fn account(row: &Row<'_>) -> Result<AccountRow, StoreError> {
    row.record("accounts", |row| {
        Ok(AccountRow {
            id: row.id("id")?,
            name: row.text("name")?,
            role: row.word("role")?,
            created_at: row.time("created_at")?,
            closed_at: row.optional_time("closed_at")?,
        })
    })
}

pub(crate) fn token(row: &Row<'_>) -> Result<TokenRow, StoreError> {
    row.record("tokens", |row| {
        Ok(TokenRow {
            id: row.id("id")?,
            account_id: row.id("account_id")?,
            name: row.text("name")?,
            created_at: row.time("created_at")?,
            expires_at: row.optional_time("expires_at")?,
            revoked_at: row.optional_time("revoked_at")?,
        })
    })
}

/// Adds an account.
///
/// # Errors
/// [`StoreError::Conflict`] where the name is taken.
pub async fn insert(tx: &mut Tx, row: &AccountRow) -> Result<(), StoreError> {
    sql("INSERT INTO accounts (id, name, role, created_at) VALUES ($1, $2, $3, $4)")
        .bind(row.id.to_string())
        .bind(row.name.clone())
        .bind(word(row.role)?)
        .bind(row.created_at.0)
        .execute(tx)
        .await?;
    Ok(())
}

/// The account of this id or name.
///
/// # Errors
/// Where the store fails.
pub async fn find(connection: &mut Read, id_or_name: &str) -> Result<Option<AccountRow>, StoreError> {
    sql("SELECT * FROM accounts WHERE id = $1 OR name = $1").bind(id_or_name).fetch_optional(connection, account).await
}

/// Accounts by name, after the name `after`.
///
/// # Errors
/// Where the store fails.
pub async fn list(connection: &mut Read, after: &str, limit: u32) -> Result<Sound<AccountRow>, StoreError> {
    sql("SELECT * FROM accounts WHERE name > $1 ORDER BY name").bind(after).fetch_page(connection, limit, account).await
}

/// Whether any account is there.
///
/// # Errors
/// Where the store fails.
pub async fn any(connection: &mut Read) -> Result<bool, StoreError> {
    Ok(sql("SELECT id FROM accounts LIMIT 1").fetch_optional(connection, |_| Ok(())).await?.is_some())
}

/// Closes an account: its tokens no longer work.
///
/// # Errors
/// Where the store fails.
pub async fn close(tx: &mut Tx, id: AccountId, now: Time) -> Result<(), StoreError> {
    sql("UPDATE accounts SET closed_at = $1 WHERE id = $2 AND closed_at IS NULL")
        .bind(now.0)
        .bind(id.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

/// Adds a token; `hash` stands for its secret.
///
/// # Errors
/// Where the store fails.
pub async fn insert_token(tx: &mut Tx, row: &TokenRow, hash: &str) -> Result<(), StoreError> {
    sql("INSERT INTO tokens (id, account_id, name, hash, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6)")
        .bind(row.id.to_string())
        .bind(row.account_id.to_string())
        .bind(row.name.clone())
        .bind(hash)
        .bind(row.created_at.0)
        .bind(row.expires_at.map(|at| at.0))
        .execute(tx)
        .await?;
    Ok(())
}

/// Who the token with this hash speaks for at `now`: nobody where it is unknown, expired, revoked, or its account closed.
///
/// # Errors
/// Where the store fails.
pub async fn authenticate(connection: &mut Read, hash: &str, now: Time) -> Result<Option<Authenticated>, StoreError> {
    sql("SELECT a.id, a.name, a.role, t.expires_at FROM tokens t JOIN accounts a ON a.id = t.account_id \
         WHERE t.hash = $1 AND t.revoked_at IS NULL AND a.closed_at IS NULL \
         AND (t.expires_at IS NULL OR t.expires_at > $2)")
    .bind(hash)
    .bind(now.0)
    .fetch_optional(connection, |row| {
        row.record("accounts", |row| {
            let actor = Actor { account: row.id("id")?, name: row.text("name")?, role: row.word("role")? };
            Ok(Authenticated { actor, expires_at: row.optional_time("expires_at")? })
        })
    })
    .await
}

/// An account's tokens by age, after the id `after`.
///
/// # Errors
/// Where the store fails.
pub async fn list_tokens(
    connection: &mut Read,
    owner: AccountId,
    after: &str,
    limit: u32,
) -> Result<Sound<TokenRow>, StoreError> {
    sql("SELECT * FROM tokens WHERE account_id = $1 AND id > $2 ORDER BY id")
        .bind(owner.to_string())
        .bind(after)
        .fetch_page(connection, limit, token)
        .await
}

/// Revokes a token of this account; false where there is no such token.
///
/// # Errors
/// Where the store fails.
pub async fn revoke_token(tx: &mut Tx, owner: AccountId, id: TokenId, now: Time) -> Result<bool, StoreError> {
    let done = sql("UPDATE tokens SET revoked_at = COALESCE(revoked_at, $1) WHERE id = $2 AND account_id = $3")
        .bind(now.0)
        .bind(id.to_string())
        .bind(owner.to_string())
        .execute(tx)
        .await?;
    Ok(done > 0)
}
