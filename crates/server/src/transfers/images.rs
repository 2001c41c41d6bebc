//! Between layers here and images in registries and archives.
//!
//! What is on its way lies in `images/ACCOUNT`, an OCI image layout for each account: what one brought in or packed is not
//! taken up by another, who may know no more of it than its digest. Layers are packed into it to go out, and unpacked from it
//! when they came in; then it has served. What a transfer that failed has left there is taken up by the next one, for a day.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use raworc_api::image::TransferProgress;
use raworc_api::problem::{Code, Problem};
use raworc_core::ids::AccountId;
use raworc_core::limits::IMAGE_BYTES_MAX;
use raworc_core::permissions::{Actor, Role};
use raworc_oci::{Descriptor, Digest, Error, Format, Layer, Layout};
use raworc_store::layers::LayerRow;
use raworc_store::{Store, images};
use raworc_workspace::FileError;
use tokio::sync::{OwnedRwLockReadGuard, OwnedSemaphorePermit, RwLock};

use crate::error::Failure;
use crate::sync::blocking;
use crate::sync::keyed_locks::{KeyedGuard, KeyedMutex, KeyedSemaphore};
use crate::sync::lock;

/// How long what a transfer left is kept for the next one.
const LEFT_FOR: Duration = Duration::from_secs(24 * 3600);

/// Transfers of one account at the same time: some hold a thread, and each what it has of the image at hand.
const TRANSFERS_MAX: usize = 8;

/// Is told how a transfer gets on.
pub type Tell = Arc<dyn Fn(TransferProgress) + Send + Sync>;

/// What is on its way between layers and images.
pub struct Images {
    directory: PathBuf,
    /// What layers look like as images, and the other way round.
    pub format: Format,
    /// Bytes that the images of one member may have together.
    account_bytes_max: u64,
    /// For each account, shared by its transfers; alone, blobs may be removed.
    passing: Mutex<HashMap<AccountId, Arc<RwLock<()>>>>,
    places: KeyedSemaphore<AccountId>,
    /// Pulls of one reference by one account wait for each other, so they share one download.
    pulls: KeyedMutex<(AccountId, String)>,
}

/// A transfer under way: nothing is removed from its account's layout.
pub struct AccountTransfer {
    layout: Layout,
    passing: Arc<RwLock<()>>,
    way: Way,
}

/// Holds a transfer's read lock and its permit until all of its work has ended, also after its client has gone.
#[derive(Clone)]
pub struct Way {
    _guard: Arc<OwnedRwLockReadGuard<()>>,
    _place: Arc<OwnedSemaphorePermit>,
}

impl AccountTransfer {
    /// Where blobs are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A clone for work that outlives the request.
    pub fn way(&self) -> Way {
        self.way.clone()
    }

    /// It is over, and what it brought here has served: it is removed, unless another transfer of the account may need a part of
    /// it. Blocks.
    pub fn over(self, manifests: impl IntoIterator<Item = Digest>) {
        let Self { layout, passing, way } = self;
        drop(way);
        let Ok(_alone) = passing.try_write() else { return };
        for manifest in manifests.into_iter().collect::<BTreeSet<_>>() {
            let remove = || layout.reachable(&manifest)?.iter().try_for_each(|blob| layout.delete(blob).map(drop));
            if let Err(error) = remove() {
                tracing::warn!(%error, %manifest, "an image that has served could not be removed; a sweep will");
            }
        }
    }
}

impl Images {
    /// In `data_dir`. `account_bytes_max` bounds the images of one member together; without it, half of the disk does.
    ///
    /// # Errors
    /// Where the directory cannot be made.
    pub fn open(data_dir: &Path, format: Format, account_bytes_max: Option<u64>) -> Result<Self, Failure> {
        let directory = data_dir.join("images");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(FileError::from)?;
        let disk = rustix::fs::statvfs(&directory).map_err(|error| FileError::from(io::Error::from(error)))?;
        let half_of_the_disk = disk.f_blocks.saturating_mul(disk.f_frsize) / 2;
        Ok(Self {
            directory,
            format,
            account_bytes_max: account_bytes_max.unwrap_or(half_of_the_disk),
            passing: Mutex::default(),
            places: KeyedSemaphore::new(TRANSFERS_MAX),
            pulls: KeyedMutex::default(),
        })
    }

