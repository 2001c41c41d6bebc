//! What workspaces are made of.

use raworc_core::ids::LayerId;
use raworc_core::time::Time;

use crate::rows::{Row, bigint};
use crate::sql::{Read, sql};
use crate::tx::Tx;
use crate::{Damage, StoreError};

/// A layer that never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerRow {
    /// Its id.
    pub id: LayerId,
    /// What it lies on.
    pub parent_id: Option<LayerId>,
    /// How many there are from it down, itself included.
    pub depth: u32,
    /// Bytes of files in itself.
    pub changed_bytes: u64,
    /// Bytes of files in the view from it down.
    pub bytes: u64,
    /// Files in that view.
    pub files: u64,
    /// Entries of directories in itself: what it costs to go through it.
    pub entries: u64,
    /// Bytes on the disk of what is in itself.
    pub own_disk_bytes: u64,
    /// Bytes on the disk of what the view from it down shows, at most: names of one file may count more than once.
    pub disk_bytes: u64,
    /// Whether that was counted exactly.
    pub disk_is_exact: bool,
    /// When it was sealed.
    pub created_at: Time,
}

pub(crate) fn layer(row: &Row<'_>) -> Result<LayerRow, StoreError> {
    row.record("layers", |row| {
        Ok(LayerRow {
            id: row.id("id")?,
            parent_id: row.optional_id("parent_id")?,
            depth: row.count("depth")?,
            changed_bytes: row.count("changed_bytes")?,
            bytes: row.count("bytes")?,
            files: row.count("files")?,
            entries: row.count("entries")?,
            own_disk_bytes: row.count("own_disk_bytes")?,
            disk_bytes: row.count("disk_bytes")?,
            disk_is_exact: row.boolean("disk_is_exact")?,
            created_at: row.time("created_at")?,
        })
    })
}

/// Adds a layer.
///
/// # Errors
/// Where the store fails.
pub async fn insert(tx: &mut Tx, row: &LayerRow) -> Result<(), StoreError> {
    sql("INSERT INTO layers (id, parent_id, depth, changed_bytes, bytes, files, entries, created_at, own_disk_bytes, \
         disk_bytes, disk_is_exact) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)")
    .bind(row.id.to_string())
    .bind(row.parent_id.map(|id| id.to_string()))
    .bind(i64::from(row.depth))
    .bind(bigint(row.changed_bytes))
    .bind(bigint(row.bytes))
    .bind(bigint(row.files))
    .bind(bigint(row.entries))
    .bind(row.created_at.0)
    .bind(bigint(row.own_disk_bytes))
    .bind(bigint(row.disk_bytes))
    .bind(i64::from(row.disk_is_exact))
    .execute(tx)
    .await?;
    Ok(())
}

