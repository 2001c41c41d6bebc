//! Writing and removing files of a workspace.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::fs::{fchmod, renameat_with, unlinkat};
use rustix::fs::{fgetxattr, flistxattr, fsetxattr, fsync, futimens, linkat, openat, renameat};
use rustix::io::Errno;
use uuid::Uuid;

use super::resolve::{Place, ResolveOptions, check_name, open_beneath, resolve};
use super::{Present, Version, Workspace};
use crate::FileError;
use crate::trash::BURY_FAILURES_MAX;

/// How often a file is put in its place while a process in the container keeps making and removing its name.
pub(super) const PLACE_TRIES: u32 = 16;
/// The attributes of a file that its successor keeps, all names or one value, in bytes (Linux: `XATTR_LIST_MAX`).
const ATTRIBUTE_BYTES_MAX: usize = 64 * 1024;
/// Permission bits of a new file.
const MODE_DEFAULT: u32 = 0o644;
/// What an access control list is kept as.
const ACCESS_LIST: &[u8] = b"system.posix_acl_access";

/// How a file is written.
pub struct Write<'a> {
    /// Whether a link is written through, to what it leads to; or replaced.
    pub follow: bool,
    /// The permission bits; without them, those of the file that is replaced.
    pub mode: Option<u32>,
    /// Most bytes.
    pub bytes_max: u64,
    /// Whether it may be done, by what is there now.
    pub allows: Allows<'a>,
}

/// Whether something may be done, by what is there.
pub type Allows<'a> = &'a dyn Fn(Option<&Present<'_>>) -> Result<bool, FileError>;

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// There was none before.
    pub is_new: bool,
    /// What it is now.
    pub version: Version,
}

impl Workspace {
    /// Writes what `content` yields to the file at `path`, which appears whole or not at all; directories on the way are made.
    ///
    /// # Errors
    /// [`FileError::TooLarge`] where there is more than allowed, [`FileError::Stale`] where it is not what the caller expects.
    /// Then nothing changed.
    pub fn write(&self, path: &[u8], content: &mut dyn Read, how: &Write<'_>) -> Result<Written, FileError> {
        let path = check_name(path)?;
        // Before directories are made for it.
        let place = match resolve(self.root(), path, ResolveOptions { follow: how.follow, make: None }) {
            Err(FileError::NotFound) => None,
            outcome => Some(outcome?),
        };
        self.allow(place.as_ref(), how)?;
        let manner = ResolveOptions { follow: how.follow, make: Some(self.owner) };
        let mut filled = None;
        for _ in 0..PLACE_TRIES {
            let place = resolve(self.root(), path, manner)?;
            self.allow(Some(&place), how)?;
            let mut new = match filled.take() {
                Some(new) => new,
                None => New::fill(place.directory.as_fd(), content, how.bytes_max)?,
            };
            match self.put(&mut new, &place, how.mode) {
                // Somebody inside made the name, or moved the directory away: what is there now is looked at again.
                Err(FileError::Io(error)) if error.kind() == io::ErrorKind::AlreadyExists => filled = Some(new),
                Err(error) => return Err(error),
                Ok(()) => {
                    let version = Version::of(&new.file)?;
                    return Ok(Written { is_new: place.node.is_none(), version });
                }
            }
        }
        Err(FileError::WrongKind("a process in the container keeps changing what is at this path"))
    }

    fn allow(&self, place: Option<&Place>, how: &Write<'_>) -> Result<(), FileError> {
        let node = place.and_then(|place| place.node.as_ref());
        match node.map(super::resolve::Node::kind) {
            Some(FileType::Directory) => return Err(FileError::WrongKind("it is a directory")),
            None | Some(FileType::RegularFile | FileType::Symlink) => {}
            Some(_) => return Err(FileError::WrongKind("it is a pipe, a socket or a device; delete it first")),
        }
        let present = place.and_then(Present::at);
        if (how.allows)(present.as_ref())? { Ok(()) } else { Err(FileError::Stale) }
    }

