//! One entry of a directory: looking at it, copying it, linking to it.

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

use super::{DEPTH_MAX, Marks, TooDeep};
use crate::steps;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// The most that the names, or one value, of extended attributes take (Linux, `XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const ATTRIBUTE_BYTES_MAX: usize = 64 << 10;
/// Access control lists: of what has it, and of what is made in a directory.
const ACLS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];

/// Opens a directory by its path.
pub fn root(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, DIRECTORY - OFlags::NOFOLLOW, Mode::empty())?)
}

/// Opens a directory in another, which is `depth` levels down.
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

/// What is called `name`, if anything is.
pub fn look(directory: impl AsFd, name: &CStr) -> io::Result<Option<Stat>> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Its type.
pub fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Whether it says that a name is deleted from below.
pub fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Makes one.
pub fn whiteout(directory: impl AsFd, name: &CStr) -> io::Result<()> {
    steps::change()?;
    Ok(mknodat(directory, name, FileType::CharacterDevice, Mode::empty(), 0)?)
}

/// A mark of overlayfs on a directory.
#[derive(Clone, Copy, Debug)]
pub enum Mark {
    /// It hides what is below it.
    Opaque,
    /// What is below it is found elsewhere.
    Redirect,
}

impl Mark {
    fn name(self, marks: Marks) -> &'static str {
        match (self, marks) {
            (Mark::Opaque, Marks::Trusted) => "trusted.overlay.opaque",
            (Mark::Opaque, Marks::User) => "user.overlay.opaque",
            (Mark::Redirect, Marks::Trusted) => "trusted.overlay.redirect",
            (Mark::Redirect, Marks::User) => "user.overlay.redirect",
        }
    }

    /// Its value, if the directory has it.
    pub fn get(self, directory: impl AsFd, marks: Marks) -> io::Result<Option<Vec<u8>>> {
        attribute(directory, self.name(marks))
    }

    /// Gives it to a directory.
    pub fn set(self, directory: impl AsFd, marks: Marks, value: &[u8]) -> io::Result<()> {
        steps::change()?;
        Ok(fsetxattr(directory, self.name(marks), value, XattrFlags::empty())?)
    }

    /// Takes it away.
    pub fn remove(self, directory: impl AsFd, marks: Marks) -> io::Result<()> {
        steps::change()?;
        match fremovexattr(directory, self.name(marks)) {
            Ok(()) | Err(Errno::NODATA) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether a directory hides what is below it.
pub fn is_opaque(directory: impl AsFd, marks: Marks) -> io::Result<bool> {
    Ok(Mark::Opaque.get(directory, marks)?.is_some_and(|value| value == b"y"))
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

/// The extended attributes that are content: `user.*` without the marks of overlayfs, and access control lists.
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

/// Makes the attributes of an open file those of another. It may have inherited some from the directory it was made in.
fn make_attributes(wanted: &[(String, Vec<u8>)], to: impl AsFd) -> io::Result<()> {
    for (name, _) in attributes(&to)? {
        if !wanted.iter().any(|(other, _)| *other == name) {
            fremovexattr(&to, &name)?;
        }
    }
    wanted.iter().try_for_each(|(name, value)| Ok(fsetxattr(&to, name, value, XattrFlags::empty())?))
}

/// Makes the owner, mode, attributes and times of an open file those of another. Times last: the rest changes them.
pub fn copy_attributes(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let stat = fstat(&from)?;
    steps::change()?;
    fchown(&to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    make_attributes(&attributes(&from)?, &to)?;
    // Taking a list away may change the mode, and so may giving one.
    fchmod(&to, Mode::from_raw_mode(stat.st_mode))?;
    Ok(futimens(&to, &times(&stat))?)
}

/// Makes the times of a directory those that it had.
pub fn set_times(directory: impl AsFd, stat: &Stat) -> io::Result<()> {
    Ok(futimens(directory, &times(stat))?)
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

/// Makes a directory that is to become like `like`; whoever has filled it calls [`copy_attributes`].
pub fn make_directory(to: impl AsFd, name: &CStr, depth: usize) -> io::Result<OwnedFd> {
    steps::change()?;
    match mkdirat(&to, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    inner(to, name, depth)
}

/// Links `to/name` to what is `from/name` (no directory): layers never change, so they may share it. Where a file has as many
/// names as it can have, or is elsewhere, it is copied.
pub fn link_or_copy(from: impl AsFd, name: &CStr, stat: &Stat, to: impl AsFd) -> io::Result<()> {
    steps::change()?;
    match linkat(&from, name, &to, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(Errno::MLINK | Errno::XDEV | Errno::PERM) => copy(from, name, stat, to).map(|_| ()),
        Err(error) => Err(error.into()),
    }
}

/// Copies what is `from/name` (no directory) to `to/name`. False where it is something that is not kept: a device, a socket.
pub fn copy(from: impl AsFd, name: &CStr, stat: &Stat, to: impl AsFd) -> io::Result<bool> {
    steps::change()?;
    match kind(stat) {
        FileType::RegularFile => {
            // It may have become something else meanwhile that opening would wait for.
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

/// Copies the access control list of what is neither file nor directory nor link, and is not opened.
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

/// Copies data, and leaves holes where there are holes.
fn copy_content(source: &File, target: &File) -> io::Result<()> {
    // What was stored through a mapping is written back first: the kernel then takes note of the next store to it, and
    // the file's change time tells that there was one.
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
