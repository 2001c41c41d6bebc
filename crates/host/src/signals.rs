//! Catches signals and reaps children. The first process of a container inherits all orphans.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this status.
    Exited(i32),
    /// It was killed by this signal.
    Signalled(i32),
}

/// Caught signals. They are not blocked, because agents would inherit the mask.
pub struct Signals {
    children: UnixStream,
    stop: UnixStream,
}

impl Signals {
    /// Installs the handlers.
    pub fn catch() -> io::Result<Self> {
        Ok(Self { children: register(&[SIGCHLD])?, stop: register(&[SIGTERM, SIGINT])? })
    }

    /// Readable when a child has ended.
    pub fn children(&self) -> BorrowedFd<'_> {
        self.children.as_fd()
    }

    /// Readable when we are told to stop.
    pub fn stop(&self) -> BorrowedFd<'_> {
        self.stop.as_fd()
    }

    /// Reaps every child that has ended; one signal may stand for several.
    pub fn reap(&self) -> Vec<(i32, ExitStatus)> {
        drain(&self.children);
        let mut ended = Vec::new();
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((id, status))) => {
                    let exited = status.exit_status().map(ExitStatus::Exited);
                    let signalled = || status.terminating_signal().map(ExitStatus::Signalled);
                    ended.extend(exited.or_else(signalled).map(|status| (id.as_raw_pid(), status)));
                }
                Err(Errno::INTR) => {}
                // No child has ended, or there is none.
                Ok(None) | Err(_) => return ended,
            }
        }
    }

    /// Clears the stop signal.
    pub fn clear_stop(&self) {
        drain(&self.stop);
    }
}

fn register(signals: &[i32]) -> io::Result<UnixStream> {
    let (reader, writer) = UnixStream::pair()?;
    reader.set_nonblocking(true)?;
    for signal in signals {
        pipe::register(*signal, writer.try_clone()?)?;
    }
    Ok(reader)
}

/// Empties the pipe of a signal; the number of signals does not matter.
fn drain(mut stream: &UnixStream) {
    // If more is left, the pipe stays readable and this is called again.
    let _ = stream.read(&mut [0; 64]);
}
