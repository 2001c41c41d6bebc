//! OCI image layouts (OCI image specification, "Image Layout"): `oci-layout`, `index.json`, `blobs/sha256/HEX`.
//!
//! A blob is written to `uploads/`, flushed and renamed, so a crash leaves no incomplete blob. A writer locks its
//! file (`flock`), so that the collector does not remove it.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

use crate::digest::Digesting;
use crate::free_space::FreeSpaceGuard;
use crate::image::{Descriptor, Document, canonical};
use crate::{Digest, Error};

/// The annotation that names a manifest in `index.json`.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Maximum size of a manifest, index or config, in bytes.
pub const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// Maximum size of `index.json`, in bytes.
const INDEX_BYTES_MAX: u64 = 64 << 20;
/// Bytes per read.
const BUFFER_BYTES: usize = 64 << 10;
/// Counter for unique names of uploads within the process.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A directory of blobs with tags.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

/// Statistics of a collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Number of removed blobs and stale uploads.
    pub removed: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Layout {
    /// Opens the layout at `root`, and creates it if missing.
    ///
    /// # Errors
    /// [`Error::BadImage`] if it has another version, or if it cannot be created.
    pub fn open(root: &Path) -> Result<Self, Error> {
        for name in ["blobs/sha256", "uploads"] {
            fs::create_dir_all(root.join(name))?;
        }
        File::open(root.join("blobs"))?.sync_all()?;
        // Without the lock, a second process could overwrite the index of the first.
        let lock = File::open(root.join("uploads"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let layout = Self { root: root.to_owned() };
        match fs::read(root.join("oci-layout")) {
            Ok(bytes) => {
                let header: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                if header["imageLayoutVersion"] != "1.0.0" {
                    return Err(Error::BadImage("the layout is of a version other than 1.0.0".into()));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !root.join("index.json").exists() {
                    layout.replace(
                        "index.json",
                        br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#,
                    )?;
                }
                // Written last, because it marks the layout as complete.
                layout.replace("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(layout)
    }

    /// The path of a blob, which may not exist.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Starts to write a blob.
    ///
    /// # Errors
    /// If the file cannot be created.
    pub fn writer(&self) -> Result<BlobWriter, Error> {
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = self.root.join("uploads").join(format!(
                "{}-{number}-{:08x}",
                std::process::id(),
                rand::random::<u32>()
            ));
            let file = match OpenOptions::new().write(true).create_new(true).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                outcome => outcome?,
            };
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            // A collector may have removed it before it was locked.
            if path.exists() {
                let file = Digesting::new(file);
                let free_space = FreeSpaceGuard::of(&self.root);
                return Ok(BlobWriter { layout: self.clone(), path, file: Some(file), free_space });
            }
        }
    }

    /// Stores up to `bytes_max` bytes of `reader`, and returns digest and size. With `expected`, the digest must
    /// match.
    ///
    /// # Errors
    /// [`Error::TooLarge`], or [`Error::Damaged`] for another digest; then nothing is stored.
    pub fn put(&self, reader: impl Read, bytes_max: u64, expected: Option<&Digest>) -> Result<(Digest, u64), Error> {
        let mut writer = self.writer()?;
        let mut limited = reader.take(bytes_max.saturating_add(1));
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = match limited.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::from_io(error)),
            };
            writer.write_all(&buffer[..count])?;
            if writer.bytes() > bytes_max {
                return Err(Error::TooLarge("a blob".into()));
            }
        }
        writer.commit(expected)
    }

    /// Opens a blob. Its digest is verified at the end of reading.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn get(&self, digest: &Digest) -> Result<Blob, Error> {
        match File::open(self.path(digest)) {
            Ok(file) => {
                let size = file.metadata()?.len();
                Ok(Blob { inner: Some(Digesting::new(file)), digest: *digest, size })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Missing { digest: *digest }),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads a whole manifest or config, at most 4 MiB.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Damaged`], [`Error::TooLarge`].
    pub fn document(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let blob = self.get(digest)?;
        if blob.size > DOCUMENT_BYTES_MAX {
            return Err(Error::TooLarge(digest.to_string()));
        }
        let mut bytes = Vec::new();
        blob.take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(Error::from_io)?;
        Ok(bytes)
    }

    /// The size of a blob in bytes, if it exists. Its content is not verified.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        match fs::metadata(self.path(digest)) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a blob. Returns false if it does not exist.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn delete(&self, digest: &Digest) -> Result<bool, Error> {
        match fs::remove_file(self.path(digest)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The digests of all blobs.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn blobs(&self) -> Result<BTreeSet<Digest>, Error> {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(self.root.join("blobs/sha256"))? {
            // Other names are not ours.
            found.extend(format!("sha256:{}", entry?.file_name().to_string_lossy()).parse::<Digest>());
        }
        Ok(found)
    }

    /// Tags a manifest or index in `index.json`. A tag moves from any other manifest.
    ///
    /// # Errors
    /// [`Error::Missing`] if the manifest does not exist.
    pub fn tag(&self, name: &str, manifest: &Descriptor) -> Result<(), Error> {
        if self.size(&manifest.digest)?.is_none() {
            return Err(Error::Missing { digest: manifest.digest });
        }
        let mut manifest = manifest.clone();
        manifest.annotations.insert(REF_NAME.into(), name.into());
        let entry = serde_json::to_value(&manifest).map_err(|error| Error::BadImage(error.to_string()))?;
        self.change_index(|manifests| {
            manifests.retain(|known| name_of(known) != Some(name));
            manifests.push(entry);
        })
    }

    /// Removes a tag. The manifest stays until it is collected.
    ///
    /// # Errors
    /// If `index.json` cannot be read or written.
    pub fn untag(&self, name: &str) -> Result<(), Error> {
        self.change_index(|manifests| manifests.retain(|known| name_of(known) != Some(name)))
    }

    /// The manifest with this tag.
    ///
    /// # Errors
    /// If `index.json` cannot be read.
    pub fn find(&self, name: &str) -> Result<Option<Descriptor>, Error> {
        Ok(self.list()?.into_iter().find(|(known, _)| known.as_deref() == Some(name)).map(|(_, descriptor)| descriptor))
    }

    /// Everything in `index.json`, with tags if there are any.
    ///
    /// # Errors
    /// [`Error::BadImage`] if `index.json` is invalid.
    pub fn list(&self) -> Result<Vec<(Option<String>, Descriptor)>, Error> {
        let index = self.index()?;
        let manifests = index["manifests"].as_array().map(Vec::as_slice).unwrap_or_default();
        manifests
            .iter()
            .map(|entry| {
                let descriptor: Descriptor = serde_json::from_value(entry.clone())
                    .map_err(|error| Error::BadImage(format!("index.json: {error}")))?;
                Ok((name_of(entry).map(str::to_owned), descriptor))
            })
            .collect()
    }

    /// The digests of `manifest` and everything it refers to that exists here; an index usually lacks the images of
    /// other machines. To be kept by [`Layout::collect`].
    ///
    /// # Errors
    /// [`Error::Missing`] if the manifest itself does not exist; [`Error::Damaged`], [`Error::BadImage`].
    pub fn reachable(&self, manifest: &Digest) -> Result<BTreeSet<Digest>, Error> {
        let mut found = BTreeSet::from([*manifest]);
        let mut left = vec![*manifest];
        while let Some(digest) = left.pop() {
            match Document::parse(&self.document(&digest)?)? {
                Document::Manifest { config, layers, .. } => {
                    found.extend(layers.iter().chain([&config]).map(|blob| blob.digest));
                }
                Document::Index(entries) => {
                    for entry in entries {
                        if self.size(&entry.digest)?.is_some() && found.insert(entry.digest) {
                            left.push(entry.digest);
                        }
                    }
                }
            }
        }
        Ok(found)
    }

    /// Removes all blobs but those in `keep`, and stale uploads. Uploads in progress stay. A committed blob is no
    /// longer protected, so those who commit and collect at the same time must agree on `keep`.
    ///
    /// # Errors
    /// If a directory cannot be read or a file cannot be removed.
    pub fn collect(&self, keep: &BTreeSet<Digest>) -> Result<Collected, Error> {
        let mut collected = Collected::default();
        for digest in self.blobs()?.difference(keep) {
            let bytes = self.size(digest)?.unwrap_or(0);
            if self.delete(digest)? {
                collected.removed += 1;
                collected.bytes += bytes;
            }
        }
        for entry in fs::read_dir(self.root.join("uploads"))? {
            let path = entry?.path();
            let file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                outcome => outcome?,
            };
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                collected.removed += 1;
                collected.bytes += file.metadata()?.len();
                remove_if_there(&path)?;
            }
        }
        Ok(collected)
    }

    fn index(&self) -> Result<Value, Error> {
        let mut bytes = Vec::new();
        File::open(self.root.join("index.json"))?.take(INDEX_BYTES_MAX).read_to_end(&mut bytes)?;
        serde_json::from_slice(&bytes).map_err(|error| Error::BadImage(format!("index.json: {error}")))
    }

    fn change_index(&self, change: impl FnOnce(&mut Vec<Value>)) -> Result<(), Error> {
        // Serializes changes. The lock is on a file that is never replaced.
        let lock = File::open(self.root.join("oci-layout"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let mut index = self.index()?;
        let broken = || Error::BadImage("index.json has no list of manifests".into());
        change(index.get_mut("manifests").and_then(Value::as_array_mut).ok_or_else(broken)?);
        self.replace("index.json", &canonical(&index))
    }

    fn replace(&self, name: &str, content: &[u8]) -> Result<(), Error> {
        let mut writer = self.writer()?;
        writer.write_all(content)?;
        writer.place(&self.root.join(name), &self.root)
    }
}

fn name_of(entry: &Value) -> Option<&str> {
    entry.get("annotations")?.get(REF_NAME)?.as_str()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A blob that is being written; removed on drop unless committed.
pub struct BlobWriter {
    layout: Layout,
    path: PathBuf,
    file: Option<Digesting<File>>,
    free_space: FreeSpaceGuard,
}

impl BlobWriter {
    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.file.as_ref().map_or(0, Digesting::passed)
    }

    /// Moves the blob into place and flushes it. With `expected`, the digest must match.
    ///
    /// # Errors
    /// [`Error::Damaged`] for another digest.
    pub fn commit(mut self, expected: Option<&Digest>) -> Result<(Digest, u64), Error> {
        let file = self.file.take().ok_or_else(|| io::Error::other("written already"))?;
        let (file, digest, bytes) = file.finish();
        if let Some(expected) = expected
            && *expected != digest
        {
            return Err(Error::Damaged { digest: *expected });
        }
        self.file = Some(Digesting::new(file));
        let (to, directory) = (self.layout.path(&digest), self.layout.root.join("blobs/sha256"));
        self.place(&to, &directory)?;
        Ok((digest, bytes))
    }

    fn place(mut self, to: &Path, directory: &Path) -> Result<(), Error> {
        let file = self.file.take().ok_or_else(|| io::Error::other("written already"))?.finish().0;
        file.sync_all()?;
        fs::rename(&self.path, to)?;
        File::open(directory)?.sync_all()?;
        Ok(())
    }
}

impl Write for BlobWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.free_space.charge(buffer.len() as u64)?;
        self.file.as_mut().ok_or_else(|| io::Error::other("written already"))?.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        // After a commit the name is gone; a file that cannot be removed is collected later.
        let _ = fs::remove_file(&self.path);
    }
}

/// A blob that is being read.
#[derive(Debug)]
pub struct Blob {
    inner: Option<Digesting<File>>,
    digest: Digest,
    size: u64,
}

impl std::fmt::Debug for Digesting<File> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Digesting").field("passed", &self.passed()).finish_non_exhaustive()
    }
}

impl Blob {
    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(inner) = &mut self.inner else { return Ok(0) };
        let count = inner.read(buffer)?;
        // An empty read of a non-empty buffer means the end.
        if count == 0
            && !buffer.is_empty()
            && let Some(inner) = self.inner.take()
            && inner.finish().1 != self.digest
        {
            return Err(Error::Damaged { digest: self.digest }.into_io());
        }
        Ok(count)
    }
}