    /// Gives a file that is written whole its owner, its permissions and its name.
    fn put(&self, new: &mut New, place: &Place, mode: Option<u32>) -> Result<(), FileError> {
        self.owner.give(&new.file)?;
        let before = place.node.as_ref().filter(|node| node.kind() == FileType::RegularFile);
        if before.is_some() {
            keep_attributes(place, &new.file)?;
        }
        let mode = mode.or_else(|| before.map(|node| node.stat.st_mode & 0o7777)).unwrap_or(MODE_DEFAULT);
        fchmod(&new.file, Mode::from_raw_mode(mode))?;
        fsync(&new.file)?;
        new.appear(place.directory.as_fd(), &place.name, place.node.is_some())?;
        Ok(fsync(open_beneath(place.directory.as_fd(), b".", OFlags::DIRECTORY | OFlags::RDONLY)?)?)
    }

    /// Removes the file, link or directory (with all that is in it) at `path`; of a link, the link itself.
    ///
    /// # Errors
    /// Where there is nothing, or it is the workspace itself; [`FileError::Stale`] where it is not what the caller expects.
    pub fn remove(&self, path: &[u8], allows: Allows<'_>) -> Result<(), FileError> {
        let place = resolve(self.root(), check_name(path)?, ResolveOptions::default())?;
        let present = Present::at(&place).ok_or(FileError::NotFound)?;
        if !allows(Some(&present))? {
            return Err(FileError::Stale);
        }
        let name = CString::new(place.name).map_err(io::Error::from)?;
        match unlinkat(&place.directory, &name, AtFlags::empty()) {
            Err(Errno::ISDIR) => take_down(place.directory.as_fd(), &name)?,
            other => other?,
        }
        Ok(fsync(open_beneath(place.directory.as_fd(), b".", OFlags::DIRECTORY | OFlags::RDONLY)?)?)
    }
}

/// A file that is written and has no name yet; where the file system has no such files, one that nobody looks for.
pub(super) struct New {
    pub(super) file: File,
    /// Where it is, in such a file system.
    named: Option<(OwnedFd, String)>,
}

impl New {
    /// An empty one, for this directory or another of the same workspace.
    pub(super) fn create(directory: BorrowedFd<'_>) -> Result<Self, FileError> {
        let mode = Mode::RUSR | Mode::WUSR;
        match openat(directory, c".", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
            Ok(file) => return Ok(Self { file: file.into(), named: None }),
            // What file systems say that have no files without names (open(2), "O_TMPFILE").
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
        let name = temporary_name();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(directory, name.as_str(), flags, mode)?);
        Ok(Self { file, named: Some((directory.try_clone_to_owned()?, name)) })
    }

    /// One that has what `content` yields.
    fn fill(directory: BorrowedFd<'_>, content: &mut dyn Read, bytes_max: u64) -> Result<Self, FileError> {
        let mut new = Self::create(directory)?;
        let written = io::copy(&mut content.take(bytes_max.saturating_add(1)), &mut new.file)?;
        if written > bytes_max {
            return Err(FileError::TooLarge);
        }
        new.file.flush()?;
        // Finer than the clock of the file system: who writes twice in one of its ticks sees two times.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = Timespec { tv_sec: now.as_secs().cast_signed(), tv_nsec: now.subsec_nanos().into() };
        futimens(&new.file, &Timestamps { last_access: now, last_modification: now })?;
        Ok(new)
    }

