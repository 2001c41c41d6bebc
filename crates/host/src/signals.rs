//! Signals, and the reaping of every child: the first process of a container inherits all orphans.

use std::io;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::host::Event;

/// Stack of threads that only wait and pass on, in bytes.
pub const STACK_BYTES: usize = 128 * 1024;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// With this exit status.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
}

/// Held while a process is being started. The standard library waits for a child whose exec failed, and must find it; so
/// nothing is reaped meanwhile.
#[derive(Clone, Default)]
pub struct Reaping(Arc<Mutex<()>>);

impl Reaping {
    /// Runs `start` while nothing is reaped.
    pub fn held<T>(&self, start: impl FnOnce() -> T) -> T {
        let _guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        start()
    }
}

/// Starts the thread that waits for signals. They are caught, not blocked: agents would inherit blocked ones.
pub fn start(events: Sender<Event>) -> io::Result<Reaping> {
    let mut signals = Signals::new([SIGCHLD, SIGTERM, SIGINT])?;
    let reaping = Reaping::default();
    let held = reaping.clone();
    std::thread::Builder::new().name("signals".into()).stack_size(STACK_BYTES).spawn(move || {
        for signal in signals.forever() {
            let sent = match signal {
                SIGCHLD => held.held(|| reap(&events)),
                _ => events.send(Event::Stop).is_ok(),
            };
            if !sent {
                return;
            }
        }
    })?;
    Ok(reaping)
}

/// Collects every child that has ended; one signal may stand for many. False where nobody listens any more.
fn reap(events: &Sender<Event>) -> bool {
    loop {
        let (id, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(id, code)) => (id, Status::Exited(code)),
            Ok(WaitStatus::Signaled(id, signal, _)) => (id, Status::Signalled(signal as i32)),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return true,
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(_) => return true,
        };
        if events.send(Event::Ended(id.as_raw(), status)).is_err() {
            return false;
        }
    }
}
