//! Writes and removes files of a workspace.

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
use super::{ExistingEntry, Version, Workspace};
use crate::error::FileError;
use crate::trash::REMOVE_FAILURES_MAX;

/// How often placing a file is retried while a process in the container keeps changing its name.
pub(super) const PLACE_TRIES: u32 = 16;
/// Attributes copied to a replacement file: all names or one value, in bytes (Linux: `XATTR_LIST_MAX`).
const ATTRIBUTE_BYTES_MAX: usize = 64 * 1024;
/// Permission bits of a new file.
const MODE_DEFAULT: u32 = 0o644;
/// The attribute of an access control list.
const ACCESS_LIST: &[u8] = b"system.posix_acl_access";

/// How a file is written.
pub struct WriteOptions<'a> {
    /// Whether a link is followed; otherwise it is replaced.
    pub follow: bool,
    /// Permission bits; `None` keeps those of the file that is replaced.
    pub mode: Option<u32>,
    /// Maximum size in bytes.
    pub bytes_max: u64,
    /// The precondition of the write.
    pub allows: Precondition<'a>,
}

/// Decides whether a change is allowed, given the existing entry.
pub type Precondition<'a> = &'a dyn Fn(Option<&ExistingEntry<'_>>) -> Result<bool, FileError>;

/// The result of writing a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteResult {
    /// The file did not exist before.
    pub is_new: bool,
    /// Its new version.
    pub version: Version,
}

impl Workspace {
    /// Writes `content` to the file at `path` atomically. Missing directories are created.
    ///
    /// # Errors
    /// [`FileError::TooLarge`] for more than `bytes_max`, [`FileError::Stale`] if the precondition fails. Nothing is
    /// changed then.
    pub fn write(&self, path: &[u8], content: &mut dyn Read, how: &WriteOptions<'_>) -> Result<WriteResult, FileError> {
        let path = check_name(path)?;
        // Checked before any directory is created.
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
                None => TemporaryFile::fill(place.directory.as_fd(), content, how.bytes_max)?,
            };
            match self.place_file(&mut new, &place, how.mode) {
                // A process in the container made the name or moved the directory: check again.
                Err(FileError::Io(error)) if error.kind() == io::ErrorKind::AlreadyExists => filled = Some(new),
                Err(error) => return Err(error),
                Ok(()) => {
                    let version = Version::of(&new.file)?;
                    return Ok(WriteResult { is_new: place.node.is_none(), version });
                }
            }
        }
        Err(FileError::WrongKind("a process in the container keeps changing what is at this path"))
    }

    fn allow(&self, place: Option<&Place>, how: &WriteOptions<'_>) -> Result<(), FileError> {
        let node = place.and_then(|place| place.node.as_ref());
        match node.map(super::resolve::EntryHandle::kind) {
            Some(FileType::Directory) => return Err(FileError::WrongKind("it is a directory")),
            None | Some(FileType::RegularFile | FileType::Symlink) => {}
            Some(_) => return Err(FileError::WrongKind("it is a pipe, a socket or a device; delete it first")),
        }
        let present = place.and_then(ExistingEntry::at);
        if (how.allows)(present.as_ref())? { Ok(()) } else { Err(FileError::Stale) }
    }

    /// Sets owner and permissions of a complete file and renames it into place.
    fn place_file(&self, new: &mut TemporaryFile, place: &Place, mode: Option<u32>) -> Result<(), FileError> {
        self.owner.set_owner(&new.file)?;
        let before = place.node.as_ref().filter(|node| node.kind() == FileType::RegularFile);
        if before.is_some() {
            keep_attributes(place, &new.file)?;
        }
        let mode = mode.or_else(|| before.map(|node| node.stat.st_mode & 0o7777)).unwrap_or(MODE_DEFAULT);
        fchmod(&new.file, Mode::from_raw_mode(mode))?;
        fsync(&new.file)?;
        new.link_into(place.directory.as_fd(), &place.name, place.node.is_some())?;
        Ok(fsync(open_beneath(place.directory.as_fd(), b".", OFlags::DIRECTORY | OFlags::RDONLY)?)?)
    }

    /// Removes the file, link or directory (recursively) at `path`. A link is not followed.
    ///
    /// # Errors
    /// If there is none or it is the root; [`FileError::Stale`] if the precondition fails.
    pub fn remove(&self, path: &[u8], allows: Precondition<'_>) -> Result<(), FileError> {
        let place = resolve(self.root(), check_name(path)?, ResolveOptions::default())?;
        let present = ExistingEntry::at(&place).ok_or(FileError::NotFound)?;
        if !allows(Some(&present))? {
            return Err(FileError::Stale);
        }
        let name = CString::new(place.name).map_err(io::Error::from)?;
        match unlinkat(&place.directory, &name, AtFlags::empty()) {
            Err(Errno::ISDIR) => remove_tree(place.directory.as_fd(), &name)?,
            other => other?,
        }
        Ok(fsync(open_beneath(place.directory.as_fd(), b".", OFlags::DIRECTORY | OFlags::RDONLY)?)?)
    }
}

