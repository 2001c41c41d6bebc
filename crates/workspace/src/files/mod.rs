//! Files of one workspace: reading, writing, listing, packing and unpacking.

mod archive;
mod list;
mod pack;
mod resolve;
mod unpack;
mod write;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub use archive::{ArchiveSize, UnpackOptions, measure};
pub use list::{Entries, Entry, list};
pub use pack::{PackSource, PackStats};
use raworc_core::link::AGENT_UID;
use raworc_oci::{Digest, Ids};
use rustix::fs::{FileType, OFlags, Stat, fstat, readlinkat};
pub use unpack::{UnpackStats, unpack_into};
pub use write::{Precondition, WriteOptions, WriteResult};

use crate::error::FileError;
use resolve::{EntryHandle, Place, ResolveOptions, check_path, open_beneath, resolve};

/// Files up to this size, in bytes, get a version from their content; larger ones from times and size.
const DIGESTED_BYTES_MAX: u64 = 1024 * 1024;
/// Hexadecimal digits of a digest in a version tag.
const DIGEST_DIGITS: usize = 40;

/// Seconds since 1970, maybe negative, and nanoseconds.
pub type FileTime = (i64, u32);

/// An open workspace.
#[derive(Debug)]
pub struct Workspace {
    root: OwnedFd,
    owner: Owner,
}

/// The user and group that new files get; `None`: those of the server.
#[derive(Clone, Copy, Debug)]
struct Owner(Option<u32>);

impl Owner {
    /// The id mapping of containers; `None` without containers.
    fn ids(self) -> Option<Ids> {
        Some(Ids::based(self.0?.checked_sub(AGENT_UID)?))
    }

    fn set_owner(self, file: impl AsFd) -> Result<(), FileError> {
        if self.0.is_some() {
            std::os::unix::fs::fchown(file, self.0, self.0)?;
        }
        Ok(())
    }
}

/// The type of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A pipe, socket or device.
    Other,
}

impl EntryKind {
    fn of(kind: FileType) -> Self {
        match kind {
            FileType::RegularFile => EntryKind::File,
            FileType::Directory => EntryKind::Directory,
            FileType::Symlink => EntryKind::Symlink,
            _ => EntryKind::Other,
        }
    }
}

/// Identifies one state of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Changes whenever the content changes.
    pub tag: String,
    /// Modification time of the content.
    pub modified: FileTime,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
}

impl Version {
    /// The version of an open file. Data that is being written meanwhile may be included in part.
    fn of(file: &File) -> Result<Self, FileError> {
        let stat = fstat(file)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let tag = if size <= DIGESTED_BYTES_MAX {
            let mut file = file;
            let mut content = Vec::new();
            file.rewind()?;
            file.take(DIGESTED_BYTES_MAX).read_to_end(&mut content)?;
            file.rewind()?;
            digest(&content)
        } else {
            let (modified, changed) = ((stat.st_mtime, stat.st_mtime_nsec), (stat.st_ctime, stat.st_ctime_nsec));
            format!("{size:x}-{:x}.{:x}-{:x}.{:x}", modified.0, modified.1, changed.0, changed.1)
        };
        Ok(Self { tag, modified: modified(&stat), size, mode: stat.st_mode & 0o7777 })
    }

    /// The version of a link, whose content is its target.
    fn of_link(stat: &Stat, target: &[u8]) -> Self {
        let tag = digest(target);
        Self { tag, modified: modified(stat), size: target.len() as u64, mode: stat.st_mode & 0o7777 }
    }
}

fn digest(content: &[u8]) -> String {
    let mut digits = Digest::of(content).hex();
    digits.truncate(DIGEST_DIGITS);
    digits
}

/// When a file's content last changed.
fn modified(stat: &Stat) -> FileTime {
    (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0))
}

/// An existing entry that is about to be changed.
pub struct ExistingEntry<'a> {
    place: &'a Place,
    node: &'a EntryHandle,
}

impl<'a> ExistingEntry<'a> {
    fn at(place: &'a Place) -> Option<Self> {
        Some(Self { place, node: place.node.as_ref()? })
    }

    /// Its version. Only files and links have one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn version(&self) -> Result<Option<Version>, FileError> {
        match self.node.kind() {
            FileType::RegularFile => Ok(Some(Version::of(&self.place.open_file()?)?)),
            FileType::Symlink => {
                let target = readlinkat(&self.node.handle, "", Vec::new())?;
                Ok(Some(Version::of_link(&self.node.stat, target.as_bytes())))
            }
            _ => Ok(None),
        }
    }
}

impl Place {
    /// Opens this regular file for reading.
    fn open_file(&self) -> Result<File, FileError> {
        // NONBLOCK: if a pipe took its name meanwhile, opening it would block.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW;
        let file = File::from(open_beneath(self.directory.as_fd(), &self.name, flags)?);
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(FileError::WrongKind("it is neither a file nor a directory")),
        }
    }

    /// Opens this directory.
    fn open_directory(&self) -> Result<OwnedFd, FileError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        Ok(open_beneath(self.directory.as_fd(), &self.name, flags)?)
    }
}

/// An opened entry.
#[derive(Debug)]
pub enum OpenEntry {
    /// A regular file, open for reading.
    File(File, Version),
    /// An open directory.
    Directory(OwnedFd),
    /// A symbolic link, not followed, and its target.
    Symlink(Vec<u8>, Version),
}

impl Workspace {
    pub(crate) fn new(root: OwnedFd, owner: Option<u32>) -> Self {
        Self { root, owner: Owner(owner) }
    }

    /// Its root directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens the entry at `path` (relative; empty means the root). Links are followed within the workspace, the last
    /// component only with `follow`.
    ///
    /// # Errors
    /// If there is none, or it is neither file, directory nor link.
    pub fn open_entry(&self, path: &[u8], follow: bool) -> Result<OpenEntry, FileError> {
        let place = resolve(self.root(), check_path(path)?, ResolveOptions { follow, make: None })?;
        let node = place.node.as_ref().ok_or(FileError::NotFound)?;
        match node.kind() {
            FileType::RegularFile => {
                let file = place.open_file()?;
                let version = Version::of(&file)?;
                Ok(OpenEntry::File(file, version))
            }
            FileType::Directory => Ok(OpenEntry::Directory(place.open_directory()?)),
            FileType::Symlink => {
                let target = readlinkat(&node.handle, "", Vec::new())?.into_bytes();
                let version = Version::of_link(&node.stat, &target);
                Ok(OpenEntry::Symlink(target, version))
            }
            // Opening a pipe or device might block or have side effects.
            _ => Err(FileError::WrongKind("it is neither a file nor a directory")),
        }
    }
}
