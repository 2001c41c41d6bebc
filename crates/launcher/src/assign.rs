//! Assigns a prepared container to a session, in a worker: its workspace, its host name, its token. Later, its workspace
//! may be replaced.
//!
//! The container's own first process has no right to mount. The worker, which has, enters the container's namespaces and
//! moves the mount in; nothing of a session runs there yet.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;
use nix::unistd::sethostname;
use raworc_core::link::WORKSPACE_PATH;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MoveMountFlags, move_mount};

use crate::protocol::{ASSIGNED_FILE, Assign, Process, Remount};
use crate::{names, namespaces};

/// Assigns the container whose first process is `process` and reads its token from `words`.
pub fn assign(assign: &Assign, process: i32, workspace: BorrowedFd<'_>, words: OwnedFd) -> Result<(), String> {
    let bundle = File::open(&assign.bundle).map_err(|e| format!("{}: {e}", assign.bundle.display()))?;
    namespaces::enter(namespaces::open(process, "uts")?, "uts", CloneFlags::CLONE_NEWUTS)?;
    namespaces::enter(namespaces::open(process, "mnt")?, "mnt", CloneFlags::CLONE_NEWNS)?;
    sethostname(&assign.hostname).map_err(|e| format!("its host name can't be set: {e}"))?;
    names::write(&assign.hostname).map_err(|e| format!("its names can't be written: {e}"))?;
    attach(workspace).map_err(|e| format!("its workspace can't be mounted: {e}"))?;
    let failed = |e: std::io::Error| format!("it can't be told: {e}");
    // Before it is told: what runs for a session is found again by the next server.
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    openat(bundle.as_fd(), ASSIGNED_FILE, flags, Mode::RUSR | Mode::WUSR).map_err(|e| failed(e.into()))?;
    File::from(words).write_all(format!("{}\n", assign.token).as_bytes()).map_err(failed)
}

/// Puts `workspace` in the place of the container's present one. Done again after it was cut off, it does the same.
pub fn remount(remount: &Remount, workspace: BorrowedFd<'_>) -> Result<(), String> {
    let namespace = namespaces::open(remount.process.pid, "mnt")?;
    // The number could have been given out again before that was opened. (In there, `/proc` is another one.)
    if Process::find(remount.process.pid) != Some(remount.process) {
        return Err("its first process has ended".into());
    }
    namespaces::enter(namespace, "mnt", CloneFlags::CLONE_NEWNS)?;
    match umount2(WORKSPACE_PATH, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(error) => return Err(format!("its workspace can't be taken away: {error}")),
    }
    attach(workspace).map_err(|e| format!("its workspace can't be mounted: {e}"))
}

/// Only a directory can be mounted on, and where that has been done, the path is no symbolic link.
fn attach(workspace: BorrowedFd<'_>) -> nix::Result<()> {
    move_mount(workspace, "", CWD, WORKSPACE_PATH, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| nix::Error::from_raw(e.raw_os_error()))?;
    let change = |flags| mount(None::<&str>, WORKSPACE_PATH, None::<&str>, flags, None::<&str>);
    // What is mounted in the container stays there, and the other way round.
    change(MsFlags::MS_PRIVATE)?;
    change(MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NODEV)
}
