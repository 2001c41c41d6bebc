//! From layers to blobs of an image.

use raworc_api::image::TransferProgress;
use raworc_oci::{Descriptor, Layer, Layout, Registry};
use raworc_store::layers::{self, Archived, LayerRow};
use raworc_workspace::FileError;

use super::{Passage, Tell, described, layer_of};
use crate::app::{Shared, blocking};
use crate::error::Failure;

/// What the layers of a chain (the topmost first) are in an image, the lowest first. What neither the layout nor `registry`
/// has is packed.
///
/// # Errors
/// Where a layer cannot be read.
pub async fn pack(
    app: &Shared,
    passage: &Passage,
    chain: &[LayerRow],
    registry: Option<&Registry>,
    tell: &Tell,
) -> Result<Vec<Layer>, Failure> {
    let (layout, mut packed) = (passage.layout(), Vec::new());
    for (place, row) in chain.iter().rev().enumerate() {
        let known = {
            let mut connection = app.store.read().await?;
            layers::archived(&mut connection, row.id).await?
        };
        let known = known.and_then(|known| layer_of(row, &known.diff_id, &known.blob));
        if let Some(known) = known
            && is_there(layout, registry, &known.blob).await?
        {
            packed.push(known);
            continue;
        }
        tell(TransferProgress {
            what: format!("packing layer {} of {}", place + 1, chain.len()),
            done_bytes: 0,
            total_bytes: row.changed_bytes,
        });
        let (layout, format, path) = (layout.clone(), app.images.format, app.trees.shelf.path(row.id));
        let held = (passage.way(), app.trees.hold([row.id]));
        let work = move || {
            let _held = held;
            Layer::pack(&path, &format, &layout)
        };
        let (layer, done) = blocking(work).await.map_err(FileError::Io)??;
        if done.skipped.count > 0 {
            tracing::info!(layer = %row.id, skipped = ?done.skipped, "not everything in a layer has a form in an archive");
        }
        let blob = serde_json::to_string(&layer.blob).map_err(raworc_store::StoreError::from)?;
        let (id, archived) = (row.id, Archived { diff_id: layer.diff_id.to_string(), blob });
        let note = app.store.write(move |transaction| {
            Box::pin(async move { layers::set_archived(transaction.connection(), id, &archived).await })
        });
        note.await?;
        packed.push(described(row, layer.blob, layer.diff_id));
    }
    Ok(packed)
}

async fn is_there(layout: &Layout, registry: Option<&Registry>, blob: &Descriptor) -> Result<bool, Failure> {
    if layout.size(&blob.digest)? == Some(blob.size) {
        return Ok(true);
    }
    match registry {
        Some(registry) => Ok(registry.has_blob(&blob.digest).await?),
        None => Ok(false),
    }
}