/// Stores what was measured of a layer.
///
/// # Errors
/// Where the store fails.
pub async fn set_sizes(tx: &mut Tx, row: &LayerRow) -> Result<(), StoreError> {
    sql("UPDATE layers SET changed_bytes = $1, bytes = $2, files = $3, entries = $4, own_disk_bytes = $5, disk_bytes = $6, \
         disk_is_exact = $7 WHERE id = $8")
        .bind(bigint(row.changed_bytes))
        .bind(bigint(row.bytes))
        .bind(bigint(row.files))
        .bind(bigint(row.entries))
        .bind(bigint(row.own_disk_bytes))
        .bind(bigint(row.disk_bytes))
        .bind(i64::from(row.disk_is_exact))
        .bind(row.id.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

/// The layer of this id.
///
/// # Errors
/// Where the store fails.
pub async fn find(connection: &mut Read, id: LayerId) -> Result<Option<LayerRow>, StoreError> {
    sql("SELECT * FROM layers WHERE id = $1").bind(id.to_string()).fetch_optional(connection, layer).await
}

/// A layer as it is stored in registries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archived {
    /// The digest of its tar.
    pub diff_id: String,
    /// The descriptor of the compressed tar, as JSON.
    pub blob: String,
    /// How much of the layer has no form in it.
    pub left_out: u64,
}

/// What a layer is as an archive, if it ever was one.
///
/// # Errors
/// Where the store fails.
pub async fn archived(connection: &mut Read, id: LayerId) -> Result<Option<Archived>, StoreError> {
    sql("SELECT diff_id, blob, left_out FROM layers WHERE id = $1 AND diff_id IS NOT NULL AND blob IS NOT NULL")
        .bind(id.to_string())
        .fetch_optional(connection, |row| {
            Ok(Archived { diff_id: row.text("diff_id")?, blob: row.text("blob")?, left_out: row.count("left_out")? })
        })
        .await
}

/// Notes what a layer is as an archive. A layer never changes, so this does not either.
///
/// # Errors
/// Where the store fails.
pub async fn set_archived(tx: &mut Tx, id: LayerId, archived: &Archived) -> Result<(), StoreError> {
    sql("UPDATE layers SET diff_id = $1, blob = $2, left_out = $3 WHERE id = $4")
        .bind(archived.diff_id.clone())
        .bind(archived.blob.clone())
        .bind(bigint(archived.left_out))
        .bind(id.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

/// The layer on `parent` whose tar has this digest.
///
/// # Errors
/// Where the store fails.
pub async fn find_same(
    connection: &mut Read,
    parent: Option<LayerId>,
    diff_id: &str,
) -> Result<Option<LayerRow>, StoreError> {
    sql("SELECT * FROM layers WHERE diff_id = $1 AND COALESCE(parent_id, '') = $2 LIMIT 1")
        .bind(diff_id.to_owned())
        .bind(parent.map(|id| id.to_string()).unwrap_or_default())
        .fetch_optional(connection, layer)
        .await
}

/// The layers from `top` down, as they are at one moment.
///
/// # Errors
/// [`StoreError::Damaged`] where one is missing.
pub async fn chain(connection: &mut Read, top: Option<LayerId>) -> Result<Vec<LayerRow>, StoreError> {
    let Some(top) = top else { return Ok(Vec::new()) };
    // (The bound is far beyond what can be mounted, and ends a chain that comes back to itself.)
    let chain = sql("WITH RECURSIVE down (id, place) AS (\
                         SELECT $1, 0 \
                         UNION ALL SELECT layers.parent_id, place + 1 FROM layers JOIN down ON layers.id = down.id \
                         WHERE layers.parent_id IS NOT NULL AND place < 10000) \
                     SELECT layers.* FROM down JOIN layers ON layers.id = down.id ORDER BY place")
    .bind(top.to_string())
    .fetch_all(connection, layer)
    .await?;
    let mut expected = Some(top);
    for row in &chain {
        if expected != Some(row.id) {
            break;
        }
        expected = row.parent_id;
    }
    match expected {
        None => Ok(chain),
        Some(id) => Err(StoreError::Damaged(Box::new(Damage {
            table: "layers",
            id: id.to_string(),
            column: "id".to_owned(),
            reason: "is missing, or lies on itself".to_owned(),
        }))),
    }
}

/// Every layer there is.
///
/// # Errors
/// Where the store fails.
pub async fn all(connection: &mut Read) -> Result<Vec<LayerRow>, StoreError> {
    Ok(sql("SELECT * FROM layers").fetch_sound(connection, layer).await?.rows)
}

/// What stands on a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// A session, one of its checkpoints, or the image it runs.
    Session {
        /// On which layer.
        layer: LayerId,
        /// Whether the session is deleted.
        is_deleted: bool,
    },
    /// An image that is here.
    Image(LayerId),
    /// A checkpoint that was brought in.
    Imported(LayerId),
}

impl Root {
    /// The layer.
    pub fn layer(&self) -> LayerId {
        match self {
            Self::Session { layer, .. } | Self::Image(layer) | Self::Imported(layer) => *layer,
        }
    }
}

/// Everything that stands on layers.
///
/// # Errors
/// Where the store fails.
pub async fn roots(connection: &mut Read) -> Result<Vec<Root>, StoreError> {
    let found = sql("SELECT layer_id AS layer, deleted_at FROM sessions WHERE layer_id IS NOT NULL \
         UNION ALL SELECT image_layer_id, deleted_at FROM sessions WHERE image_layer_id IS NOT NULL \
         UNION ALL SELECT c.layer_id, s.deleted_at FROM checkpoints c JOIN sessions s ON s.id = c.session_id \
         WHERE c.layer_id IS NOT NULL \
         UNION ALL SELECT layer_id, CASE WHEN content IS NULL THEN -1 ELSE -2 END FROM images \
         WHERE layer_id IS NOT NULL")
    .fetch_sound(connection, |row| {
        let layer = row.id("layer")?;
        Ok(match row.optional_integer("deleted_at")? {
            Some(-1) => Root::Image(layer),
            Some(-2) => Root::Imported(layer),
            deleted_at => Root::Session { layer, is_deleted: deleted_at.is_some() },
        })
    })
    .await?;
    Ok(found.rows)
}

/// The topmost layers of all workspaces and their checkpoints. (Those of images stay as they came: other images have them, too.)
///
/// # Errors
/// Where the store fails.
pub async fn workspaces(connection: &mut Read) -> Result<Vec<LayerId>, StoreError> {
    let found = sql("SELECT layer_id AS layer FROM sessions WHERE layer_id IS NOT NULL \
         UNION SELECT layer_id FROM checkpoints WHERE layer_id IS NOT NULL \
         UNION SELECT layer_id FROM images WHERE layer_id IS NOT NULL AND content IS NOT NULL")
    .fetch_sound(connection, |row| row.id("layer"))
    .await?;
    Ok(found.rows)
}

/// Whether anything but the layer above it stands on a layer.
///
/// # Errors
/// Where the store fails.
pub async fn has_dependents(connection: &mut Read, id: LayerId) -> Result<bool, StoreError> {
    let found = sql("SELECT (SELECT COUNT(*) FROM layers WHERE parent_id = $1) > 1 \
                     OR EXISTS (SELECT 1 FROM sessions WHERE layer_id = $1 OR image_layer_id = $1) \
                     OR EXISTS (SELECT 1 FROM checkpoints WHERE layer_id = $1) \
                     OR EXISTS (SELECT 1 FROM images WHERE layer_id = $1) AS found")
    .bind(id.to_string())
    .fetch_optional(connection, |row| row.integer("found"))
    .await?;
    Ok(found == Some(1))
}

/// Whether there is anything that this layer's directory is for: it is a layer, or a session writes to it.
///
/// # Errors
/// Where the store fails.
pub async fn is_known(connection: &mut Read, id: LayerId) -> Result<bool, StoreError> {
    exists(
        connection,
        // Also one whose own record is damaged or gone is known by those that stand on it.
        "SELECT 1 AS found FROM layers WHERE id = $1 OR parent_id = $1 \
         UNION ALL SELECT 1 FROM sessions WHERE writable_id = $1 OR layer_id = $1 OR image_layer_id = $1 \
         UNION ALL SELECT 1 FROM checkpoints WHERE layer_id = $1 UNION ALL SELECT 1 FROM images WHERE layer_id = $1",
        id,
    )
    .await
}

/// Whether some record that says what stands on which layer cannot be read. Then nothing is of no use.
///
/// # Errors
/// Where the store fails.
pub async fn are_in_doubt(connection: &mut Read) -> Result<bool, StoreError> {
    // Each of these has an index, which is empty on good days.
    let found = sql("SELECT EXISTS (SELECT 1 FROM sessions \
             WHERE length(id) <> 36 OR length(writable_id) <> 36 OR length(layer_id) <> 36 OR length(image_layer_id) <> 36) \
         OR EXISTS (SELECT 1 FROM checkpoints WHERE length(session_id) <> 36 OR length(layer_id) <> 36) \
         OR EXISTS (SELECT 1 FROM images WHERE length(id) <> 36 OR length(layer_id) <> 36) \
         OR EXISTS (SELECT 1 FROM layers WHERE length(id) <> 36 OR length(parent_id) <> 36) AS found")
    .fetch_optional(connection, |row| row.integer("found"))
    .await?;
    Ok(found == Some(1))
}

async fn exists(connection: &mut Read, text: &'static str, id: LayerId) -> Result<bool, StoreError> {
    Ok(sql(text).bind(id.to_string()).fetch_optional(connection, |_| Ok(())).await?.is_some())
}

/// Forgets a layer that nothing stands on any more, and those below it that then are of no use either: they are wasted, and
/// returned.
///
/// To be called in the transaction that takes something away from the layer.
///
/// # Errors
/// Where the store fails.
pub async fn release(tx: &mut Tx, layer: Option<LayerId>) -> Result<Vec<LayerId>, StoreError> {
    const USED: &str = "SELECT 1 AS found FROM layers WHERE parent_id = $1 \
                        UNION ALL SELECT 1 FROM sessions WHERE layer_id = $1 OR image_layer_id = $1 \
                        UNION ALL SELECT 1 FROM checkpoints WHERE layer_id = $1 \
                        UNION ALL SELECT 1 FROM images WHERE layer_id = $1";
    let (mut released, mut next) = (Vec::new(), layer);
    if are_in_doubt(tx).await? {
        return Ok(released);
    }
    while let Some(id) = next {
        let Some(row) = find(tx, id).await? else { break };
        if exists(tx, USED, id).await? {
            break;
        }
        sql("DELETE FROM layers WHERE id = $1").bind(id.to_string()).execute(tx).await?;
        released.push(id);
        next = row.parent_id;
    }
    tx.wasted(released.iter().copied());
    Ok(released)
}

/// Puts `new` in the place of `old`: whatever lay or stood on the one does so on the other.
///
/// # Errors
/// Where the store fails.
pub async fn replace(tx: &mut Tx, old: LayerId, new: LayerId) -> Result<(), StoreError> {
    for text in [
        "UPDATE layers SET parent_id = $1 WHERE parent_id = $2",
        "UPDATE sessions SET layer_id = $1 WHERE layer_id = $2",
        "UPDATE sessions SET image_layer_id = $1 WHERE image_layer_id = $2",
        "UPDATE images SET layer_id = $1 WHERE layer_id = $2",
        "UPDATE checkpoints SET layer_id = $1 WHERE layer_id = $2",
    ] {
        sql(text).bind(new.to_string()).bind(old.to_string()).execute(tx).await?;
    }
    Ok(())
}

/// Everything that lies on this layer, directly or not, lies `by` less deep.
///
/// # Errors
/// Where the store fails.
pub async fn lift(tx: &mut Tx, id: LayerId, by: u32) -> Result<(), StoreError> {
    sql("WITH RECURSIVE above (id) AS (\
             SELECT id FROM layers WHERE parent_id = $1 \
             UNION SELECT layers.id FROM layers JOIN above ON layers.parent_id = above.id) \
         UPDATE layers SET depth = depth - $2 WHERE id IN (SELECT id FROM above)")
    .bind(id.to_string())
    .bind(i64::from(by))
    .execute(tx)
    .await?;
    Ok(())
}
