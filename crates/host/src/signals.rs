//! Signals, and the reaping of every child: the first process of a container inherits all orphans.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// With this exit status.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
}

/// Signals that have come. They are caught, not blocked: agents would inherit blocked ones.
pub struct Signals {
    children: UnixStream,
    stop: UnixStream,
}

impl Signals {
    /// Catches them from now on.
    pub fn catch() -> io::Result<Self> {
        Ok(Self { children: caught(&[SIGCHLD])?, stop: caught(&[SIGTERM, SIGINT])? })
    }

    /// Readable when a child has ended.
    pub fn children(&self) -> BorrowedFd<'_> {
        self.children.as_fd()
    }

    /// Readable when we are asked to stop.
    pub fn stop(&self) -> BorrowedFd<'_> {
        self.stop.as_fd()
    }

    /// Collects every child that has ended; one signal may stand for many.
    pub fn reap(&self) -> Vec<(i32, Status)> {
        forget(&self.children);
        let mut ended = Vec::new();
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((id, status))) => {
                    let exited = status.exit_status().map(Status::Exited);
                    let signalled = || status.terminating_signal().map(Status::Signalled);
                    ended.extend(exited.or_else(signalled).map(|status| (id.as_raw_pid(), status)));
                }
                Err(Errno::INTR) => {}
                // None has ended; or there is none at all.
                Ok(None) | Err(_) => return ended,
            }
        }
    }

    /// The wish to stop has been heard.
    pub fn stop_heard(&self) {
        forget(&self.stop);
    }
}

fn caught(signals: &[i32]) -> io::Result<UnixStream> {
    let (reader, writer) = UnixStream::pair()?;
    reader.set_nonblocking(true)?;
    for signal in signals {
        pipe::register(*signal, writer.try_clone()?)?;
    }
    Ok(reader)
}

/// Reads what stands for signals; how many there were does not matter.
fn forget(mut stream: &UnixStream) {
    // What does not fit into the buffer leaves the stream readable: then this is called again.
    let _ = stream.read(&mut [0; 64]);
}
