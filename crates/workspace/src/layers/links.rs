//! Files with several names, over layers.
//!
//! A file that is written to through one of its names is copied up under that name alone; under the others, which are in layers below,
//! it is the same file as long as it is mounted, since overlayfs keeps an index of such files (mount option `index`). A layer
//! has no index. So before what was written becomes one, the file gets its other names there too: all names of a file are in one
//! layer.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Timespec, Timestamps, UTIME_OMIT, lgetxattr, utimensat};
use rustix::io::Errno;

use super::entry;
use crate::steps;

/// Where overlayfs keeps its index, in the work directory.
pub const INDEX: &str = "index";
/// How many more names a file has than the copy of it, its place in the index counted.
const NAMES: &str = "trusted.overlay.nlink";
/// A file handle as overlayfs writes it: a version, this, its length, flags, the type of what follows, and 16 bytes that name the file
/// system (Linux, `struct ovl_fb`).
const HANDLE_MAGIC: u8 = 0xfb;
const HANDLE_BYTES: usize = 21;

/// A file in the index of overlayfs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CopiedUpFile {
    name: String,
    /// The number of the file below. None on a file system whose handles are not known here.
    inode: Option<u64>,
}

/// Files that were copied up of several names, and do not have all of them in the upper directory yet, as far as overlayfs has counted:
/// where files of layers are shared by others, it counts too many. `work` is the work directory.
///
/// # Errors
/// Where the index cannot be read.
pub fn touched(work: &Path) -> io::Result<BTreeSet<CopiedUpFile>> {
    let mut found = BTreeSet::new();
    let index = work.join(INDEX);
    let entries = match std::fs::read_dir(&index) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        // Others are what overlayfs works with.
        let Some(handle) = name.to_str().and_then(|name| hex::decode(name).ok()) else { continue };
        let mut count = [0; 16];
        let has_all = match lgetxattr(index.join(&name), NAMES, &mut count) {
            Ok(length) => count[..length].starts_with(b"U-"),
            // It has come and gone.
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

/// The inode number that a file handle has: those of ext4 and whatever else has the kernel's general form, of XFS, and of tmpfs.
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

/// Gives these files all of their names in the upper directory `upper` of the mount `root`, which may be in use.
///
/// # Errors
/// Where the mount cannot be read or changed; [`io::ErrorKind::Unsupported`] where a handle is not known.
pub fn gather(root: impl AsFd, upper: &Path, files: &BTreeSet<CopiedUpFile>) -> io::Result<()> {
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
        match one(shown, upper, &name, inodes, depth) {
            // Somebody may be at work.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

fn one(shown: &OwnedFd, upper: Option<&OwnedFd>, name: &CStr, inodes: &BTreeSet<u64>, depth: usize) -> io::Result<()> {
    let Some(stat) = entry::look(shown, name)? else { return Ok(()) };
    if entry::kind(&stat) == FileType::Directory {
        // A directory has the same path in the upper directory, wherever its other parts are.
        let inner = upper.and_then(|upper| entry::inner(upper, name, depth).ok());
        return directory(&entry::inner(shown, name, depth)?, inner.as_ref(), inodes, depth + 1);
    }
    if !inodes.contains(&stat.st_ino) {
        return Ok(());
    }
    if let Some(upper) = upper
        && entry::look(upper, name)?.is_some()
    {
        return Ok(());
    }
    steps::change()?;
    // Setting any attribute, if only to what it is, has overlayfs link the copy to this name.
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let last_access = Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ };
    let times = Timestamps { last_access, last_modification: omit };
    Ok(utimensat(shown, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Which kinds of things are in a layer that say how it has to be treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nature {
    /// Directories in it refer to others: it has to be settled.
    pub has_redirects: bool,
    /// A file has several names in it.
    pub has_links: bool,
}

/// Looks through a layer.
///
/// # Errors
/// Where it cannot be read.
pub fn nature(layer: &Path, marks: super::Marks) -> io::Result<Nature> {
    let mut nature = Nature::default();
    look_through(&entry::root(layer)?, marks, 0, &mut BTreeSet::new(), &mut nature)?;
    Ok(nature)
}

fn look_through(
    directory: &OwnedFd,
    marks: super::Marks,
    depth: usize,
    seen: &mut BTreeSet<u64>,
    nature: &mut Nature,
) -> io::Result<()> {
    for name in entry::names(directory)? {
        if nature.has_redirects && nature.has_links {
            return Ok(());
        }
        let Some(stat) = entry::look(directory, &name)? else { continue };
        if entry::kind(&stat) == FileType::Directory {
            let inner = entry::inner(directory, &name, depth)?;
            nature.has_redirects |= entry::Mark::Redirect.get(&inner, marks)?.is_some();
            look_through(&inner, marks, depth + 1, seen, nature)?;
        } else if stat.st_nlink > 1 && !entry::is_whiteout(&stat) && !seen.insert(stat.st_ino) {
            // Other layers may share it under names of theirs: those do not count.
            nature.has_links = true;
        }
    }
    Ok(())
}

/// Whether links are kept together by a mount of what `try_it` mounts, in a scratch directory: the directories `lower`, `upper` and `work`
/// in it, and what is to be asked of the result.
///
/// # Errors
/// Where the directory cannot be used.
pub fn are_kept(scratch: &Path, try_it: impl FnOnce(&Path) -> io::Result<OwnedFd>) -> io::Result<bool> {
    use std::io::Write as _;
    let [lower, upper, work] = ["lower", "upper", "work"].map(|part| scratch.join(part));
    for part in [&lower, &upper, &work] {
        std::fs::create_dir(part)?;
    }
    std::fs::write(lower.join("a"), "1")?;
    std::fs::hard_link(lower.join("a"), lower.join("b"))?;
    let root = entry::inner(try_it(scratch)?, c".", 0)?;
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::APPEND | rustix::fs::OFlags::CLOEXEC;
    let file = rustix::fs::openat(&root, c"a", flags, rustix::fs::Mode::empty())?;
    std::fs::File::from(file).write_all(b"2")?;
    let name: CString = c"b".to_owned();
    let is_one = entry::look(&root, &name)?.is_some_and(|stat| stat.st_size == 2);
    if !is_one || gather(&root, &upper, &touched(&work)?).is_err() {
        return Ok(false);
    }
    Ok(entry::look(entry::root(&upper)?, &name)?.is_some_and(|stat| stat.st_size == 2))
}
