//! What waits, and for what: locks and permits for each key or account, and work that may wait for a disk.

pub mod fair_semaphore;
pub mod keyed_locks;

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::runtime::{Handle, RuntimeFlavor};

/// A lock that cannot be poisoned in a way that matters: what it guards is whole after every statement.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs what may wait for a disk where nobody else has to. On a runtime of one thread, as the simulator's, that is here:
/// then nothing happens at the same time, and the order is always the same.
///
/// # Errors
/// Where the work panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> std::io::Result<T> {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)
}
