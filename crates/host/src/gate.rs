//! Holds back output while too much of it is not stored yet.

use std::sync::{Condvar, Mutex, PoisonError};

/// Counts bytes on their way.
#[derive(Default)]
pub struct Gate {
    bytes: Mutex<usize>,
    freed: Condvar,
}

impl Gate {
    /// Waits until less than `max` bytes are on their way, then adds `count`.
    pub fn enter(&self, count: usize, max: usize) {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        while *bytes >= max {
            bytes = self.freed.wait(bytes).unwrap_or_else(PoisonError::into_inner);
        }
        *bytes += count;
    }

    /// These bytes have arrived.
    pub fn leave(&self, count: usize) {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        *bytes = bytes.saturating_sub(count);
        self.freed.notify_all();
    }
}
