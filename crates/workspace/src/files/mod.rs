//! Files of one workspace.

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

pub use archive::{Measured, Unpacking, measure};
pub use list::{Entries, Entry, list};
pub use pack::{Packed, Packing};
use raworc_core::link::AGENT_UID;
use raworc_oci::{Digest, Ids};
use rustix::fs::{FileType, OFlags, Stat, fstat, readlinkat};
pub use unpack::{Unpacked, unpack_into};
pub use write::{Allows, Write, Written};

use crate::FileError;
use resolve::{Node, Place, ResolveOptions, check_path, open_beneath, resolve};

/// Largest file whose version is told by its content, in bytes; that of a larger one by its times and size.
const DIGESTED_BYTES_MAX: u64 = 1024 * 1024;
/// Digits of a digest that make a version.
const DIGEST_DIGITS: usize = 40;

/// Seconds since 1970, which may be negative, and nanoseconds after them.
pub type Moment = (i64, u32);

/// An open workspace.
#[derive(Debug)]
pub struct Workspace {
    root: OwnedFd,
    owner: Owner,
}

/// Whose new files become: this user's and group's, or the server's own.
#[derive(Clone, Copy, Debug)]
struct Owner(Option<u32>);

impl Owner {
    /// Which ids outside stand for which inside; none where there is no inside.
    fn ids(self) -> Option<Ids> {
        Some(Ids::based(self.0?.checked_sub(AGENT_UID)?))
    }

    fn give(self, file: impl AsFd) -> Result<(), FileError> {
        if self.0.is_some() {
            std::os::unix::fs::fchown(file, self.0, self.0)?;
        }
        Ok(())
    }
}

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A pipe, socket or device.
    Other,
}

impl Kind {
    fn of(kind: FileType) -> Self {
        match kind {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            _ => Kind::Other,
        }
    }
}

/// What tells one state of a file from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Another one wherever the content is another one.
    pub tag: String,
    /// When its content last changed.
    pub modified: Moment,
    /// Bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
}

impl Version {
    /// That of an open file. Whoever writes to it meanwhile may be seen half.
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

    /// That of a link, whose content is its target.
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
fn modified(stat: &Stat) -> Moment {
    (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0))
}

/// What is at a path that is to be changed.
pub struct Present<'a> {
    place: &'a Place,
    node: &'a Node,
}

impl<'a> Present<'a> {
    fn at(place: &'a Place) -> Option<Self> {
        Some(Self { place, node: place.node.as_ref()? })
    }

    /// Its version; only files and links have one.
    ///
    /// # Errors
    /// Where it cannot be read.
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
    /// Opens the regular file that is here, to read it.
    fn open_file(&self) -> Result<File, FileError> {
        // Without NONBLOCK, opening a pipe that has just taken its name would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW;
        let file = File::from(open_beneath(self.directory.as_fd(), &self.name, flags)?);
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(FileError::WrongKind("it is neither a file nor a directory")),
        }
    }

    /// Opens the directory that is here.
    fn open_directory(&self) -> Result<OwnedFd, FileError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        Ok(open_beneath(self.directory.as_fd(), &self.name, flags)?)
    }
}

/// What is at a path.
#[derive(Debug)]
pub enum OpenEntry {
    /// A regular file, open for reading.
    File(File, Version),
    /// An open directory.
    Directory(OwnedFd),
    /// A symbolic link that was not followed, and its target.
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

    /// What is at `path` (relative; empty: the workspace itself). Symbolic links are followed inside the workspace, the last
    /// name only where `follow` says so.
    ///
    /// # Errors
    /// Where there is nothing, or neither a file nor a directory.
    pub fn look(&self, path: &[u8], follow: bool) -> Result<OpenEntry, FileError> {
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
            // It is not opened: that might wait, or wake who waits at its other end.
            _ => Err(FileError::WrongKind("it is neither a file nor a directory")),
        }
    }
}
