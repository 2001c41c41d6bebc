//! The persistent directory of a session: layers that never change, and one on top that takes what is written.
//!
//! What is in a workspace belongs to a hostile program. Every path is therefore opened with `openat2` beneath the
//! workspace: no `..`, symbolic link or mount leads out of it, whatever changes while we look. Calls block.

mod files;
mod layer_store;
pub mod layers;
mod mount;
pub mod steps;
mod trash;

use std::io;

pub use files::{Allows, Entries, Entry, Kind, Moment, OpenEntry, Present, Version, Workspace, Write, Written, list};
pub use files::{Measured, Packed, Packing, Unpacked, Unpacking, measure, unpack_into};
pub use layer_store::{LayerStore, Space, has_limits, layers_in};
pub use mount::{LayerMissing, Mounter, Stack};
use raworc_core::ids::LayerId;
pub use trash::Trash;

/// What can go wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is nothing of this name.
    #[error("there is no such file or directory")]
    NotFound,
    /// The path cannot be one in a workspace.
    #[error("{0}")]
    BadPath(&'static str),
    /// The path leads out of the workspace.
    #[error("the path leads out of the workspace")]
    Outside,
    /// Links lead round in a circle.
    #[error("the path has too many symbolic links on it, or they lead in a circle")]
    Loop,
    /// It is not, or not any more, what the caller expects to change.
    #[error("the file is not what the request's conditions say")]
    Stale,
    /// It is a directory, or is none, or is neither file nor directory.
    #[error("{0}")]
    WrongKind(&'static str),
    /// More bytes than allowed.
    #[error("the file is too large")]
    TooLarge,
    /// An archive that is broken, or that tries what no honest one does.
    #[error("the archive cannot be used: {0}")]
    BadArchive(String),
    /// Something is where an archive has something of another kind.
    #[error("{0}")]
    Conflict(String),
    /// Directories are too deep inside one another.
    #[error("directories are more than {} levels deep", layers::DEPTH_MAX)]
    TooDeep,
    /// The disk is full.
    #[error("the disk is full")]
    DiskFull,
    /// Something that a workspace is made of was removed behind the server's back.
    #[error("{}", LayerMissing(*.0))]
    LayerMissing(LayerId),
    /// Anything else.
    #[error("{0}")]
    Io(io::Error),
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        use rustix::io::Errno;
        if error.get_ref().is_some_and(|inner| inner.is::<layers::TooDeep>()) {
            return FileError::TooDeep;
        }
        if let Some(LayerMissing(layer)) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
            return FileError::LayerMissing(*layer);
        }
        match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => FileError::NotFound,
            // A link where none was a moment ago.
            Some(Errno::XDEV | Errno::LOOP) => FileError::Outside,
            Some(Errno::NOTDIR) => FileError::WrongKind("a part of the path is not a directory"),
            Some(Errno::ISDIR) => FileError::WrongKind("it is a directory"),
            // What opening a socket says, and a pipe that nobody reads.
            Some(Errno::NXIO) => FileError::WrongKind("it is neither a file nor a directory"),
            Some(Errno::NAMETOOLONG) => FileError::BadPath("the path or one of its names is too long"),
            Some(Errno::NOSPC | Errno::DQUOT) => FileError::DiskFull,
            Some(Errno::FBIG) => FileError::TooLarge,
            _ => FileError::Io(error),
        }
    }
}

impl From<rustix::io::Errno> for FileError {
    fn from(error: rustix::io::Errno) -> Self {
        io::Error::from(error).into()
    }
}
