//! Between layers here and images in registries and archives.
//!
//! What is on its way lies in `images/`, an OCI image layout. Layers are packed into it to go out, and unpacked from it when
//! they came in; then it has served. What a transfer that failed has left there is taken up by the next one, for a day.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use raworc_api::image::{RegistryCredentials, TransferProgress};
use raworc_api::problem::{Code, Problem};
use raworc_core::ids::LayerId;
use raworc_core::limits::{IMAGE_BYTES_MAX, IMAGE_ENTRIES_MAX, LAYERS_MAX};
use raworc_oci::{Bounds, Descriptor, Digest, Error, Format, Image, Layer, Layout, Options, Reference, Registry};
use raworc_store::layers::{self, Archived, LayerRow};
use raworc_workspace::layers::{adopt, seal, squash};
use raworc_workspace::{FileError, Stack};
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use crate::app::{Shared, blocking};
use crate::credentials::Credentials;
use crate::error::Failure;
use crate::trees::{self, Hold};

/// How long what a transfer left is kept for the next one.
const LEFT_FOR: Duration = Duration::from_secs(24 * 3600);
/// Layers of one chain that are kept apart when an image is taken in: some are laid on them later.
const LAYERS_KEPT: usize = LAYERS_MAX / 2;

/// Is told how a transfer gets on.
pub type Tell = Arc<dyn Fn(TransferProgress) + Send + Sync>;

/// How registries are spoken to.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    /// A file of credentials, as `docker login` and `skopeo login` write them. All accounts use them.
    pub auth_file: Option<PathBuf>,
    /// Hosts, with their ports, that are spoken to without TLS. This machine is in any case.
    pub plain_http: Vec<String>,
    /// A file of certificates (PEM) to trust besides the machine's own.
    pub certificates: Option<PathBuf>,
}

/// What is on its way between layers and images.
pub struct Images {
    layout: Layout,
    format: Format,
    registries: Registries,
    /// Shared by transfers; alone, blobs may be removed.
    passing: Arc<RwLock<()>>,
}

/// An image whose layers are here, though no record names them yet.
pub struct TakenIn {
    /// What it lies on that was here before.
    pub known: Option<LayerId>,
    /// Its own layers, the lowest first, and what they are as archives.
    pub new: Vec<(LayerRow, Option<Archived>)>,
    /// Bytes and number of all its files.
    pub size: (u64, u64),
    _holds: Vec<Hold>,
}

impl TakenIn {
    /// Its topmost layer.
    pub fn top(&self) -> Option<LayerId> {
        self.new.last().map(|(row, _)| row.id).or(self.known)
    }
}

impl Images {
    /// In `data_dir`.
    ///
    /// # Errors
    /// Where the layout cannot be made, or the file of credentials cannot be read.
    pub fn open(data_dir: &Path, format: Format, registries: Registries) -> Result<Self, Failure> {
        let layout = Layout::open(&data_dir.join("images"))?;
        // What is wrong with it is said at the start, and not by the first push.
        if let Some(file) = &registries.auth_file {
            Credentials::read(file)?;
        }
        Ok(Self { layout, format, registries, passing: Arc::default() })
    }

    /// Where blobs are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A registry, as the caller or, where they say nothing, as the server's file says.
    ///
    /// # Errors
    /// Where a file that the server was told of cannot be read.
    pub async fn registry(
        &self,
        reference: &Reference,
        credentials: Option<RegistryCredentials>,
    ) -> Result<Registry, Failure> {
        let (registries, reference) = (self.registries.clone(), reference.clone());
        let prepare = move || -> Result<Registry, Failure> {
            let credentials = match (credentials, &registries.auth_file) {
                (Some(given), _) => Some((given.username, given.password)),
                (None, Some(file)) => Credentials::read(file)?.of(reference.host()),
                (None, None) => None,
            };
            let certificates = registries.certificates.as_ref().map(std::fs::read).transpose();
            let certificates = certificates.map_err(|error| {
                tracing::error!(%error, "the file of certificates cannot be read");
                Failure::new(Code::Internal, "the server's file of certificates cannot be read; its log says why")
            })?;
            let plain = registries.plain_http.iter().any(|host| host == reference.host());
            let options = Options {
                plain_http: plain.then_some(true),
                certificates,
                bytes_max: IMAGE_BYTES_MAX,
                ..Options::default()
            };
            Ok(Registry::new(reference, credentials, options)?)
        };
        blocking(prepare).await.map_err(FileError::Io)?
    }

