//! Errors of this crate.

use std::io;

use crate::digest::Digest;

/// An error of this crate. Messages are fit for users.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The archive is broken or hostile.
    #[error("the archive cannot be used: {0}")]
    BadArchive(String),
    /// An entry's parent is not a directory.
    #[error("the archive cannot be used: {0:?} leads through something that is not a directory")]
    Blocked(String),
    /// More than the given bound, or than announced.
    #[error("{0} is larger than allowed")]
    TooLarge(String),
    /// Content does not match its digest.
    #[error("{digest} is damaged: its content is something else")]
    Damaged {
        /// The expected digest.
        digest: Digest,
    },
    /// A blob does not exist.
    #[error("{digest} is missing")]
    Missing {
        /// The digest of the blob.
        digest: Digest,
    },
    /// A manifest, config or index is invalid or unsupported.
    #[error("the image cannot be used: {0}")]
    BadImage(String),
    /// A reference is invalid.
    #[error("{0}")]
    BadReference(String),
    /// The registry requires (other) credentials.
    #[error("the registry refuses access: {0}")]
    Unauthorized(String),
    /// The registry has no such repository, tag or digest.
    #[error("the registry has no {0}")]
    NotFound(String),
    /// The registry cannot be reached or does not answer, after all retries.
    #[error("{registry} cannot be reached (tried {tries} times): {why}")]
    Unreachable {
        /// Scheme, host and port of the registry.
        registry: String,
        /// How often it was tried.
        tries: u32,
        /// The last error.
        why: String,
    },
    /// The registry rejected the request.
    #[error("the registry refused: {why} (status {status})")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The registry's message, shortened.
        why: String,
    },
    /// The registry, or a redirect of it, has an address that is not allowed.
    #[error("{0} is on this machine or in a private network, where only an administrator may reach registries")]
    Private(String),
    /// A file changed while it was read.
    #[error("{0:?} changed while it was read")]
    Changed(String),
    /// Any other error.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<rustix::io::Errno> for Error {
    fn from(error: rustix::io::Errno) -> Self {
        Error::Io(error.into())
    }
}

impl Error {
    /// The error that [`Error::into_io`] wrapped, or the `io::Error` itself.
    pub(crate) fn from_io(error: io::Error) -> Self {
        match error.downcast::<Error>() {
            Ok(inner) => inner,
            Err(error) => Error::Io(error),
        }
    }

    /// Wraps the error to pass it through [`io::Read`] and [`io::Write`].
    pub(crate) fn into_io(self) -> io::Error {
        match self {
            Error::Io(error) => error,
            other => io::Error::other(other),
        }
    }
}
