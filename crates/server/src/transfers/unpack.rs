//! From an image in a layout to layers.

use std::path::PathBuf;
use std::sync::Arc;

use raworc_api::image::TransferProgress;
use raworc_core::ids::LayerId;
use raworc_core::limits::{IMAGE_ENTRIES_MAX, LAYERS_MAX};
use raworc_oci::{Bounds, Image, Layer, Layout};
use raworc_store::layers::{self, Archived, LayerRow};
use raworc_workspace::layers::{adopt, seal, squash};
use raworc_workspace::{FileError, LayerStack};

use super::images::{Tell, layer_of};
use crate::app::Shared;
use crate::error::Failure;
use crate::layers::pins::LayerPin;
use crate::layers::workspace_access;
use crate::sync::blocking;

/// Layers of one chain that are kept apart when an image is taken in: some are laid on them later.
const LAYERS_KEPT: usize = LAYERS_MAX / 2;

/// An image whose layers are here, though no record names them yet.
pub struct UnpackedImage {
    /// What it lies on that was here before.
    pub known: Option<LayerId>,
    /// Its own layers, the lowest first, and what they are as archives.
    pub new: Vec<(LayerRow, Option<Archived>)>,
    /// Bytes and number of all its files.
    pub size: (u64, u64),
    _holds: Vec<LayerPin>,
}

impl UnpackedImage {
    /// Its topmost layer.
    pub fn top(&self) -> Option<LayerId> {
        self.new.last().map(|(row, _)| row.id).or(self.known)
    }
}

/// Unpacks the layers of an image that is in the layout; those that are here already are used again. All of them may have
/// `bytes_max` together, uncompressed.
///
/// # Errors
/// 422 where the image cannot be used.
pub async fn unpack_image(
    app: &Shared,
    layout: &Layout,
    (image, bytes_max): (&Image, u64),
    tell: &Tell,
) -> Result<UnpackedImage, Failure> {
    let mut taken = UnpackedImage { known: None, new: Vec::new(), size: (0, 0), _holds: Vec::new() };
    let mut below: Vec<LayerRow> = Vec::new();
    let mut bytes_left = bytes_max;
    for (place, layer) in image.layers.iter().enumerate() {
        let parent = below.first().map(|row| row.id);
        if taken.new.is_empty()
            && let Some((row, hold)) = known(app, layout, parent, (layer, bytes_left)).await?
        {
            (taken.known, taken.size) = (Some(row.id), (row.bytes, row.files));
            taken._holds.push(hold);
            below.insert(0, row);
            continue;
        }
        if below.len() >= LAYERS_KEPT && !taken.new.is_empty() {
            fold(app, &mut taken, &mut below).await?;
        }
        let id = workspace_access::new_layer();
        taken._holds.push(app.layer_pins.pin([id]));
        let work = Unpack {
            app: app.clone(),
            layout: layout.clone(),
            layer: layer.clone(),
            id,
            below: below.iter().map(|row| row.id).collect(),
            bytes_max: bytes_left,
            what: format!("unpacking layer {} of {}", place + 1, image.layers.len()),
            tell: Arc::clone(tell),
        };
        let unpacked = blocking(move || work.run()).await.map_err(FileError::Io)?;
        if unpacked.is_err() {
            app.garbage_queue.enqueue(taken.new.iter().map(|(row, _)| row.id).chain([id]));
        }
        let (measured, bytes) = unpacked?;
        bytes_left = bytes_left.saturating_sub(bytes);
        let row = lay(app, id, below.first(), measured);
        taken.size = (row.bytes, row.files);
        let blob = serde_json::to_string(&layer.blob).map_err(raworc_store::StoreError::from)?;
        taken.new.push((row, Some(Archived { diff_id: layer.diff_id.to_string(), blob, left_out: 0 })));
        below.insert(0, row);
    }
    Ok(taken)
}

/// The layer on `parent` that is the same, held. Whoever only knows what another's layer is called does not get it: the blob
/// that came along is looked at.
async fn known(
    app: &Shared,
    layout: &Layout,
    parent: Option<LayerId>,
    (layer, bytes_max): (&Layer, u64),
) -> Result<Option<(LayerRow, LayerPin)>, Failure> {
    let diff_id = layer.diff_id.to_string();
    let mut connection = app.store.read().await?;
    let Some(found) = layers::find_same(&mut connection, parent, &diff_id).await? else { return Ok(None) };
    let hold = app.layer_pins.pin([found.id]);
    drop(connection);
    // What was given up between the look and the hold may be gone.
    let mut connection = app.store.read().await?;
    let Some(row) = layers::find(&mut connection, found.id).await? else { return Ok(None) };
    let archived = layers::archived(&mut connection, found.id).await?;
    drop(connection);
    let archived = archived.and_then(|archived| layer_of(&row, &archived.diff_id, &archived.blob));
    // It is the very blob, whose digest was compared when this account brought it in.
    let is_same = archived.is_some_and(|archived| archived.blob.digest == layer.blob.digest);
    if !is_same {
        let (layout, layer) = (layout.clone(), layer.clone());
        blocking(move || layer.verify(&layout, bytes_max)).await.map_err(FileError::Io)??;
    }
    Ok(Some((row, hold)))
}

