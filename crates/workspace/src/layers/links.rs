//! Hard links across layers.
//!
//! Writing to a hard-linked file of a lower layer copies it up under one name only. While it is mounted, overlayfs's
//! index (mount option `index`) keeps its other names on the same file. The index is lost with the mount, so before
//! the layer is sealed, the file gets all its names in it.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Timespec, Timestamps, UTIME_OMIT, lgetxattr, utimensat};
use rustix::io::Errno;

use super::entry;
use crate::failpoints;

/// The index directory in overlayfs's work directory.
pub const INDEX: &str = "index";
/// The attribute with the difference of link counts: names of the file minus links of its copy, the index included.
const NAMES: &str = "trusted.overlay.nlink";
/// Magic number of overlayfs file handles: version, this, length, flags, type, then 16 bytes of file system id
/// (Linux, `struct ovl_fb`).
const HANDLE_MAGIC: u8 = 0xfb;
const HANDLE_BYTES: usize = 21;

/// A file in overlayfs's index.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CopiedUpFile {
    name: String,
    /// The inode number in the lower layer; `None` if the file system's handles are unknown.
    inode: Option<u64>,
}

/// Lists files in the index that lack names in the upper directory. Overlayfs overcounts if layers share files.
/// `work` is the work directory.
///
/// # Errors
/// If the index cannot be read.
pub fn copied_up_files(work: &Path) -> io::Result<BTreeSet<CopiedUpFile>> {
    let mut found = BTreeSet::new();
    let index = work.join(INDEX);
    let entries = match std::fs::read_dir(&index) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        // Other entries are overlayfs's own.
        let Some(handle) = name.to_str().and_then(|name| hex::decode(name).ok()) else { continue };
        let mut count = [0; 16];
        let has_all = match lgetxattr(index.join(&name), NAMES, &mut count) {
            Ok(length) => count[..length].starts_with(b"U-"),
            // The entry was removed meanwhile.
            Err(Errno::NOENT) => true,
            Err(Errno::NODATA) => false,
            Err(error) => return Err(error.into()),
        };
        if !has_all {
            found.insert(CopiedUpFile { name: name.to_string_lossy().into_owned(), inode: inode(&handle) });
        }
    }
    Ok(found)
}

/// The inode number in a file handle: the kernel's generic form (such as ext4), XFS and tmpfs.
fn inode(handle: &[u8]) -> Option<u64> {
    let (head, rest) = handle.split_at_checked(HANDLE_BYTES)?;
    let word = |at: usize| Some(u64::from(u32::from_le_bytes(rest.get(at..at + 4)?.try_into().ok()?)));
    match (head[1], head[4], rest.len()) {
        (HANDLE_MAGIC, 0x01, 8) => word(0),
        // Generation first, then the number in two parts.
        (HANDLE_MAGIC, 0x01, 12) => Some(word(4)? | word(8)? << 32),
        (HANDLE_MAGIC, 0x81, 12..) => Some(word(0)? | word(4)? << 32),
        _ => None,
    }
}

/// Gives these files all their names in the upper directory of the mount `root`, which may be in use.
///
/// # Errors
/// If the mount cannot be read or changed; [`io::ErrorKind::Unsupported`] for an unknown handle.
pub fn restore_hard_links(root: impl AsFd, upper: &Path, files: &BTreeSet<CopiedUpFile>) -> io::Result<()> {
    let inodes: Option<BTreeSet<u64>> = files.iter().map(|file| file.inode).collect();
    let inodes = inodes.ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "an unknown kind of file handle"))?;
    if inodes.is_empty() {
        return Ok(());
    }
    let root = entry::inner(root, c".", 0)?;
    directory(&root, Some(&entry::root(upper)?), &inodes, 0)
}

