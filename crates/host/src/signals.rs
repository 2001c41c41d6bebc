//! Catches signals and reaps children. The first process of a container inherits all orphans.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};
use signal_hook::consts::{FORBIDDEN, SIGCHLD, SIGINT, SIGPIPE, SIGTERM};
use signal_hook::low_level::pipe;

/// The signals that have names: 1 to 31 (signal(7)).
const NAMED: std::ops::RangeInclusive<i32> = 1..=31;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this status.
    Exited(i32),
    /// It was killed by this signal.
    Signalled(i32),
}

/// Gives programs the default action of every signal that is ignored here, for instance since the server runs under nohup(1): a shell
/// could not even trap it. execve(2) resets signals with a handler and leaves ignored ones, so each of those gets a handler.
fn restore_ignored() -> io::Result<()> {
    let status = fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    // The standard library ignores SIGPIPE, and gives programs the default action of that itself.
    let is_kept = |signal: &i32| *signal == SIGPIPE || FORBIDDEN.contains(signal);
    for signal in NAMED.filter(|signal| ignored & (1 << (signal - 1)) != 0 && !is_kept(signal)) {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    Ok(())
}

/// Caught signals. They are not blocked, because agents would inherit the mask.
pub struct Signals {
    children: UnixStream,
    stop: UnixStream,
}

impl Signals {
    /// Installs the handlers.
    pub fn catch() -> io::Result<Self> {
        restore_ignored()?;
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
