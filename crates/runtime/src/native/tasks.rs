//! What waits for the file system or a descriptor, beside the runtime.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::RuntimeError;

/// Runs file system work where it may block.
pub async fn blocking<T, F>(work: F) -> Result<T, RuntimeError>
where
    T: Send + 'static,
    F: FnOnce() -> io::Result<T> + Send + 'static,
{
    let result = tokio::task::spawn_blocking(work).await.map_err(|error| RuntimeError::Other(error.to_string()))?;
    result.map_err(|error| RuntimeError::Other(error.to_string()))
}

/// Lets tokio wait for a descriptor.
#[expect(deprecated, reason = "its successor is unsafe, for descriptors that may change; an OwnedFd never does")]
pub fn pollable(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, interest)
}