fn lay(app: &Shared, id: LayerId, below: Option<&LayerRow>, measured: seal::LayerDelta) -> LayerRow {
    let (depth, bytes, files) = below.map_or((0, 0, 0), |below| (below.depth, below.bytes, below.files));
    let disk_bytes = below.map_or(0, |below| below.disk_bytes).saturating_add_signed(measured.disk);
    LayerRow {
        id,
        parent_id: below.map(|below| below.id),
        depth: depth + 1,
        changed_bytes: measured.changed_bytes,
        bytes: bytes.saturating_add_signed(measured.bytes),
        files: files.saturating_add_signed(measured.files),
        entries: measured.entries,
        own_disk_bytes: measured.own_disk,
        disk_bytes,
        disk_is_exact: false,
        created_at: app.now(),
    }
}

/// One layer to unpack.
struct Unpack {
    app: Shared,
    layout: Layout,
    layer: Layer,
    id: LayerId,
    /// What it lies on, the topmost first.
    below: Vec<LayerId>,
    bytes_max: u64,
    what: String,
    tell: Tell,
}

impl Unpack {
    fn run(self) -> Result<(seal::LayerDelta, u64), Failure> {
        let (format, layer_store) = (&self.app.images.format, &self.app.layer_store);
        let io = |error: std::io::Error| Failure::from(FileError::from(error));
        let path = layer_store.create_empty(self.id).map_err(io)?;
        let paths = layer_store.paths(&self.below);
        let root = format.ids.base;
        seal::prepare(&path, paths.first().map(PathBuf::as_path), Some((root, root))).map_err(io)?;
        let bounds = Bounds { bytes: self.bytes_max, entries: IMAGE_ENTRIES_MAX };
        let mut progress = |done_bytes| {
            (self.tell)(TransferProgress { what: self.what.clone(), done_bytes, total_bytes: 0 });
        };
        let unpacked = self.layer.unpack(&self.layout, &path, format, &bounds, &mut progress)?;
        let implied: Vec<PathBuf> = unpacked.implied.into_iter().filter(|path| !path.as_os_str().is_empty()).collect();
        if !implied.is_empty() {
            let below = layer_store.mount_read_only(&LayerStack { layers: self.below, writable: None }).map_err(io)?;
            adopt(&path, &implied, below.root()).map_err(io)?;
        }
        squash::trim(&path, &paths, layer_store.overlay_xattrs()).map_err(io)?;
        layer_store.detect_hard_links(self.id).map_err(io)?;
        seal::sync(&path).map_err(io)?;
        let measured = seal::measure(&path, &paths, layer_store.overlay_xattrs()).map_err(io)?;
        Ok((measured, unpacked.bytes))
    }
}

/// Makes one layer of all new ones: more do not fit into one mount.
async fn fold(app: &Shared, taken: &mut UnpackedImage, below: &mut Vec<LayerRow>) -> Result<(), Failure> {
    let id = workspace_access::new_layer();
    taken._holds.push(app.layer_pins.pin([id]));
    let from: Vec<LayerId> = taken.new.iter().rev().map(|(row, _)| row.id).collect();
    let lower: Vec<LayerId> = below[from.len()..].iter().map(|row| row.id).collect();
    let (layer_store, parts) = (app.layer_store.clone(), from.clone());
    let work = move || -> std::io::Result<seal::LayerDelta> {
        let (into, lower) = (layer_store.create_empty(id)?, layer_store.paths(&lower));
        squash::squash(&layer_store.paths(&parts), &lower, &into, layer_store.overlay_xattrs())?;
        layer_store.detect_hard_links(id)?;
        seal::sync(&into)?;
        seal::measure(&into, &lower, layer_store.overlay_xattrs())
    };
    let measured = blocking(work).await.flatten().map_err(FileError::from);
    app.garbage_queue.enqueue(from.iter().copied().chain([id]));
    below.drain(..from.len());
    let row = lay(app, id, below.first(), measured?);
    taken.new = vec![(row, None)];
    below.insert(0, row);
    Ok(())
}
