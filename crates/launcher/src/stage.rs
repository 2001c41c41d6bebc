//! The launcher's own mount namespace.
//!
//! A container's root is an unprivileged id outside, and it is that id which makes the container's mounts. It could not
//! reach their sources where the data directory lies below a directory that only root may enter (`/root/…`). So the
//! launcher mounts what containers need in a place that anybody may enter, and that only the launcher sees.
//!
//! What several containers, or a container and the machine, share, each container gets through an overlay of its own, and
//! devices as nodes of its own. Watches (inotify), locks and leases belong to the inode through which a file was opened: on a
//! shared one, they would tell a container what others do, or hold others up.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::statvfs::{FsFlags, statvfs};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::mounts::refuse_links;
use crate::protocol::{Prepare, STAGE_HOST, STAGE_ROOTFS, STAGE_VIEWS, Setup};

/// Directories that every Linux has, that nothing here needs, and that anybody may enter.
const PLACES: [&str; 6] = ["/mnt", "/media", "/srv", "/opt", "/home", "/tmp"];
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// An empty directory below the stage: an overlay that can't be written to wants two directories. Where both are on one file system, the
/// kernel has nothing to say about it in its log.
const EMPTY: &str = "empty";
/// How what containers share is mounted.
const READ_ONLY: MsFlags = MsFlags::MS_RDONLY.union(MsFlags::MS_NOSUID).union(MsFlags::MS_NODEV);
/// Where a file system for a container's `/dev` is, below the stage, and in it what is mounted there and the nodes of its devices.
const DEVICES: &str = "devices";
const DEV: &str = "dev";
const NODES_OF_DEV: &str = "nodes";
/// The devices that every container has: name, major and minor number.
const NODES: [(&str, u64, u64); 6] =
    [("full", 1, 7), ("null", 1, 3), ("random", 1, 8), ("tty", 5, 0), ("urandom", 1, 9), ("zero", 1, 5)];

/// Enters a mount namespace of its own and prepares the stage there; returns the stage's directory.
pub fn prepare(setup: &Setup) -> Result<PathBuf, String> {
    enter_namespace().map_err(|e| format!("no mount namespace of its own: {e}"))?;
    let place = choose(setup)?;
    let sources =
        [(STAGE_ROOTFS, &setup.rootfs), (STAGE_HOST, &setup.host), (STAGE_VIEWS, &setup.views), (EMPTY, &setup.empty)];
    let parts = sources.map(|(name, path)| clone(path).map(|tree| (name, tree)));
    let parts = parts.into_iter().collect::<Result<Vec<_>, _>>()?;
    tmpfs(&place).map_err(|e| format!("no tmpfs at {}: {e}", place.display()))?;
    for (name, tree) in parts {
        attach(&place, name, tree.as_fd()).map_err(|e| format!("{name} can't be mounted: {e}"))?;
    }
    hold_host(&place.join(STAGE_HOST)).map_err(|e| format!("{STAGE_HOST} can't be made read-only: {e}"))?;
    std::fs::create_dir(place.join(DEVICES)).map_err(|e| format!("{DEVICES} can't be made: {e}"))?;
    Ok(place)
}

/// Makes the host program's directory what it is in containers, which show it as it is mounted here.
fn hold_host(place: &Path) -> io::Result<()> {
    let set = |flags| mount(None::<&str>, place, None::<&str>, flags, None::<&str>);
    // What is mounted on the machine later stays out of containers.
    set(MsFlags::MS_PRIVATE)?;
    // The flags replace those that are there, and without root `noexec` cannot be taken away.
    let is_noexec = statvfs(place)?.flags().contains(FsFlags::ST_NOEXEC);
    let noexec = if is_noexec { MsFlags::MS_NOEXEC } else { MsFlags::empty() };
    Ok(set(MsFlags::MS_REMOUNT | MsFlags::MS_BIND | READ_ONLY | noexec)?)
}

