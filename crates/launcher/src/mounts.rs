//! Mounts of a bundle that the worker makes in place of libcontainer, when that has made the container's namespaces and before
//! the container's program runs.
//!
//! libcontainer mounts as the container's root, who may be anybody, and so looks at every path anew: some seventy system
//! calls for each mount. Here nothing of a session runs yet, and every path begins at the container's root.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{Mount, Spec};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::protocol::EMPTY_DIRECTORY;

/// libcontainer mounts it itself: it is of the container's process namespace.
const PROC: &str = "/proc";
/// The stage has it already: libcontainer puts device nodes there.
const DEV: &str = "/dev";
/// What masks a file.
const NULL: &str = "/dev/null";
/// Options that name an id inside the container.
const IDS: [&str; 2] = ["uid", "gid"];

/// What is to be mounted in a container.
pub struct Mounts {
    mounts: Vec<(PathBuf, Source)>,
    masked: Vec<PathBuf>,
}

enum Source {
    /// Something that is mounted below the stage, with the flags that it has there; those of the bundle are for an external runtime.
    Clone(OwnedFd),
    /// A new file system.
    New { kind: String, flags: MsFlags, options: String },
}

impl Mounts {
    /// Takes them out of a bundle's configuration, and opens what they show. `base` is the id outside that is 0 inside.
    pub fn take(spec: &mut Spec, base: u32) -> Result<Self, String> {
        let all = spec.mounts().clone().unwrap_or_default();
        let (theirs, ours): (Vec<_>, Vec<_>) = all.into_iter().partition(|m| m.destination() == Path::new(PROC));
        let ours = ours.iter().filter(|mount| mount.destination() != Path::new(DEV));
        let opened = ours.map(|mount| Ok((mount.destination().clone(), Source::open(mount, base)?)));
        let mounts = opened.collect::<Result<_, String>>()?;
        let masked = spec.linux().as_ref().and_then(|linux| linux.masked_paths().clone()).unwrap_or_default();
        let masked = masked.into_iter().map(PathBuf::from).collect();
        spec.set_mounts(Some(theirs));
        if let Some(linux) = spec.linux_mut() {
            linux.set_masked_paths(None);
        }
        Ok(Self { mounts, masked })
    }

    /// Mounts them, in a process of the container's mount namespace.
    pub fn carry_out(&self) -> Result<(), String> {
        for (path, source) in &self.mounts {
            source.attach(path).map_err(|e| format!("{} can't be mounted: {e}", path.display()))?;
        }
        self.masked
            .iter()
            .try_for_each(|path| mask(path).map_err(|e| format!("{} can't be masked: {e}", path.display())))
    }
}

impl Source {
    fn open(mount: &Mount, base: u32) -> Result<Self, String> {
        let options = mount.options().iter().flatten().map(String::as_str);
        let kind = mount.typ().clone().unwrap_or_default();
        if kind != "bind" {
            let (flags, options) = translate(options, kind == "tmpfs", base)?;
            return Ok(Self::New { kind, flags, options });
        }
        let source = mount.source().as_deref().unwrap_or(Path::new(""));
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, source, flags)
            .map(Self::Clone)
            .map_err(|e| format!("{} can't be mounted: {e}", source.display()))
    }

    /// Mounts it, and makes the directory for it where there is none.
    fn attach(&self, path: &Path) -> Result<(), Errno> {
        match refuse_links(path) {
            Err(Errno::ENOENT) => nix::unistd::mkdir(path, nix::sys::stat::Mode::from_bits_truncate(0o755))?,
            result => result?,
        }
        match self {
            Self::Clone(tree) => move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .map_err(|e| Errno::from_raw(e.raw_os_error())),
            Self::New { kind, flags, options } => {
                mount(Some(kind.as_str()), path, Some(kind.as_str()), *flags, Some(options.as_str()))
            }
        }
    }
}

/// Fails with `ELOOP` where a symbolic link is on `path`: a mount would follow it with the rights of this process.
pub fn refuse_links(path: &Path) -> Result<(), Errno> {
    let opened = openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::NO_SYMLINKS);
    opened.map(drop).map_err(|e| Errno::from_raw(e.raw_os_error()))
}

/// Hides what is at `path`, if anything is.
fn mask(path: &Path) -> Result<(), Errno> {
    let cover = |with: &str| mount(Some(with), path, None::<&str>, MsFlags::MS_BIND, None::<&str>);
    match cover(NULL) {
        Err(Errno::ENOENT) if !path.exists() => Ok(()),
        Err(Errno::ENOTDIR) => cover(EMPTY_DIRECTORY),
        result => result,
    }
}

/// Options of a bundle as flags, and as what the file system is told. Ids become those outside; a tmpfs belongs to the
/// container's root.
fn translate<'a>(
    options: impl Iterator<Item = &'a str>,
    is_tmpfs: bool,
    base: u32,
) -> Result<(MsFlags, String), String> {
    let (mut flags, mut told) = (MsFlags::empty(), Vec::new());
    if is_tmpfs {
        told.extend(IDS.map(|name| format!("{name}={base}")));
    }
    for option in options {
        match option {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            // A mount that a mount namespace makes is always an instance of its own.
            "newinstance" => {}
            _ => told.push(match option.split_once('=') {
                Some((name, id)) if IDS.contains(&name) => format!("{name}={}", outside(id, base)?),
                _ => option.to_owned(),
            }),
        }
    }
    Ok((flags, told.join(",")))
}

/// The id outside of one inside.
pub fn outside(id: &str, base: u32) -> Result<u32, String> {
    id.parse::<u32>().ok().and_then(|id| base.checked_add(id)).ok_or_else(|| format!("{id:?} is no id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_flags_and_ids_those_outside() {
        let of = |options: &[&str], is_tmpfs| translate(options.iter().copied(), is_tmpfs, 2000).unwrap();
        let (flags, told) = of(&["nosuid", "noexec", "newinstance", "ptmxmode=0666", "gid=5", "max=64"], false);
        assert_eq!((flags, told.as_str()), (MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "ptmxmode=0666,gid=2005,max=64"));
        let (flags, told) = of(&["ro", "nodev", "size=4"], true);
        assert_eq!((flags, told.as_str()), (MsFlags::MS_RDONLY | MsFlags::MS_NODEV, "uid=2000,gid=2000,size=4"));
        for bad in ["gid=", "gid=-1", "uid=4294967295", "uid=x"] {
            assert!(translate([bad].into_iter(), false, 2000).is_err(), "{bad}");
        }
    }
}
