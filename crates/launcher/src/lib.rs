//! Starts containers on this machine, one worker process for each.
//!
//! [`main`] is a program of its own (`raworc launcher`): long-lived, single-threaded and without an async runtime,
//! because `fork` is only safe in a process that has no other threads, and libcontainer forks and then runs Rust code.
//! The server gives it one end of a `SOCK_SEQPACKET` pair as file descriptor 0; what the two say is in [`protocol`].
//!
//! ```text
//! server ── launcher ─┬─ worker (one per request, ends when its container waits or works)
//!                     ├─ container's first process (reparented here: the launcher is a child subreaper)
//!                     └─ …
//! ```
//!
//! The launcher ends when the server's end of the socket closes, and leaves the containers running. Those that have been
//! prepared for no session yet end with it: they wait on a pipe that it holds.
//!
//! What is deliberately absent: stopping containers. The server does that through pid file descriptors and cgroup files,
//! so that it works as well when this process is gone.

#![cfg(target_os = "linux")]

mod assign;
mod cgroup;
mod container;
mod external;
mod mounts;
mod names;
mod namespaces;
mod network;
pub mod protocol;
mod seccomp;
mod serve;
mod stage;
mod sys;
mod userns;
mod view;
mod worker;

/// Runs the launcher on the socket that is file descriptor 0. Returns the exit status when the server has gone.
#[must_use]
pub fn main() -> i32 {
    match serve::run() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("raworc launcher: {error}");
            1
        }
    }
}
