//! From layers to blobs of an image.

use std::io::ErrorKind;

use raworc_api::image::TransferProgress;
use raworc_oci::{Descriptor, Error, Layer, Layout, Registry};
use raworc_store::layers::{self, Archived, LayerRow};
use raworc_workspace::FileError;

use super::images::{AccountTransfer, Tell, described, layer_of};
use crate::app::Shared;
use crate::error::Failure;
use crate::sync::blocking;

/// What the layers of a chain (the topmost first) are in an image, the lowest first, and how much in them has no form there. What
/// neither the layout nor `registry` has is packed.
///
/// # Errors
/// Where a layer cannot be read.
pub async fn pack(
    app: &Shared,
    passage: &AccountTransfer,
    chain: &[LayerRow],
    registry: Option<&Registry>,
    tell: &Tell,
) -> Result<(Vec<Layer>, u64), Failure> {
    let (layout, mut packed, mut left_out) = (passage.layout(), Vec::new(), 0_u64);
    for (place, row) in chain.iter().rev().enumerate() {
        let known = {
            let mut connection = app.store.read().await?;
            layers::archived(&mut connection, row.id).await?
        };
        let known = known.and_then(|known| Some((layer_of(row, &known.diff_id, &known.blob)?, known.left_out)));
        if let Some((known, less)) = known
            && is_there(layout, registry, &known.blob).await?
        {
            packed.push(known);
            left_out = left_out.saturating_add(less);
            continue;
        }
        tell(TransferProgress {
            what: format!("packing layer {} of {}", place + 1, chain.len()),
            done_bytes: 0,
            total_bytes: row.changed_bytes,
        });
        let (layout, format, path) = (layout.clone(), app.images.format, app.layer_store.path(row.id));
        let held = (passage.way(), app.layer_pins.pin([row.id]));
        let work = move || {
            let _held = held;
            Layer::pack(&path, &format, &layout)
        };
        let (layer, done) = match blocking(work).await.map_err(FileError::Io)? {
            Err(Error::Io(error)) if error.kind() == ErrorKind::NotFound && !app.layer_store.path(row.id).is_dir() => {
                return Err(FileError::LayerMissing(row.id).into());
            }
            outcome => outcome?,
        };
        left_out = left_out.saturating_add(done.skipped.count);
        if done.skipped.count > 0 {
            tracing::info!(layer = %row.id, skipped = ?done.skipped, "not everything in a layer has a form in an archive");
        }
        let blob = serde_json::to_string(&layer.blob).map_err(raworc_store::StoreError::from)?;
        let (id, archived) =
            (row.id, Archived { diff_id: layer.diff_id.to_string(), blob, left_out: done.skipped.count });
        let note = app.store.write(move |tx| Box::pin(async move { layers::set_archived(tx, id, &archived).await }));
        note.await?;
        packed.push(described(row, layer.blob, layer.diff_id));
    }
    Ok((packed, left_out))
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
