//! The root filesystem of a container that runs an image: the image's layers, and on top of them one that takes what is
//! written and goes with the container.
//!
//! An image is a stranger's. Before anything follows a path in it, what is mounted on is a directory of ours, whatever was
//! there. Here, every path is a single name in a directory that is open, and no symbolic link is followed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use raworc_core::ids::LayerId;
use raworc_core::link::{AGENT_UID, WORKSPACE_PATH};
use raworc_core::names;
use raworc_launcher::protocol::{HOSTNAME_FILE, HOSTS_FILE};
use raworc_workspace::Mounter;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::fs::{fchmod, fchown, mkdirat, openat, statat, symlinkat, unlinkat};
use rustix::io::Errno;

use super::Ids;
use super::layout::{directory, is_file, write_file};
use crate::Root;

/// The record, in a bundle, of the image's layers: a line for each, the topmost first.
const IMAGE_FILE: &str = "image";
/// The directory, in a bundle, of what is written to the root filesystem.
pub const WRITTEN: &str = "root";
/// What things are mounted on, and its mode, which some runtimes give to what they mount.
const MOUNT_POINTS: [(&str, u32); 6] =
    [("dev", 0o755), ("proc", 0o755), ("run", 0o755), ("sys", 0o755), ("tmp", 0o1777), ("workspace", 0o755)];