    /// To be held while anything is on its way.
    pub async fn passing(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.passing).read_owned().await
    }

    /// Removes an image that has served, unless something else is on its way that may need a part of it.
    pub fn served(&self, manifest: &Digest) {
        let Ok(_alone) = self.passing.try_write() else { return };
        let remove = || self.layout.reachable(manifest)?.iter().try_for_each(|blob| self.layout.delete(blob).map(drop));
        if let Err(error) = remove() {
            tracing::warn!(%error, %manifest, "an image that has served could not be removed; a sweep will");
        }
    }

    /// Bytes of what is on its way, or was left there.
    ///
    /// # Errors
    /// Where it cannot be looked through.
    pub fn bytes(&self) -> Result<u64, Error> {
        let mut bytes = 0_u64;
        for blob in self.layout.blobs()? {
            bytes = bytes.saturating_add(self.layout.size(&blob)?.unwrap_or(0));
        }
        Ok(bytes)
    }

    /// Removes what transfers have left that nobody took up; everything where `at_once`. Bytes that are free again.
    ///
    /// # Errors
    /// Where it cannot be looked through.
    pub fn collect(&self, at_once: bool) -> Result<u64, Error> {
        let Ok(_alone) = self.passing.try_write() else { return Ok(0) };
        let now = SystemTime::now();
        let is_fresh = |digest: &Digest| {
            let modified = std::fs::metadata(self.layout.path(digest)).and_then(|found| found.modified());
            modified.is_ok_and(|at| now.duration_since(at).unwrap_or_default() < LEFT_FOR)
        };
        let keep: BTreeSet<Digest> =
            self.layout.blobs()?.into_iter().filter(|blob| !at_once && is_fresh(blob)).collect();
        Ok(self.layout.collect(&keep)?.bytes)
    }
}

/// Unpacks the layers of an image that is in the layout; those that are here already are used again.
///
/// # Errors
/// 422 where the image cannot be used.
pub async fn take_in(app: &Shared, image: &Image, tell: &Tell) -> Result<TakenIn, Failure> {
    let mut taken = TakenIn { known: None, new: Vec::new(), size: (0, 0), _holds: Vec::new() };
    let mut below: Vec<LayerRow> = Vec::new();
    let mut bytes_left = IMAGE_BYTES_MAX;
    for (place, layer) in image.layers.iter().enumerate() {
        let parent = below.first().map(|row| row.id);
        if taken.new.is_empty()
            && let Some((row, hold)) = known(app, parent, layer).await?
        {
            (taken.known, taken.size) = (Some(row.id), (row.bytes, row.files));
            taken._holds.push(hold);
            below.insert(0, row);
            continue;
        }
        if below.len() >= LAYERS_KEPT && !taken.new.is_empty() {
            fold(app, &mut taken, &mut below).await?;
        }
        let id = trees::new_layer();
        taken._holds.push(app.trees.hold([id]));
        let work = Unpack {
            app: app.clone(),
            layer: layer.clone(),
            id,
            below: below.iter().map(|row| row.id).collect(),
            bytes_max: bytes_left,
            what: format!("unpacking layer {} of {}", place + 1, image.layers.len()),
            tell: Arc::clone(tell),
        };
        let unpacked = blocking(move || work.run()).await.map_err(FileError::Io)?;
        if unpacked.is_err() {
            app.trees.waste(taken.new.iter().map(|(row, _)| row.id).chain([id]));
        }
        let (measured, bytes) = unpacked?;
        bytes_left = bytes_left.saturating_sub(bytes);
        let row = lay(app, id, below.first(), measured);
        taken.size = (row.bytes, row.files);
        let blob = serde_json::to_string(&layer.blob).map_err(raworc_store::StoreError::from)?;
        taken.new.push((row, Some(Archived { diff_id: layer.diff_id.to_string(), blob })));
        below.insert(0, row);
    }
    Ok(taken)
}

/// The layer on `parent` that is the same, held.
async fn known(app: &Shared, parent: Option<LayerId>, layer: &Layer) -> Result<Option<(LayerRow, Hold)>, Failure> {
    let diff_id = layer.diff_id.to_string();
    let mut connection = app.store.read().await?;
    let Some(found) = layers::find_same(&mut connection, parent, &diff_id).await? else { return Ok(None) };
    let hold = app.trees.hold([found.id]);
    drop(connection);
    // What was given up between the look and the hold may be gone.
    let mut connection = app.store.read().await?;
    Ok(layers::find(&mut connection, found.id).await?.map(|row| (row, hold)))
}

fn lay(app: &Shared, id: LayerId, below: Option<&LayerRow>, measured: seal::Change) -> LayerRow {
    let (depth, bytes, files) = below.map_or((0, 0, 0), |below| (below.depth, below.bytes, below.files));
    LayerRow {
        id,
        parent_id: below.map(|below| below.id),
        depth: depth + 1,
        changed_bytes: measured.changed_bytes,
        bytes: bytes.saturating_add_signed(measured.bytes),
        files: files.saturating_add_signed(measured.files),
        entries: measured.entries,
        created_at: app.now(),
    }
}

/// One layer to unpack.
struct Unpack {
    app: Shared,
    layer: Layer,
    id: LayerId,
    /// What it lies on, the topmost first.
    below: Vec<LayerId>,
    bytes_max: u64,
    what: String,
    tell: Tell,
}

