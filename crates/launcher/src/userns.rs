//! A container's user namespace, made ahead of the container.
//!
//! The kernel counts inotify instances and watches, pending signals, message queues and locked memory for the user in a
//! namespace, and again, in the namespace outside, for the user that made it (`user_namespaces(7)`). Made by root, the
//! namespaces of all containers would use up what root itself may have. So each is made by an id that nothing else has.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Gid, Pid, Uid, setresgid, setresuid};

use crate::protocol::Users;
use crate::sys::{Fork, fork};

/// Makes it, with its ids mapped. It lasts as long as the descriptor, or a process in it.
pub fn create(users: &Users) -> Result<OwnedFd, String> {
    try_create(users).map_err(|e| format!("its user namespace can't be made: {e}"))
}

fn try_create(users: &Users) -> io::Result<OwnedFd> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    match fork(None)? {
        Fork::Child => {
            drop(reader);
            // The reason, or nothing: then it waits for its end.
            if let Err(error) = enter(users) {
                let _ = File::from(writer).write_all(error.to_string().as_bytes());
                std::process::exit(1);
            }
            drop(writer);
            loop {
                nix::unistd::pause();
            }
        }
        Fork::Parent(pid) => {
            drop(writer);
            let namespace = map(pid, users, File::from(reader));
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            waitpid(Pid::from_raw(pid), None)?;
            namespace
        }
    }
}

/// In the new process.
fn enter(users: &Users) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if let Some(owner) = users.owner {
        let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
    }
    unshare(CloneFlags::CLONE_NEWUSER)?;
    // The system call filter refuses them, too.
    limit("max_user_namespaces", 0)?;
    limit("max_inotify_instances", users.inotify_instances)
}

/// A limit of this process's namespace. A kernel without it counts nothing.
fn limit(name: &str, most: u32) -> io::Result<()> {
    match fs::write(format!("/proc/sys/user/{name}"), most.to_string()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn map(pid: i32, users: &Users, mut reader: File) -> io::Result<OwnedFd> {
    let mut reason = String::new();
    reader.read_to_string(&mut reason)?;
    if !reason.is_empty() {
        return Err(io::Error::other(reason));
    }
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{file}"), format!("0 {} {}\n", users.base, users.count))?;
    }
    Ok(File::open(format!("/proc/{pid}/ns/user"))?.into())
}
