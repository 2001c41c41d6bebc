//! Handles Ctrl-C and SIGTERM in commands that need to clean up.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::{Failure, Result};

/// A receiver for these signals.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Catches the signals, so that they do not end the process.
    pub fn catch() -> Result<Self> {
        let catch = |kind| signal(kind).map_err(|error| Failure::failed(format!("signals can't be caught: {error}")));
        Ok(Self { interrupt: catch(SignalKind::interrupt())?, terminate: catch(SignalKind::terminate())? })
    }

    /// Waits for a signal and returns its exit status.
    pub async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
        }
    }
}
