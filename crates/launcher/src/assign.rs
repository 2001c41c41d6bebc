//! Assigns a prepared container to a session, in a worker: its workspace, its host name, its token.
//!
//! The container's own first process has no right to mount. The worker, which has, enters the container's namespaces and
//! moves the mount in; nothing of a session runs there yet.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::unistd::sethostname;
use raworc_core::link::WORKSPACE_PATH;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MoveMountFlags, move_mount};

use crate::protocol::{ASSIGNED_FILE, Assign};

/// Assigns the container whose first process is `process` and reads its token from `words`.
pub fn assign(assign: &Assign, process: i32, workspace: BorrowedFd<'_>, words: OwnedFd) -> Result<(), String> {
    let bundle = File::open(&assign.bundle).map_err(|e| format!("{}: {e}", assign.bundle.display()))?;
    enter(process, "uts", CloneFlags::CLONE_NEWUTS)?;
    enter(process, "mnt", CloneFlags::CLONE_NEWNS)?;
    sethostname(&assign.hostname).map_err(|e| format!("its host name can't be set: {e}"))?;
    attach(workspace).map_err(|e| format!("its workspace can't be mounted: {e}"))?;
    let failed = |e: std::io::Error| format!("it can't be told: {e}");
    // Before it is told: what runs for a session is found again by the next server.
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    openat(bundle.as_fd(), ASSIGNED_FILE, flags, Mode::RUSR | Mode::WUSR).map_err(|e| failed(e.into()))?;
    File::from(words).write_all(format!("{}\n", assign.token).as_bytes()).map_err(failed)
}

fn enter(process: i32, kind: &str, flag: CloneFlags) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("its {kind} namespace can't be entered: {e}");
    let namespace = File::open(format!("/proc/{process}/ns/{kind}")).map_err(failed)?;
    setns(namespace, flag).map_err(|e| failed(e.into()))
}

fn attach(workspace: BorrowedFd<'_>) -> nix::Result<()> {
    move_mount(workspace, "", CWD, WORKSPACE_PATH, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| nix::Error::from_raw(e.raw_os_error()))?;
    let change = |flags| mount(None::<&str>, WORKSPACE_PATH, None::<&str>, flags, None::<&str>);
    // What is mounted in the container stays there, and the other way round.
    change(MsFlags::MS_PRIVATE)?;
    change(MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NODEV)
}