/// A file without a name (`O_TMPFILE`), or with a temporary name if the file system has no such files.
pub(super) struct TemporaryFile {
    pub(super) file: File,
    /// Directory and temporary name, if it has one.
    named: Option<(OwnedFd, String)>,
}

impl TemporaryFile {
    /// Creates an empty file for any directory of the same workspace.
    pub(super) fn create(directory: BorrowedFd<'_>) -> Result<Self, FileError> {
        let mode = Mode::RUSR | Mode::WUSR;
        match openat(directory, c".", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
            Ok(file) => return Ok(Self { file: file.into(), named: None }),
            // Errors of file systems without `O_TMPFILE` (open(2)).
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
        let name = temporary_name();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(directory, name.as_str(), flags, mode)?);
        Ok(Self { file, named: Some((directory.try_clone_to_owned()?, name)) })
    }

    /// Creates a file with the data from `content`.
    fn fill(directory: BorrowedFd<'_>, content: &mut dyn Read, bytes_max: u64) -> Result<Self, FileError> {
        let mut new = Self::create(directory)?;
        let written = io::copy(&mut content.take(bytes_max.saturating_add(1)), &mut new.file)?;
        if written > bytes_max {
            return Err(FileError::TooLarge);
        }
        new.file.flush()?;
        // The file system's clock is coarse; this time tells two writes apart.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = Timespec { tv_sec: now.as_secs().cast_signed(), tv_nsec: now.subsec_nanos().into() };
        futimens(&new.file, &Timestamps { last_access: now, last_modification: now })?;
        Ok(new)
    }

    /// Gives the file its name. A new name is linked atomically; replacing a file needs a temporary name first,
    /// because a link cannot replace a file.
    ///
    /// # Errors
    /// `EEXIST` if `replaces` is false and the name exists.
    pub(super) fn link_into(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        replaces: bool,
    ) -> Result<(), FileError> {
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
            // Linking by handle needs a capability that a rootless server may lack; this way needs none (open(2)).
            Err(Errno::NOENT | Errno::PERM) => {
                let itself = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                linkat(CWD, itself.as_str(), directory, name, AtFlags::SYMLINK_FOLLOW)
            }
            outcome => outcome,
        }
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if let Some((directory, name)) = &self.named {
            let _ = unlinkat(directory, name.as_str(), AtFlags::empty());
        }
    }
}

pub(super) fn temporary_name() -> String {
    format!(".raworc-{}", Uuid::new_v4().simple())
}

/// Copies the attributes of the file that is replaced.
fn keep_attributes(place: &Place, new: &File) -> Result<(), FileError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let before = match open_beneath(place.directory.as_fd(), &place.name, flags) {
        Ok(before) => before,
        // The file is gone, so there is nothing to copy.
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

/// Removes the directory `name` recursively, with one open directory at any depth. If someone moves it meanwhile, the
/// rest is left.
fn remove_tree(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |at: BorrowedFd<'_>, name: &CStr| openat(at, name, flags, Mode::empty());
    let identity = |directory: &OwnedFd| rustix::fs::fstat(directory).map(|stat| (stat.st_dev, stat.st_ino));
    let mut at = open(parent, c".")?;
    // From `parent` down: the identity of each directory and the names still to remove.
    let mut stack = vec![(identity(&at)?, vec![name.to_owned()])];
    let mut failures = 0;
    while let Some((_, left)) = stack.last_mut() {
        if let Some(name) = left.last() {
            at = open(at.as_fd(), name)?;
            let inner = empty_but_directories(&at)?;
            stack.push((identity(&at)?, inner));
            continue;
        }
        stack.pop();
        let Some((above, left)) = stack.last_mut() else { break };
        at = open(at.as_fd(), c"..")?;
        if identity(&at)? != *above {
            return Err(io::Error::other("the directory was moved while it was removed"));
        }
        let Some(name) = left.pop() else { break };
        match unlinkat(&at, &name, AtFlags::REMOVEDIR) {
            // Someone adds files: retry a bounded number of times.
            Err(rustix::io::Errno::NOTEMPTY) if failures < REMOVE_FAILURES_MAX => {
                failures += 1;
                left.push(name);
            }
            other => other?,
        }
    }
    Ok(())
}

/// Removes everything but directories, and returns their names.
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
