//! The launcher's own mount namespace.
//!
//! A container's root is an unprivileged id outside, and it is that id which makes the container's mounts. It could not
//! reach their sources where the data directory lies below a directory that only root may enter (`/root/…`). So the
//! launcher mounts what containers need in a place that anybody may enter, and that only the launcher sees.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::protocol::{STAGE_HOST, STAGE_ROOTFS, STAGE_VIEWS, Setup};

/// Directories that every Linux has, that nothing here needs, and that anybody may enter.
const PLACES: [&str; 6] = ["/mnt", "/media", "/srv", "/opt", "/home", "/tmp"];
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Enters a mount namespace of its own and prepares the stage there; returns the stage's directory.
pub fn prepare(setup: &Setup) -> Result<PathBuf, String> {
    enter_namespace().map_err(|e| format!("no mount namespace of its own: {e}"))?;
    let place = choose(setup)?;
    let sources = [(STAGE_ROOTFS, &setup.rootfs), (STAGE_HOST, &setup.host), (STAGE_VIEWS, &setup.views)];
    let parts = sources.map(|(name, path)| clone(path).map(|tree| (name, tree)));
    let parts = parts.into_iter().collect::<Result<Vec<_>, _>>()?;
    tmpfs(&place).map_err(|e| format!("no tmpfs at {}: {e}", place.display()))?;
    for (name, tree) in parts {
        attach(&place, name, tree.as_fd()).map_err(|e| format!("{name} can't be mounted: {e}"))?;
    }
    Ok(place)
}

/// Shows `root`, a detached mount, in the place of the root filesystem of all containers: in a mount namespace of this
/// worker's own, and of the container that comes from it.
pub fn show(stage: &Path, root: OwnedFd) -> Result<(), String> {
    let rootfs = stage.join(STAGE_ROOTFS);
    enter_namespace()
        .and_then(|()| {
            move_mount(root, "", CWD, &rootfs, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .map_err(|e| nix::Error::from_raw(e.raw_os_error()))
        })
        .map_err(|e| format!("its root filesystem can't be mounted: {e}"))
}

/// Takes the cgroup filesystems out of this namespace. libcontainer then finds no hierarchy to put a container into,
/// which is what we want: the worker enters the cgroup before, without the wait that moving a process costs.
pub fn hide_cgroups() -> Result<(), String> {
    let hide = || {
        // In a user namespace, what was mounted outside stays; then it is covered.
        let _ = umount2(CGROUP_ROOT, MntFlags::MNT_DETACH);
        mount(Some("tmpfs"), CGROUP_ROOT, Some("tmpfs"), MsFlags::MS_RDONLY, Some("size=4k,mode=755"))
    };
    hide().map_err(|e| format!("{CGROUP_ROOT} can't be hidden: {e}"))
}

fn enter_namespace() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Mounts made outside still arrive (a workspace on a disk that is mounted later), ours never leave.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
}

/// A place that hides nothing that is still needed.
fn choose(setup: &Setup) -> Result<PathBuf, String> {
    let needed: Vec<&Path> = [&setup.state].into_iter().chain(&setup.oci_runtime).map(PathBuf::as_path).collect();
    let usable = |place: &&&str| Path::new(place).is_dir() && !needed.iter().any(|path| path.starts_with(place));
    let place = PLACES.iter().find(usable).ok_or_else(|| format!("none of {PLACES:?} can be used to mount on"))?;
    Ok(PathBuf::from(place))
}

fn clone(path: &Path) -> Result<OwnedFd, String> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, path, flags).map_err(|e| format!("{} can't be mounted: {e}", path.display()))
}

fn tmpfs(place: &Path) -> nix::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), place, Some("tmpfs"), flags, Some("size=64k,mode=755"))
}

fn attach(place: &Path, name: &str, tree: BorrowedFd<'_>) -> io::Result<()> {
    let to = place.join(name);
    std::fs::create_dir(&to)?;
    Ok(move_mount(tree, "", CWD, &to, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}