fn directory(shown: &OwnedFd, upper: Option<&OwnedFd>, inodes: &BTreeSet<u64>, depth: usize) -> io::Result<()> {
    for name in entry::names(shown)? {
        match visit(shown, upper, &name, inodes, depth) {
            // It may be changed meanwhile.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

fn visit(
    shown: &OwnedFd,
    upper: Option<&OwnedFd>,
    name: &CStr,
    inodes: &BTreeSet<u64>,
    depth: usize,
) -> io::Result<()> {
    let Some(stat) = entry::lookup(shown, name)? else { return Ok(()) };
    if entry::kind(&stat) == FileType::Directory {
        // A directory has the same path in the upper directory, even if it is redirected.
        let inner = upper.and_then(|upper| entry::inner(upper, name, depth).ok());
        return directory(&entry::inner(shown, name, depth)?, inner.as_ref(), inodes, depth + 1);
    }
    if !inodes.contains(&stat.st_ino) {
        return Ok(());
    }
    if let Some(upper) = upper
        && entry::lookup(upper, name)?.is_some()
    {
        return Ok(());
    }
    failpoints::change()?;
    // Setting any attribute makes overlayfs link the copy to this name.
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let last_access = Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ };
    let times = Timestamps { last_access, last_modification: omit };
    Ok(utimensat(shown, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Features of a layer that need special treatment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerTraits {
    /// It has redirected directories, so it must be rewritten.
    pub has_redirects: bool,
    /// It has hard links.
    pub has_links: bool,
}

/// Scans a layer for these features.
///
/// # Errors
/// If it cannot be read.
pub fn layer_traits(layer: &Path, xattrs: super::OverlayXattrs) -> io::Result<LayerTraits> {
    let mut traits = LayerTraits::default();
    look_through(&entry::root(layer)?, xattrs, 0, &mut BTreeSet::new(), &mut traits)?;
    Ok(traits)
}

fn look_through(
    directory: &OwnedFd,
    xattrs: super::OverlayXattrs,
    depth: usize,
    seen: &mut BTreeSet<u64>,
    traits: &mut LayerTraits,
) -> io::Result<()> {
    for name in entry::names(directory)? {
        if traits.has_redirects && traits.has_links {
            return Ok(());
        }
        let Some(stat) = entry::lookup(directory, &name)? else { continue };
        if entry::kind(&stat) == FileType::Directory {
            let inner = entry::inner(directory, &name, depth)?;
            traits.has_redirects |= entry::OverlayXattr::Redirect.get(&inner, xattrs)?.is_some();
            look_through(&inner, xattrs, depth + 1, seen, traits)?;
        } else if stat.st_nlink > 1 && !entry::is_whiteout(&stat) && !seen.insert(stat.st_ino) {
            // Other layers may share the file; their links do not count.
            traits.has_links = true;
        }
    }
    Ok(())
}

/// Tests whether overlayfs keeps hard links together. `mount` mounts the directories `lower`, `upper` and `work` in
/// `scratch`.
///
/// # Errors
/// If the directory cannot be used.
pub fn keeps_hard_links(scratch: &Path, mount: impl FnOnce(&Path) -> io::Result<OwnedFd>) -> io::Result<bool> {
    use std::io::Write as _;
    let [lower, upper, work] = ["lower", "upper", "work"].map(|part| scratch.join(part));
    for part in [&lower, &upper, &work] {
        std::fs::create_dir(part)?;
    }
    std::fs::write(lower.join("a"), "1")?;
    std::fs::hard_link(lower.join("a"), lower.join("b"))?;
    let root = entry::inner(mount(scratch)?, c".", 0)?;
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::APPEND | rustix::fs::OFlags::CLOEXEC;
    let file = rustix::fs::openat(&root, c"a", flags, rustix::fs::Mode::empty())?;
    std::fs::File::from(file).write_all(b"2")?;
    let name: CString = c"b".to_owned();
    let is_one = entry::lookup(&root, &name)?.is_some_and(|stat| stat.st_size == 2);
    if !is_one || restore_hard_links(&root, &upper, &copied_up_files(&work)?).is_err() {
        return Ok(false);
    }
    Ok(entry::lookup(entry::root(&upper)?, &name)?.is_some_and(|stat| stat.st_size == 2))
}
