//! A container's first process, seen from outside.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use futures::FutureExt;
use raworc_launcher::protocol::{PROCESS_FILE, Process};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::layout::is_file;
use super::tasks::pollable;

/// How long a killed process may take to be gone.
const KILL_MAX: Duration = Duration::from_secs(20);

/// A process that can be waited for and signalled, and never mistaken for another.
#[derive(Debug)]
pub struct Handle {
    pid: i32,
    pidfd: AsyncFd<OwnedFd>,
}

impl Handle {
    /// `None` where the process has gone.
    pub fn open(process: Process) -> io::Result<Option<Self>> {
        let Some(pid) = Pid::from_raw(process.pid) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // The number could have been given out again before it was opened; the start time tells.
        if Process::find(process.pid) != Some(process) || has_ended(&pidfd)? {
            return Ok(None);
        }
        Ok(Some(Self { pid: process.pid, pidfd: pollable(pidfd, Interest::READABLE)? }))
    }

    /// The process of a bundle, if it has one that lives.
    pub fn of_bundle(bundle: &Path) -> io::Result<Option<Self>> {
        Self::of_record(&bundle.join(PROCESS_FILE))
    }

    /// The process of a record, if it lives.
    pub fn of_record(record: &Path) -> io::Result<Option<Self>> {
        // A record that cannot be read, or was cut short, names no process. What runs all the same is in a cgroup.
        let text = if is_file(record) { std::fs::read_to_string(record).unwrap_or_default() } else { String::new() };
        text.parse().map_or(Ok(None), Self::open)
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits until the process has ended, and with it everything in its pid namespace.
    pub async fn ended(&self) -> io::Result<()> {
        self.pidfd.readable().await.map(drop)
    }

    /// Whether it has ended already.
    pub fn has_ended(&self) -> bool {
        self.ended().now_or_never().is_some()
    }

    /// Asks it to end, and gives it `grace` for that.
    pub async fn ask_to_end(&self, grace: Duration) {
        if !grace.is_zero() && self.signal(Signal::TERM) {
            let _ = tokio::time::timeout(grace, self.ended()).await;
        }
    }

    /// Kills it, and waits until it has gone.
    pub async fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL);
        let ended = tokio::time::timeout(KILL_MAX, self.ended()).await;
        ended.unwrap_or_else(|_| Err(io::Error::other("the process does not end although it was killed")))
    }

    /// False where it has ended, or may not be signalled.
    fn signal(&self, signal: Signal) -> bool {
        pidfd_send_signal(self.pidfd.get_ref(), signal).is_ok()
    }
}

/// Whether a process has ended, also where nobody has waited for it yet.
fn has_ended(pidfd: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    Ok(poll(&mut fds, Some(&Timespec::default()))? > 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

    use std::process::Command;

    use rustix::process::{WaitId, WaitIdOptions, waitid};

    use super::*;

    #[tokio::test]
    async fn a_process_that_nobody_has_waited_for_does_not_live() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = Pid::from_child(&child);
        waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
        let process = Process::find(pid.as_raw_nonzero().get()).unwrap();
        assert!(Handle::open(process).unwrap().is_none());
        child.wait().unwrap();
        let own = Process::find(std::process::id().cast_signed()).unwrap();
        assert!(!Handle::open(own).unwrap().unwrap().has_ended());
    }
}