/// Makes, in a mount namespace of this worker's own and of the container that comes from it, what the container does not
/// share with others: its root filesystem (`root`, a detached mount, or an overlay of the one for all), its view of the
/// machine, the machine's programs, and its devices. An external runtime makes `/dev` itself, from the machine's nodes.
pub fn set_apart(stage: &Path, root: Option<OwnedFd>, prepare: &Prepare, is_external: bool) -> Result<(), String> {
    enter_namespace().map_err(|e| format!("it can't have a mount namespace of its own: {e}"))?;
    let rootfs = stage.join(STAGE_ROOTFS);
    match root {
        Some(root) => move_mount(root, "", CWD, &rootfs, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(Into::into),
        None => overlay(stage, &rootfs, &rootfs),
    }
    .map_err(|e| format!("its root filesystem can't be mounted: {e}"))?;
    let views = stage.join(STAGE_VIEWS);
    overlay(stage, &views, &views).map_err(|e| format!("its view of the machine can't be mounted: {e}"))?;
    for path in &prepare.programs {
        // In the root filesystem, which the runtime takes with all that is mounted in it: as mounts of the bundle, each would cost it some
        // seventy system calls.
        let to = rootfs.join(path.strip_prefix("/").unwrap_or(path));
        overlay(stage, path, &to).map_err(|e| format!("{} can't be mounted: {e}", path.display()))?;
    }
    set_devices_apart(&stage.join(DEVICES), &rootfs, prepare, is_external)
        .map_err(|e| format!("its devices can't be made: {e}"))
}

/// Shows what is in `from` at `to`, through inodes that nobody else has.
fn overlay(stage: &Path, from: &Path, to: &Path) -> io::Result<()> {
    let empty = stage.join(EMPTY);
    let options = format!(
        "lowerdir={}:{},redirect_dir=off,index=off,metacopy=off,nfs_export=off,xino=auto",
        from.display(),
        empty.display()
    );
    Ok(mount(Some("overlay"), to, Some("overlay"), READ_ONLY, Some(options.as_str()))?)
}

/// Mounts a file system at `place`, and from it what a container has in `/dev`.
fn set_devices_apart(place: &Path, rootfs: &Path, prepare: &Prepare, is_external: bool) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), place, Some("tmpfs"), flags, Some("size=64k,mode=755"))?;
    if !is_external {
        make_dev(&place.join(DEV), rootfs, prepare.users.base)?;
    }
    // Only root of the machine may make nodes; others share the machine's.
    if prepare.users.owner.is_some() { make_nodes(place, is_external) } else { Ok(()) }
}

/// Makes the directory `dev`, which belongs to the container's root, and mounts it as `/dev`. Nodes are mounts of their own in it: none
/// that is made there works.
fn make_dev(dev: &Path, rootfs: &Path, root: u32) -> io::Result<()> {
    directory(dev)?;
    chown(dev, Some(root), Some(root))?;
    let to = rootfs.join(DEV);
    refuse_links(&to)?;
    bind(dev, &to)?;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    Ok(mount(None::<&str>, &to, None::<&str>, flags, None::<&str>)?)
}

/// Covers the machine's device nodes with ones of this namespace's own, all of `/dev` at once where nothing else in it is needed: a
/// container's are mounted from there.
fn make_nodes(place: &Path, is_external: bool) -> io::Result<()> {
    let nodes = place.join(NODES_OF_DEV);
    directory(&nodes)?;
    for (name, major, minor) in NODES {
        let (node, mode) = (nodes.join(name), Mode::from_bits_truncate(0o666));
        mknod(&node, SFlag::S_IFCHR, mode, makedev(major, minor))?;
        std::fs::set_permissions(&node, std::fs::Permissions::from_mode(0o666))?;
        if is_external {
            bind(&node, &Path::new("/dev").join(name))?;
        }
    }
    if is_external { Ok(()) } else { bind(&nodes, Path::new("/dev")) }
}

/// One that anybody may enter, whatever the umask is.
fn directory(path: &Path) -> io::Result<()> {
    std::fs::create_dir(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}

fn bind(from: &Path, to: &Path) -> io::Result<()> {
    Ok(mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
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