/// Where names are looked for: without this, C libraries ask a server for `localhost`, and there is none.
pub const NSSWITCH: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n";
/// The longest file of users or of groups that is looked into.
const ACCOUNTS_BYTES_MAX: u64 = 1 << 20;
/// What programs find in their environment unless the image says otherwise.
const DEFAULTS: [(&str, &str); 2] =
    [("LANG", "C.UTF-8"), ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")];
/// Variables of programs (`nproc`, OpenMP; Go) that ask the scheduler only, which knows no part of a processor, and lets a
/// session run on any of them.
const THREADS: [&str; 2] = ["GOMAXPROCS", "OMP_NUM_THREADS"];
/// What they find whatever it says.
const OURS: [(&str, &str); 2] = [("HOME", WORKSPACE_PATH), ("TERM", "dumb")];
/// How the names of variables begin that tell of the session.
const RESERVED: &str = "RAWORC_";
/// Variables of an image that are kept.
const VARIABLES_MAX: usize = 256;
/// Bytes of them, together.
const VARIABLES_BYTES_MAX: usize = 64 * 1024;

/// Mounts the root filesystem of the container whose bundle this is.
pub fn mount(mounter: &Mounter, bundle: &Path, image: &Root, ids: Ids) -> io::Result<OwnedFd> {
    note(bundle, &image.layers)?;
    let written = bundle.join(WRITTEN);
    directory(&written, 0o700)?;
    let root = mounter.mount_over(&image.layers, &written, ids.base)?;
    furnish(root.as_fd(), ids)?;
    Ok(root)
}

/// Notes the layers, before they are mounted, for the server after this one.
fn note(bundle: &Path, layers: &[LayerId]) -> io::Result<()> {
    let text: String = layers.iter().map(|layer| format!("{layer}\n")).collect();
    write_file(&bundle.join(IMAGE_FILE), text.as_bytes(), 0o600)
}

/// The layers that were noted; none for a container without an image.
pub fn noted(bundle: &Path) -> Vec<LayerId> {
    let file = bundle.join(IMAGE_FILE);
    let text = if is_file(&file) { fs::read_to_string(file).unwrap_or_default() } else { String::new() };
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// The environment of the first process, and so of all. What is no variable, or too much, is left out.
pub fn environment(image: &[String], cpus: usize) -> Vec<String> {
    let cpus = cpus.to_string();
    let threads = THREADS.map(|name| (name, cpus.as_str()));
    let mut bytes = 0;
    let valid = image.iter().filter_map(|entry| entry.split_once('=')).filter(|(name, value)| is_variable(name, value));
    let kept = valid.take(VARIABLES_MAX).take_while(|(name, value)| {
        bytes += name.len() + value.len() + 2;
        bytes <= VARIABLES_BYTES_MAX
    });
    let all: BTreeMap<&str, &str> = DEFAULTS.into_iter().chain(threads).chain(kept).chain(OURS).collect();
    all.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// Those of ours are not an image's to set.
fn is_variable(name: &str, value: &str) -> bool {
    !name.starts_with(RESERVED) && names::is_variable(name) && !value.contains('\0')
}

/// Gives an image what every container has. Nobody else has its mount yet.
fn furnish(root: BorrowedFd<'_>, ids: Ids) -> io::Result<()> {
    for (name, mode) in MOUNT_POINTS {
        own(&make_directory(root, name, ids)?, mode, ids)?;
    }
    let etc = make_directory(root, "etc", ids)?;
    let etc = etc.as_fd();
    let agent = format!("agent:x:{AGENT_UID}:{AGENT_UID}:agent:{WORKSPACE_PATH}:/bin/sh\n");
    let root_too = format!("root:x:0:0:root:{WORKSPACE_PATH}:/bin/sh\n{agent}");
    register(etc, "passwd", &agent, &root_too, ids)?;
    let agents = format!("agent:x:{AGENT_UID}:\n");
    register(etc, "group", &agents, &format!("root:x:0:\n{agents}"), ids)?;
    provide(etc, "nsswitch.conf", NSSWITCH, ids)?;
    provide(etc, "resolv.conf", "", ids)?;
    for (name, target) in [("hosts", HOSTS_FILE), ("hostname", HOSTNAME_FILE)] {
        if make_room(etc, name)? {
            symlinkat(target, etc, name)?;
        }
    }
    temporary(root, ids)
}

/// Makes `/var/tmp`, unless there is anything in its place.
fn temporary(root: BorrowedFd<'_>, ids: Ids) -> io::Result<()> {
    if kind(root, "var")?.is_some_and(|(kind, _)| kind != FileType::Directory) {
        return Ok(());
    }
    let var = make_directory(root, "var", ids)?;
    match kind(var.as_fd(), "tmp")? {
        Some(_) => Ok(()),
        None => own(&make_directory(var.as_fd(), "tmp", ids)?, 0o1777, ids),
    }
}

/// Makes a file in the place of one that is empty, or that is none.
fn provide(etc: BorrowedFd<'_>, name: &str, text: &str, ids: Ids) -> io::Result<()> {
    match kind(etc, name)? {
        Some((FileType::RegularFile, size)) if size > 0 => Ok(()),
        _ if make_room(etc, name)? => create(etc, name, text, ids),
        _ => Ok(()),
    }
}

/// Takes away what is no directory; false where that is in the way.
fn make_room(at: BorrowedFd<'_>, name: &str) -> io::Result<bool> {
    match kind(at, name)? {
        Some((FileType::Directory, _)) => return Ok(false),
        Some(_) => unlinkat(at, name, AtFlags::empty())?,
        None => {}
    }
    Ok(true)
}

/// Opens a directory that stays as it is; in the place of anything else, which may lead elsewhere, it makes one.
fn make_directory(root: BorrowedFd<'_>, name: &str, ids: Ids) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || openat(root, name, flags, Mode::empty());
    match kind(root, name)? {
        Some((FileType::Directory, _)) => return Ok(open()?),
        Some(_) => unlinkat(root, name, AtFlags::empty())?,
        None => {}
    }
    mkdirat(root, name, Mode::RWXU)?;
    let made = open()?;
    own(&made, 0o755, ids)?;
    Ok(made)
}

/// Adds `entry` to a file of users or of groups that has none with the agents' id. Where there is none, an empty one, or a
/// link or a pipe that whoever opens it would follow or wait for, it makes one with `all`.
fn register(etc: BorrowedFd<'_>, name: &str, entry: &str, all: &str, ids: Ids) -> io::Result<()> {
    match kind(etc, name)? {
        Some((FileType::RegularFile, 1..=ACCOUNTS_BYTES_MAX)) => {}
        Some((FileType::RegularFile, 1..) | (FileType::Directory, _)) => return Ok(()),
        _ => return provide(etc, name, all, ids),
    }
    let open = |flags| openat(etc, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).map(File::from);
    let mut text = Vec::new();
    open(OFlags::RDONLY)?.take(ACCOUNTS_BYTES_MAX).read_to_end(&mut text)?;
    let lossy = String::from_utf8_lossy(&text);
    if lossy.lines().any(|line| line.split(':').nth(2).is_some_and(|id| id.trim().parse() == Ok(AGENT_UID))) {
        return Ok(());
    }
    let separator = if lossy.is_empty() || lossy.ends_with('\n') { "" } else { "\n" };
    open(OFlags::WRONLY | OFlags::APPEND)?.write_all(format!("{separator}{entry}").as_bytes())
}

/// Makes a file unless there is anything of this name.
fn create(at: BorrowedFd<'_>, name: &str, text: &str, ids: Ids) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match openat(at, name, flags, Mode::RUSR | Mode::WUSR) {
        Err(Errno::EXIST) => return Ok(()),
        other => other?,
    };
    own(&file, 0o644, ids)?;
    File::from(file).write_all(text.as_bytes())
}

/// Gives what was made to the container's root.
fn own(made: &OwnedFd, mode: u32, ids: Ids) -> io::Result<()> {
    fchown(made, Some(Uid::from_raw(ids.base)), Some(Gid::from_raw(ids.base)))?;
    Ok(fchmod(made, Mode::from_raw_mode(mode))?)
}

/// What `name` is, and its size.
fn kind(at: BorrowedFd<'_>, name: &str) -> io::Result<Option<(FileType, u64)>> {
    match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some((FileType::from_raw_mode(stat.st_mode), u64::try_from(stat.st_size).unwrap_or(u64::MAX)))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(image: &[&str]) -> Vec<String> {
        environment(&image.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>(), 3)
    }

    #[test]
    fn an_image_changes_what_is_not_ours() {
        let [lang, path] = DEFAULTS.map(|(name, value)| format!("{name}={value}"));
        let [go, openmp] = ["GOMAXPROCS=3", "OMP_NUM_THREADS=3"];
        assert_eq!(from(&[]), [go, "HOME=/workspace", &lang, openmp, &path, "TERM=dumb"]);
        let image = ["HOME=/root", "PATH=/one", "TERM=vt52", "PATH=/opt/bin", "_a1=x=y", "EMPTY=", "OMP_NUM_THREADS=1"];
        let [path, openmp] = ["PATH=/opt/bin", "OMP_NUM_THREADS=1"];
        assert_eq!(from(&image), ["EMPTY=", go, "HOME=/workspace", &lang, openmp, path, "TERM=dumb", "_a1=x=y"]);
    }

    #[test]
    fn what_is_no_variable_or_too_much_is_left_out() {
        let bad = ["", "=", "=x", "NONE", "A B=x", "É=x", "A=\0", "A\0=x", "RAWORC_SESSION_ID=x"];
        assert_eq!(from(&bad), from(&[]));
        assert_eq!(from(&["my.setting=1", "FOO-BAR=2", "1A=3"]).len(), from(&[]).len() + 3);
        let large = format!("A={}", "x".repeat(VARIABLES_BYTES_MAX - 3));
        assert_eq!(from(&[&large]).len(), 7);
        assert_eq!(from(&["B=1", &large, "C=1"]).len(), 7, "B alone");
        let many: Vec<String> = (0..2 * VARIABLES_MAX).map(|number| format!("A{number}=x")).collect();
        assert_eq!(environment(&many, 1).len(), VARIABLES_MAX + 6);
    }
}
