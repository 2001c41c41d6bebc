//! Errors of file operations.

use std::io;

use raworc_core::ids::LayerId;

use crate::layers::{DEPTH_MAX, TooDeep};

/// The directory of a layer does not exist.
#[derive(Debug, thiserror::Error)]
#[error("the layer {0} of the workspace is missing")]
pub struct LayerMissing(pub LayerId);

/// An error of a file operation.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// No entry has this name.
    #[error("there is no such file or directory")]
    NotFound,
    /// The path is not valid in a workspace.
    #[error("{0}")]
    BadPath(&'static str),
    /// The path leads out of the workspace.
    #[error("the path leads out of the workspace")]
    Outside,
    /// Symbolic links form a loop.
    #[error("the path has too many symbolic links on it, or they lead in a circle")]
    Loop,
    /// The entry does not have the state that the caller expects.
    #[error("the file is not what the request's conditions say")]
    Stale,
    /// The entry has the wrong type.
    #[error("{0}")]
    WrongKind(&'static str),
    /// More bytes than allowed.
    #[error("the file is too large")]
    TooLarge,
    /// The archive is broken or hostile.
    #[error("the archive cannot be used: {0}")]
    BadArchive(String),
    /// An archive entry conflicts with an existing entry of another type.
    #[error("{0}")]
    Conflict(String),
    /// Directories are nested too deeply.
    #[error("directories are more than {} levels deep", DEPTH_MAX)]
    TooDeep,
    /// The disk is full.
    #[error("the disk is full")]
    DiskFull,
    /// A layer's directory is missing from the disk.
    #[error("{}", LayerMissing(*.0))]
    LayerMissing(LayerId),
    /// Any other error.
    #[error("{0}")]
    Io(io::Error),
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        use rustix::io::Errno;
        if error.get_ref().is_some_and(|inner| inner.is::<TooDeep>()) {
            return FileError::TooDeep;
        }
        if let Some(LayerMissing(layer)) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
            return FileError::LayerMissing(*layer);
        }
        match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => FileError::NotFound,
            // A link took the entry's place meanwhile.
            Some(Errno::XDEV | Errno::LOOP) => FileError::Outside,
            Some(Errno::NOTDIR) => FileError::WrongKind("a part of the path is not a directory"),
            Some(Errno::ISDIR) => FileError::WrongKind("it is a directory"),
            // Returned for opening a socket, or a pipe without a reader.
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
