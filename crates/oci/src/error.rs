//! What can go wrong with images.

use std::io;

use crate::digest::Digest;

/// What can go wrong with images. Texts are fit for users.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An archive that is broken, or that tries what no honest archive does.
    #[error("the archive cannot be used: {0}")]
    BadArchive(String),
    /// A name cannot be unpacked where it should be: something that is no directory stands in its way.
    #[error("the archive cannot be used: {0:?} leads through something that is not a directory")]
    Blocked(String),
    /// More than the bound that was given, or than what was announced.
    #[error("{0} is larger than allowed")]
    TooLarge(String),
    /// Content is not what its digest says.
    #[error("{digest} is damaged: its content is something else")]
    Damaged {
        /// The digest that was asked for.
        digest: Digest,
    },
    /// Content is not there.
    #[error("{digest} is missing")]
    Missing {
        /// The digest that was asked for.
        digest: Digest,
    },
    /// A manifest, config or index that makes no sense, or is of a kind that is not supported.
    #[error("the image cannot be used: {0}")]
    BadImage(String),
    /// A reference that cannot be understood.
    #[error("{0}")]
    BadReference(String),
    /// The registry wants (other) credentials.
    #[error("the registry refuses access: {0}")]
    Unauthorized(String),
    /// The registry has no such repository, tag or digest.
    #[error("the registry has no {0}")]
    NotFound(String),
    /// The registry was not reached, or did not answer, however often it was tried.
    #[error("{registry} cannot be reached (tried {tries} times): {why}")]
    Away {
        /// Scheme, host and port of the registry.
        registry: String,
        /// How often it was tried.
        tries: u32,
        /// What happened the last time.
        why: String,
    },
    /// The registry said no.
    #[error("the registry refused: {why} (status {status})")]
    Refused {
        /// Its HTTP status.
        status: u16,
        /// What it said, shortened.
        why: String,
    },
    /// The registry, or where it leads, has an address that may not be reached.
    #[error("{0} is on this machine or in a private network, where only an administrator may reach registries")]
    Private(String),
    /// A file changed while it was being read.
    #[error("{0:?} changed while it was read")]
    Changed(String),
    /// Anything else.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<rustix::io::Errno> for Error {
    fn from(error: rustix::io::Errno) -> Self {
        Error::Io(error.into())
    }
}

impl Error {
    /// The error inside an [`io::Error`] made by [`Error::into_io`], or the `io::Error` itself.
    pub(crate) fn from_io(error: io::Error) -> Self {
        match error.downcast::<Error>() {
            Ok(inner) => inner,
            Err(error) => Error::Io(error),
        }
    }

    /// For passing through [`io::Read`] and [`io::Write`].
    pub(crate) fn into_io(self) -> io::Error {
        match self {
            Error::Io(error) => error,
            other => io::Error::other(other),
        }
    }
}
