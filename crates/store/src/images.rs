//! Images that are here: what containers can run, and checkpoints from elsewhere.

use raworc_core::ids::{AccountId, ImageId, LayerId};
use raworc_core::time::Time;
use serde::{Deserialize, Serialize};

use crate::StoreError;
use crate::rows::{Row, bigint};
use crate::sql::{Batch, Read, sql};
use crate::tx::Tx;

/// An image.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageRow {
    /// Its id.
    pub id: ImageId,
    /// Who brought it in.
    pub owner_id: AccountId,
    /// Their name.
    pub owner_name: String,
    /// Whether everyone may use it.
    pub is_shared: bool,
    /// What it is called: one of that name for each owner.
    pub name: String,
    /// The digest of its manifest.
    pub digest: String,
    /// Its topmost layer; none where it is empty.
    pub layer_id: Option<LayerId>,
    /// What else is said of it in lists.
    pub summary: Summary,
    /// Bytes of all files.
    pub bytes: u64,
    /// All files.
    pub files: u64,
    /// When it was brought in.
    pub created_at: Time,
}

/// What is said of an image in lists.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// What it has programs find in their environment, `NAME=VALUE` each.
    pub env: Vec<String>,
    /// Of which checkpoint it is one, if it is.
    pub checkpoint: Option<CheckpointSummary>,
}

/// A checkpoint from elsewhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointSummary {
    /// The name of its session.
    pub session: String,
    /// Its number there.
    pub n: u64,
    /// Its name.
    pub label: Option<String>,
    /// Messages of the conversation that came with it.
    pub messages: u64,
    /// When it was taken.
    pub taken_at: Time,
}

pub(crate) fn image(row: &Row<'_>) -> Result<ImageRow, StoreError> {
    row.record("images", |row| {
        Ok(ImageRow {
            id: row.id("id")?,
            owner_id: row.id("owner_id")?,
            owner_name: row.text("owner_name")?,
            is_shared: row.boolean("shared")?,
            name: row.text("name")?,
            digest: row.text("digest")?,
            layer_id: row.optional_id("layer_id")?,
            summary: row.json("summary")?,
            bytes: row.count("bytes")?,
            files: row.count("files")?,
            created_at: row.time("created_at")?,
        })
    })
}

/// Everything about an image but what came with a checkpoint, which may be long.
const COLUMNS: &str = "id, owner_id, owner_name, shared, name, digest, layer_id, summary, bytes, files, created_at";

/// Adds an image, with what came with a checkpoint.
///
/// # Errors
/// [`StoreError::Conflict`] where the owner has one of this name.
pub async fn insert(tx: &mut Tx, row: &ImageRow, content: Option<String>) -> Result<(), StoreError> {
    sql(
        "INSERT INTO images (id, owner_id, owner_name, shared, name, digest, layer_id, summary, content, bytes, files, \
         created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(row.id.to_string())
    .bind(row.owner_id.to_string())
    .bind(row.owner_name.clone())
    .bind(i64::from(row.is_shared))
    .bind(row.name.clone())
    .bind(row.digest.clone())
    .bind(row.layer_id.map(|id| id.to_string()))
    .bind(serde_json::to_string(&row.summary)?)
    .bind(content)
    .bind(bigint(row.bytes))
    .bind(bigint(row.files))
    .bind(row.created_at.0)
    .execute(tx)
    .await?;
    Ok(())
}

/// The image of this id.
///
/// # Errors
/// Where the store fails.
pub async fn find(connection: &mut Read, id: ImageId) -> Result<Option<ImageRow>, StoreError> {
    sql(format!("SELECT {COLUMNS} FROM images WHERE id = $1"))
        .bind(id.to_string())
        .fetch_optional(connection, image)
        .await
}

/// The image that this name means to an account: its own, or else one that is there for everyone.
///
/// # Errors
/// Where the store fails.
pub async fn find_by_name(
    connection: &mut Read,
    account: AccountId,
    name: &str,
) -> Result<Option<ImageRow>, StoreError> {
    sql(format!(
        "SELECT {COLUMNS} FROM images WHERE name = $1 AND (owner_id = $2 OR shared = 1) \
         ORDER BY CASE WHEN owner_id = $2 THEN 0 ELSE 1 END, id LIMIT 1"
    ))
    .bind(name.to_owned())
    .bind(account.to_string())
    .fetch_optional(connection, image)
    .await
}

/// Images after one in the order of their ids: all, or those that an account may use.
///
/// # Errors
/// Where the store fails.
pub async fn list(
    connection: &mut Read,
    account: Option<AccountId>,
    after: Option<ImageId>,
    bounds: (u32, usize),
) -> Result<Batch<ImageRow>, StoreError> {
    sql(format!("SELECT {COLUMNS} FROM images WHERE id > $1 AND ($2 = '' OR owner_id = $2 OR shared = 1) ORDER BY id"))
        .bind(after.map(|id| id.to_string()).unwrap_or_default())
        .bind(account.map(|id| id.to_string()).unwrap_or_default())
        .fetch_batch(connection, bounds, image)
        .await
}

/// Bytes of all images that an account brought in, each counted whole.
///
/// # Errors
/// Where the store fails.
pub async fn bytes_of(connection: &mut Read, owner: AccountId) -> Result<u64, StoreError> {
    let sum = sql("SELECT COALESCE(SUM(bytes), 0) AS bytes FROM images WHERE owner_id = $1")
        .bind(owner.to_string())
        .fetch_optional(connection, |row| row.count("bytes"))
        .await?;
    Ok(sum.unwrap_or(0))
}

/// Images that no session runs. Checkpoints are none of them: nothing ever runs those, and there may be no other copy.
///
/// # Errors
/// Where the store fails.
pub async fn unused(connection: &mut Read) -> Result<Vec<ImageRow>, StoreError> {
    let found = sql(format!(
        "SELECT {COLUMNS} FROM images WHERE content IS NULL AND (layer_id IS NULL \
         OR NOT EXISTS (SELECT 1 FROM sessions WHERE image_layer_id = images.layer_id))"
    ))
    .fetch_sound(connection, image)
    .await?;
    Ok(found.rows)
}

/// What came with a checkpoint besides its files.
///
/// # Errors
/// Where the store fails.
pub async fn content(connection: &mut Read, id: ImageId) -> Result<Option<String>, StoreError> {
    let found = sql("SELECT content FROM images WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(connection, |row| row.optional_text("content"))
        .await?;
    Ok(found.flatten())
}

/// Forgets an image.
///
/// # Errors
/// Where the store fails.
pub async fn delete(tx: &mut Tx, id: ImageId) -> Result<(), StoreError> {
    sql("DELETE FROM images WHERE id = $1").bind(id.to_string()).execute(tx).await?;
    Ok(())
}