impl Unpack {
    fn run(self) -> Result<(seal::Change, u64), Failure> {
        let (images, shelf) = (&self.app.images, &self.app.trees.shelf);
        let io = |error: std::io::Error| Failure::from(FileError::from(error));
        let path = shelf.begin(self.id).map_err(io)?;
        let paths = shelf.paths(&self.below);
        let root = images.format.ids.base;
        seal::prepare(&path, paths.first().map(PathBuf::as_path), Some((root, root))).map_err(io)?;
        let bounds = Bounds { bytes: self.bytes_max, entries: IMAGE_ENTRIES_MAX };
        let mut progress = |done_bytes| {
            (self.tell)(TransferProgress { what: self.what.clone(), done_bytes, total_bytes: 0 });
        };
        let unpacked = self.layer.unpack(&images.layout, &path, &images.format, &bounds, &mut progress)?;
        let implied: Vec<PathBuf> = unpacked.implied.into_iter().filter(|path| !path.as_os_str().is_empty()).collect();
        if !implied.is_empty() {
            let below = shelf.view(&Stack { layers: self.below, writable: None }).map_err(io)?;
            adopt(&path, &implied, below.root()).map_err(io)?;
        }
        seal::sync(&path).map_err(io)?;
        let measured = seal::measure(&path, &paths, shelf.marks()).map_err(io)?;
        Ok((measured, unpacked.bytes))
    }
}

/// Makes one layer of all new ones: more do not fit into one mount.
async fn fold(app: &Shared, taken: &mut TakenIn, below: &mut Vec<LayerRow>) -> Result<(), Failure> {
    let id = trees::new_layer();
    taken._holds.push(app.trees.hold([id]));
    let from: Vec<LayerId> = taken.new.iter().rev().map(|(row, _)| row.id).collect();
    let lower: Vec<LayerId> = below[from.len()..].iter().map(|row| row.id).collect();
    let (shelf, parts) = (app.trees.shelf.clone(), from.clone());
    let work = move || -> std::io::Result<seal::Change> {
        let (into, lower) = (shelf.begin(id)?, shelf.paths(&lower));
        squash::squash(&shelf.paths(&parts), lower.is_empty(), &into, shelf.marks())?;
        seal::sync(&into)?;
        seal::measure(&into, &lower, shelf.marks())
    };
    let measured = blocking(work).await.flatten().map_err(FileError::from);
    app.trees.waste(from.iter().copied().chain([id]));
    below.drain(..from.len());
    let row = lay(app, id, below.first(), measured?);
    taken.new = vec![(row, None)];
    below.insert(0, row);
    Ok(())
}

/// What the layers of a chain (the topmost first) are in an image, the lowest first. What neither the layout nor `registry`
/// has is packed.
///
/// # Errors
/// Where a layer cannot be read.
pub async fn pack(
    app: &Shared,
    chain: &[LayerRow],
    registry: Option<&Registry>,
    tell: &Tell,
) -> Result<Vec<Layer>, Failure> {
    let mut packed = Vec::new();
    for (place, row) in chain.iter().rev().enumerate() {
        let known = {
            let mut connection = app.store.read().await?;
            layers::archived(&mut connection, row.id).await?
        };
        let known = known.and_then(|known| layer_of(row, &known.diff_id, &known.blob));
        if let Some(known) = known
            && is_there(app, registry, &known.blob).await?
        {
            packed.push(known);
            continue;
        }
        tell(TransferProgress {
            what: format!("packing layer {} of {}", place + 1, chain.len()),
            done_bytes: 0,
            total_bytes: row.changed_bytes,
        });
        let (images, path) = (app.clone(), app.trees.shelf.path(row.id));
        let work = move || Layer::pack(&path, &images.images.format, &images.images.layout);
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

fn layer_of(row: &LayerRow, diff_id: &str, blob: &str) -> Option<Layer> {
    Some(described(row, serde_json::from_str(blob).ok()?, diff_id.parse().ok()?))
}

fn described(row: &LayerRow, blob: Descriptor, diff_id: Digest) -> Layer {
    let created = Some(row.created_at.to_timestamp().to_string());
    Layer { blob, diff_id, created_by: "raworc".to_owned(), created }
}

async fn is_there(app: &Shared, registry: Option<&Registry>, blob: &Descriptor) -> Result<bool, Failure> {
    if app.images.layout.size(&blob.digest)? == Some(blob.size) {
        return Ok(true);
    }
    match registry {
        Some(registry) => Ok(registry.has_blob(&blob.digest).await?),
        None => Ok(false),
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::BadReference(_) => Problem::field("reference", text).into(),
            Error::BadArchive(_) | Error::Blocked(_) | Error::TooLarge(_) | Error::BadImage(_) => {
                Failure::new(Code::ImageUnusable, text)
            }
            Error::Damaged { .. } | Error::Missing { .. } | Error::Changed(_) => {
                Failure::new(Code::ImageUnusable, text)
            }
            Error::Unauthorized(_) => Failure::new(Code::RegistryRefused, text),
            Error::NotFound(_) => Failure::new(Code::RegistryNotFound, text),
            Error::Refused { status, .. } if status < 500 => Failure::new(Code::RegistryRefused, text),
            Error::Refused { .. } | Error::Away { .. } => Failure::new(Code::RegistryUnavailable, text),
            Error::Io(error) => FileError::from(error).into(),
        }
    }
}
