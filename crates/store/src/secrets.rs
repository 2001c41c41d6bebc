//! Secrets of accounts.

use raworc_core::ids::{AccountId, SecretId};
use raworc_core::names;
use raworc_core::secrets::Target;
use raworc_core::time::Time;
use serde::{Deserialize, Serialize};

use crate::StoreError;
use crate::Tx;
use crate::encrypted::Encrypted;
use crate::rows::{Row, damaged};
use crate::sql::{Batch, Read, sql};

/// A secret.
#[derive(Clone, Debug, PartialEq)]
pub struct SecretRow {
    /// Its id.
    pub id: SecretId,
    /// Whose.
    pub owner_id: AccountId,
    /// What its owner calls it.
    pub name: String,
    /// Where it goes.
    pub target: Target,
    /// Its value.
    pub value: Encrypted,
    /// Grows with each change.
    pub version: i64,
    /// When it was added.
    pub created_at: Time,
    /// When it last changed.
    pub updated_at: Time,
}

/// Where a secret goes, as it is stored.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredTarget {
    Hosts { hosts: Vec<String>, header: String, format: String },
    Env { name: String },
}

impl From<&Target> for StoredTarget {
    fn from(target: &Target) -> Self {
        match target.clone() {
            Target::Hosts { hosts, header, format } => Self::Hosts { hosts, header, format },
            Target::Env(name) => Self::Env { name },
        }
    }
}

impl From<StoredTarget> for Target {
    fn from(stored: StoredTarget) -> Self {
        match stored {
            StoredTarget::Hosts { hosts, header, format } => Self::Hosts { hosts, header, format },
            StoredTarget::Env { name } => Self::Env(name),
        }
    }
}

pub(crate) fn secret(row: &Row<'_>) -> Result<SecretRow, StoreError> {
    row.record("secrets", |row| {
        let name = row.text("name")?;
        names::check_handle(&name).map_err(|_| damaged("name", "is no name of a secret"))?;
        Ok(SecretRow {
            id: row.id("id")?,
            owner_id: row.id("owner_id")?,
            name,
            target: row.json::<StoredTarget>("target")?.into(),
            value: row.text("value")?.parse().map_err(|_| damaged("value", "is not an encrypted text"))?,
            version: row.count("version")?,
            created_at: row.time("created_at")?,
            updated_at: row.time("updated_at")?,
        })
    })
}

/// Adds a secret.
///
/// # Errors
/// [`StoreError::Conflict`] where its owner has one of this name.
pub async fn insert(tx: &mut Tx, row: &SecretRow) -> Result<(), StoreError> {
    sql("INSERT INTO secrets (id, owner_id, name, target, value, version, created_at, updated_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)")
    .bind(row.id.to_string())
    .bind(row.owner_id.to_string())
    .bind(row.name.clone())
    .bind(serde_json::to_string(&StoredTarget::from(&row.target))?)
    .bind(row.value.as_str())
    .bind(row.version)
    .bind(row.created_at.0)
    .bind(row.updated_at.0)
    .execute(tx)
    .await?;
    Ok(())
}

/// Stores a changed secret and counts its version up.
///
/// # Errors
/// [`StoreError::Conflict`] where its owner has another one of the new name.
pub async fn update(tx: &mut Tx, row: &mut SecretRow) -> Result<(), StoreError> {
    row.version += 1;
    sql("UPDATE secrets SET name = $1, target = $2, value = $3, version = $4, updated_at = $5 WHERE id = $6")
        .bind(row.name.clone())
        .bind(serde_json::to_string(&StoredTarget::from(&row.target))?)
        .bind(row.value.as_str())
        .bind(row.version)
        .bind(row.updated_at.0)
        .bind(row.id.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

/// Stores a value that was encrypted anew in place of `old`, if that is there still. To people it is the same, so that the version stays.
///
/// # Errors
/// Where the store fails.
pub async fn replace_value(tx: &mut Tx, id: SecretId, old: &Encrypted, new: &Encrypted) -> Result<bool, StoreError> {
    let done = sql("UPDATE secrets SET value = $1 WHERE id = $2 AND value = $3")
        .bind(new.as_str())
        .bind(id.to_string())
        .bind(old.as_str())
        .execute(tx)
        .await?;
    Ok(done > 0)
}

/// Removes a secret.
///
/// # Errors
/// Where the store fails.
pub async fn delete(tx: &mut Tx, id: SecretId) -> Result<(), StoreError> {
    sql("DELETE FROM secrets WHERE id = $1").bind(id.to_string()).execute(tx).await?;
    Ok(())
}

/// The secret of this id, or that this account calls so.
///
/// # Errors
/// Where the store fails.
pub async fn find(connection: &mut Read, owner: AccountId, id_or_name: &str) -> Result<Option<SecretRow>, StoreError> {
    sql("SELECT * FROM secrets WHERE id = $1 OR (owner_id = $2 AND name = $1)")
        .bind(id_or_name)
        .bind(owner.to_string())
        .fetch_optional(connection, secret)
        .await
}

/// The secrets of an account by name, after the name `after`: at most `limit`, and about so many bytes.
///
/// # Errors
/// Where the store fails.
pub async fn list(
    connection: &mut Read,
    owner: AccountId,
    after: &str,
    bounds: (u32, usize),
) -> Result<Batch<SecretRow>, StoreError> {
    sql("SELECT * FROM secrets WHERE owner_id = $1 AND name > $2 ORDER BY name")
        .bind(owner.to_string())
        .bind(after)
        .fetch_batch(connection, bounds, secret)
        .await
}

/// How many secrets an account has, damaged ones included.
///
/// # Errors
/// Where the store fails.
pub async fn count(connection: &mut Read, owner: AccountId) -> Result<usize, StoreError> {
    let found = sql("SELECT COUNT(*) AS n FROM secrets WHERE owner_id = $1").bind(owner.to_string());
    let n = found.fetch_optional(connection, |row| row.count::<u64>("n")).await?;
    Ok(n.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX))
}

/// The names of the keys that encrypt secrets. What is damaged has none.
///
/// # Errors
/// Where the store fails.
pub async fn keys(connection: &mut Read) -> Result<Vec<String>, StoreError> {
    let found = sql("SELECT DISTINCT substr(value, 4, 16) AS key FROM secrets WHERE value LIKE 'v_:%'")
        .fetch_sound(connection, |row| row.text("key"))
        .await?;
    Ok(found.rows)
}

/// Some of the secrets that a key of this name encrypts.
///
/// # Errors
/// Where the store fails.
pub async fn encrypted_with(connection: &mut Read, key: &str, limit: u32) -> Result<Vec<SecretRow>, StoreError> {
    let found = sql("SELECT * FROM secrets WHERE substr(value, 4, 16) = $1 ORDER BY id").bind(key);
    Ok(found.fetch_page(connection, limit, secret).await?.rows)
}
