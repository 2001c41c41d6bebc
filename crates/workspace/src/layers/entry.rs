//! Operations on one directory entry: look up, copy, link.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags, copy_file_range,
};
use rustix::fs::{chmodat, chownat, fchmod, fchown, fgetxattr, flistxattr, fremovexattr, fsetxattr, fstat, futimens};
use rustix::fs::{getxattr, removexattr, setxattr};
use rustix::fs::{linkat, mkdirat, mknodat, open, openat, readlinkat, statat, symlinkat, utimensat};
use rustix::io::Errno;

use super::{DEPTH_MAX, OverlayXattrs, TooDeep};
use crate::failpoints;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Size of all attribute names or of one value (Linux, `XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const ATTRIBUTE_BYTES_MAX: usize = 64 << 10;
/// Attributes of access control lists: of the entry itself, and the default for new entries.
const ACLS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];

/// Opens a directory by path.
pub fn root(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, DIRECTORY - OFlags::NOFOLLOW, Mode::empty())?)
}

/// Opens a subdirectory, which is `depth` levels down.
pub fn inner(directory: impl AsFd, name: &CStr, depth: usize) -> io::Result<OwnedFd> {
    if depth >= DEPTH_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, TooDeep));
    }
    Ok(openat(directory, name, DIRECTORY, Mode::empty())?)
}

/// The names in a directory, sorted.
pub fn names(directory: impl AsFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The entry `name`, if it exists.
pub fn lookup(directory: impl AsFd, name: &CStr) -> io::Result<Option<Stat>> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The type of an entry.
pub fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Whether it is a whiteout, which hides a name of lower layers.
pub fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Creates a whiteout.
pub fn whiteout(directory: impl AsFd, name: &CStr) -> io::Result<()> {
    failpoints::change()?;
    Ok(mknodat(directory, name, FileType::CharacterDevice, Mode::empty(), 0)?)
}

/// An attribute of overlayfs on a directory.
#[derive(Clone, Copy, Debug)]
pub enum OverlayXattr {
    /// Opaque: the directory hides lower layers.
    Opaque,
    /// Redirect: the lower part of the directory has another path.
    Redirect,
}

impl OverlayXattr {
    fn name(self, xattrs: OverlayXattrs) -> &'static str {
        match (self, xattrs) {
            (OverlayXattr::Opaque, OverlayXattrs::Trusted) => "trusted.overlay.opaque",
            (OverlayXattr::Opaque, OverlayXattrs::User) => "user.overlay.opaque",
            (OverlayXattr::Redirect, OverlayXattrs::Trusted) => "trusted.overlay.redirect",
            (OverlayXattr::Redirect, OverlayXattrs::User) => "user.overlay.redirect",
        }
    }

    /// Its value, if it is set.
    pub fn get(self, directory: impl AsFd, xattrs: OverlayXattrs) -> io::Result<Option<Vec<u8>>> {
        attribute(directory, self.name(xattrs))
    }

    /// Sets it.
    pub fn set(self, directory: impl AsFd, xattrs: OverlayXattrs, value: &[u8]) -> io::Result<()> {
        failpoints::change()?;
        Ok(fsetxattr(directory, self.name(xattrs), value, XattrFlags::empty())?)
    }

    /// Removes it.
    pub fn remove(self, directory: impl AsFd, xattrs: OverlayXattrs) -> io::Result<()> {
        failpoints::change()?;
        match fremovexattr(directory, self.name(xattrs)) {
            Ok(()) | Err(Errno::NODATA) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether a directory is opaque.
pub fn is_opaque(directory: impl AsFd, xattrs: OverlayXattrs) -> io::Result<bool> {
    Ok(OverlayXattr::Opaque.get(directory, xattrs)?.is_some_and(|value| value == b"y"))
}

fn attribute(file: impl AsFd, name: &str) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
    match fgetxattr(file, name, value.as_mut_slice()) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The attributes that are content: access control lists, and `user.*` without those of overlayfs.
pub fn attributes(file: impl AsFd) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut names = vec![0; ATTRIBUTE_BYTES_MAX];
    let length = match flistxattr(&file, names.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0) {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        if is_content(name)
            && let Some(value) = attribute(&file, name)?
        {
            found.push((name.to_owned(), value));
        }
    }
    found.sort();
    Ok(found)
}

fn is_content(name: &str) -> bool {
    ACLS.contains(&name) || name.starts_with("user.") && !name.starts_with("user.overlay.")
}

/// Replaces the attributes of an open file. It may have inherited some from its directory.
fn make_attributes(wanted: &[(String, Vec<u8>)], to: impl AsFd) -> io::Result<()> {
    for (name, _) in attributes(&to)? {
        if !wanted.iter().any(|(other, _)| *other == name) {
            fremovexattr(&to, &name)?;
        }
    }
    wanted.iter().try_for_each(|(name, value)| Ok(fsetxattr(&to, name, value, XattrFlags::empty())?))
}

/// Copies owner, mode, attributes and times to an open file. Times last, because the rest changes them.
pub fn copy_attributes(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let stat = fstat(&from)?;
    failpoints::change()?;
    fchown(&to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    make_attributes(&attributes(&from)?, &to)?;
    // Setting or removing an access control list may change the mode.
    fchmod(&to, Mode::from_raw_mode(stat.st_mode))?;
    Ok(futimens(&to, &times(&stat))?)
}

/// Restores the times of a directory.
pub fn set_times(directory: impl AsFd, stat: &Stat) -> io::Result<()> {
    Ok(futimens(directory, &times(stat))?)
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

/// Creates a directory; the caller fills it, then calls [`copy_attributes`].
pub fn make_directory(to: impl AsFd, name: &CStr, depth: usize) -> io::Result<OwnedFd> {
    failpoints::change()?;
    match mkdirat(&to, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    inner(to, name, depth)
}

/// Hard-links `from/name` (no directory) to `to/name`, since sealed layers may share files. Copies it if it has too
/// many links or is on another file system.
pub fn link_or_copy(from: impl AsFd, name: &CStr, stat: &Stat, to: impl AsFd) -> io::Result<()> {
    failpoints::change()?;
    match linkat(&from, name, &to, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(Errno::MLINK | Errno::XDEV | Errno::PERM) => copy(from, name, stat, to).map(|_| ()),
        Err(error) => Err(error.into()),
    }
}

/// Copies `from/name` (no directory) to `to/name`. Returns false for a device or socket.
pub fn copy(from: impl AsFd, name: &CStr, stat: &Stat, to: impl AsFd) -> io::Result<bool> {
    failpoints::change()?;
    match kind(stat) {
        FileType::RegularFile => {
            // If it was replaced by a pipe, opening it must not block.
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let source = File::from(openat(from, name, flags, Mode::empty())?);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let target = File::from(openat(to, name, flags, Mode::RUSR | Mode::WUSR)?);
            copy_content(&source, &target)?;
            copy_attributes(&source, &target)?;
        }
        FileType::Symlink => {
            let target = readlinkat(&from, name, Vec::new())?;
            symlinkat(target, &to, name)?;
            own(&to, name, stat)?;
            utimensat(&to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        FileType::Fifo => {
            mknodat(&to, name, FileType::Fifo, Mode::RUSR, 0)?;
            own(&to, name, stat)?;
            copy_list(&from, &to, name)?;
            chmodat(&to, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
            utimensat(&to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        _ if is_whiteout(stat) => whiteout(to, name)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// Copies the access control list of a special file, which is not opened.
fn copy_list(from: impl AsFd, to: impl AsFd, name: &CStr) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let from = openat(from, name, flags, Mode::empty())?;
    let to = openat(to, name, flags, Mode::empty())?;
    let path = |file: &OwnedFd| format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
    let done = match getxattr(path(&from), ACLS[0], value.as_mut_slice()) {
        Ok(length) => setxattr(path(&to), ACLS[0], &value[..length], XattrFlags::empty()),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => removexattr(path(&to), ACLS[0]),
        Err(error) => Err(error),
    };
    match done {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        done => Ok(done?),
    }
}

fn own(directory: impl AsFd, name: &CStr, stat: &Stat) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    Ok(chownat(directory, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Copies data and keeps holes.
fn copy_content(source: &File, target: &File) -> io::Result<()> {
    // Flushes stores through mappings, so that the kernel notices the next one and updates the change time.
    source.sync_data()?;
    let size = source.metadata()?.len();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(source, SeekFrom::Hole(start))?.min(size);
        let (mut from, mut to) = (start, start);
        while from < end {
            let length = usize::try_from(end - from).unwrap_or(usize::MAX);
            if copy_file_range(source, Some(&mut from), target, Some(&mut to), length)? == 0 {
                break;
            }
        }
        at = end.max(start + 1);
    }
    target.set_len(size)
}