    /// Gives it its name, in place of what has that name. A name that is new is the first that anybody sees of the file;
    /// to replace one takes a second name for a moment, since a link cannot take another's place.
    ///
    /// # Errors
    /// `EEXIST` where it was to be new and is not.
    pub(super) fn appear(&mut self, directory: BorrowedFd<'_>, name: &[u8], replaces: bool) -> Result<(), FileError> {
        if let Some((at, temporary)) = &self.named {
            let flags = if replaces { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
            renameat_with(at, temporary.as_str(), directory, name, flags)?;
            self.named = None;
            return Ok(());
        }
        if !replaces {
            return Ok(self.link(directory, name)?);
        }
        let temporary = temporary_name();
        self.link(directory, temporary.as_bytes())?;
        let outcome = renameat(directory, temporary.as_str(), directory, name);
        if outcome.is_err() {
            let _ = unlinkat(directory, temporary.as_str(), AtFlags::empty());
        }
        Ok(outcome?)
    }

    fn link(&self, directory: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        match linkat(&self.file, c"", directory, name, AtFlags::EMPTY_PATH) {
            // It takes a capability that a server without root does not have everywhere; this way takes none (open(2)).
            Err(Errno::NOENT | Errno::PERM) => {
                let itself = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                linkat(CWD, itself.as_str(), directory, name, AtFlags::SYMLINK_FOLLOW)
            }
            outcome => outcome,
        }
    }
}

impl Drop for New {
    fn drop(&mut self) {
        if let Some((directory, name)) = &self.named {
            let _ = unlinkat(directory, name.as_str(), AtFlags::empty());
        }
    }
}

pub(super) fn temporary_name() -> String {
    format!(".raworc-{}", Uuid::new_v4().simple())
}

/// What a process inside has attached to a file stays with the one that takes its place.
fn keep_attributes(place: &Place, new: &File) -> Result<(), FileError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let before = match open_beneath(place.directory.as_fd(), &place.name, flags) {
        Ok(before) => before,
        // It is gone; then there is nothing to keep.
        Err(_) => return Ok(()),
    };
    let mut list = vec![0; ATTRIBUTE_BYTES_MAX];
    let Ok(count) = flistxattr(&before, &mut list[..]) else { return Ok(()) };
    let is_kept = |name: &&[u8]| name.starts_with(b"user.") || *name == ACCESS_LIST;
    for name in list[..count].split(|byte| *byte == 0).filter(is_kept) {
        let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
        let Ok(count) = fgetxattr(&before, name, &mut value[..]) else { continue };
        match fsetxattr(new, name, &value[..count], XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Removes the directory `name` with all that is in it, in place, however deep it is: one directory is open at any time.
/// Others may change it meanwhile; should they move it about, it is left, since the way back up may lead elsewhere then.
fn take_down(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |at: BorrowedFd<'_>, name: &CStr| openat(at, name, flags, Mode::empty());
    let identity = |directory: &OwnedFd| rustix::fs::fstat(directory).map(|stat| (stat.st_dev, stat.st_ino));
    let mut at = open(parent, c".")?;
    // From `parent` down: which directory that is, and what in it is still to be removed.
    let mut way = vec![(identity(&at)?, vec![name.to_owned()])];
    let mut failures = 0;
    while let Some((_, left)) = way.last_mut() {
        if let Some(name) = left.last() {
            at = open(at.as_fd(), name)?;
            let inner = empty_but_directories(&at)?;
            way.push((identity(&at)?, inner));
            continue;
        }
        way.pop();
        let Some((above, left)) = way.last_mut() else { break };
        at = open(at.as_fd(), c"..")?;
        if identity(&at)? != *above {
            return Err(io::Error::other("the directory was moved while it was removed"));
        }
        let Some(name) = left.pop() else { break };
        match unlinkat(&at, &name, AtFlags::REMOVEDIR) {
            // Someone adds to it: again, but not for ever.
            Err(rustix::io::Errno::NOTEMPTY) if failures < BURY_FAILURES_MAX => {
                failures += 1;
                left.push(name);
            }
            other => other?,
        }
    }
    Ok(())
}

/// Removes everything in a directory but directories, whose names it returns.
fn empty_but_directories(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match unlinkat(directory, name, AtFlags::empty()) {
            Err(rustix::io::Errno::ISDIR) => found.push(name.to_owned()),
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}