    /// Bytes that one image more of an account may have. Administrators' images are for everyone, and bounded by the disk.
    ///
    /// # Errors
    /// 413 where there is no room for any.
    pub async fn room(&self, store: &Store, actor: &Actor) -> Result<u64, Failure> {
        if actor.role == Role::Admin {
            return Ok(IMAGE_BYTES_MAX);
        }
        let mut connection = store.read().await?;
        let taken = images::bytes_of(&mut connection, actor.account).await?;
        match self.account_bytes_max.checked_sub(taken) {
            None | Some(0) => Err(Failure::new(
                Code::TooLarge,
                format!(
                    "the images of {} have {taken} bytes, and {} are allowed; remove some with `raworc image delete`",
                    actor.name, self.account_bytes_max
                ),
            )),
            Some(room) => Ok(room.min(IMAGE_BYTES_MAX)),
        }
    }

    /// To be held while anything of an account is on its way. Where enough is already, it is waited for.
    ///
    /// # Errors
    /// Where its layout cannot be made.
    pub async fn passing(&self, account: AccountId) -> Result<AccountTransfer, Failure> {
        let place = self.places.of(account).acquire_owned().await;
        let place = place.map_err(|error| FileError::Io(std::io::Error::other(error)))?;
        let passing = self.alone(account);
        let guard = Arc::clone(&passing).read_owned().await;
        let path = self.path(account);
        let layout = blocking(move || Layout::open(&path)).await.map_err(FileError::Io)??;
        let way = Way { _guard: Arc::new(guard), _place: Arc::new(place) };
        Ok(AccountTransfer { layout, passing, way })
    }

    /// Waits for whoever brings in the same for the same account.
    pub async fn turn(&self, account: AccountId, reference: String) -> KeyedGuard<(AccountId, String)> {
        self.pulls.lock((account, reference)).await
    }

    fn alone(&self, account: AccountId) -> Arc<RwLock<()>> {
        Arc::clone(lock(&self.passing).entry(account).or_default())
    }

    fn path(&self, account: AccountId) -> PathBuf {
        self.directory.join(account.to_string())
    }

    /// Accounts that have a layout.
    fn accounts(&self) -> Result<Vec<AccountId>, Error> {
        let names = fs::read_dir(&self.directory)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }

    /// Bytes of what is on its way, or was left there.
    ///
    /// # Errors
    /// Where it cannot be looked through.
    pub fn bytes(&self) -> Result<u64, Error> {
        let mut bytes = 0_u64;
        for account in self.accounts()? {
            let layout = Layout::open(&self.path(account))?;
            for blob in layout.blobs()? {
                bytes = bytes.saturating_add(layout.size(&blob)?.unwrap_or(0));
            }
        }
        Ok(bytes)
    }

    /// Removes what transfers have left that nobody took up; everything where `at_once`, but for accounts with one under way.
    /// Bytes that are free again.
    ///
    /// # Errors
    /// Where it cannot be looked through.
    pub fn collect(&self, at_once: bool) -> Result<u64, Error> {
        let now = SystemTime::now();
        let mut bytes = 0_u64;
        for account in self.accounts()? {
            let alone = self.alone(account);
            let Ok(_alone) = alone.try_write() else { continue };
            let layout = Layout::open(&self.path(account))?;
            let is_fresh = |digest: &Digest| {
                let modified = fs::metadata(layout.path(digest)).and_then(|found| found.modified());
                modified.is_ok_and(|at| now.duration_since(at).unwrap_or_default() < LEFT_FOR)
            };
            let keep: BTreeSet<Digest> =
                layout.blobs()?.into_iter().filter(|blob| !at_once && is_fresh(blob)).collect();
            bytes = bytes.saturating_add(layout.collect(&keep)?.bytes);
            if keep.is_empty() {
                fs::remove_dir_all(self.path(account))?;
            }
        }
        Ok(bytes)
    }
}

/// The layer of an image that a row is, where what is remembered of it is sound.
pub fn layer_of(row: &LayerRow, diff_id: &str, blob: &str) -> Option<Layer> {
    Some(described(row, serde_json::from_str(blob).ok()?, diff_id.parse().ok()?))
}

/// The same, of what is known of its archive.
pub fn described(row: &LayerRow, blob: Descriptor, diff_id: Digest) -> Layer {
    let created = Some(row.created_at.to_timestamp().to_string());
    Layer { blob, diff_id, created_by: "raworc".to_owned(), created }
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
            Error::Private(_) => Failure::new(Code::RegistryNotAllowed, text),
            Error::Unauthorized(_) => Failure::new(Code::RegistryRefused, text),
            Error::NotFound(_) => Failure::new(Code::RegistryNotFound, text),
            Error::Refused { status, .. } if status < 500 => Failure::new(Code::RegistryRefused, text),
            Error::Refused { .. } | Error::Unreachable { .. } => Failure::new(Code::RegistryUnavailable, text),
            Error::Io(error) => FileError::from(error).into(),
        }
    }
}
