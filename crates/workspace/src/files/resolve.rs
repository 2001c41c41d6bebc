//! Resolves paths as a process in the container would, but never out of the workspace.
//!
//! Each component is opened beneath its parent, so the kernel follows no link and no `..`. Links are followed here;
//! an absolute target starts at the container's `/`, where only `workspace` exists.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use raworc_core::link::WORKSPACE_PATH;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::fs::{fstat, mkdirat, openat2, readlinkat};
use rustix::io::Errno;

use super::Owner;
use crate::error::FileError;

/// Links followed per path (as in Linux: path_resolution(7)).
const LINKS_MAX: usize = 40;
/// Components visited per path, including those of links.
const STEPS_MAX: usize = 16 * 1024;
/// How often one component is retried while it is being renamed.
const STEP_TRIES: u32 = 16;
/// Longest path for one system call, in bytes.
const CALL_BYTES_MAX: usize = 4000;
/// Resolution stays beneath the start directory, but may cross mounts.
pub(super) const BELOW: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
/// Resolution stays beneath the start directory and on its mount.
pub(super) const BENEATH: ResolveFlags = BELOW.union(ResolveFlags::NO_XDEV);
/// Opens a handle (`O_PATH`) to an entry of any type, without opening it, so nothing blocks.
pub(super) const HANDLE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A handle to an entry.
#[derive(Debug)]
pub(super) struct EntryHandle {
    pub(super) handle: OwnedFd,
    pub(super) stat: Stat,
}

impl EntryHandle {
    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

/// The result of resolving a path: the parent directory, the name and the entry if it exists.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) directory: OwnedFd,
    /// `.` for the root, and for a link whose target ends in `..`.
    pub(super) name: Vec<u8>,
    pub(super) node: Option<EntryHandle>,
}

/// Options for resolving a path.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ResolveOptions {
    /// Whether the last component is followed if it is a link.
    pub(super) follow: bool,
    /// Creates missing directories, owned by this owner.
    pub(super) make: Option<Owner>,
}

/// Checks a path and strips slashes at both ends.
pub(super) fn check_path(path: &[u8]) -> Result<&[u8], FileError> {
    let is_slash = |byte: &u8| *byte == b'/';
    let start = path.iter().position(|byte| !is_slash(byte)).unwrap_or(path.len());
    let end = path.iter().rposition(|byte| !is_slash(byte)).map_or(start, |last| last + 1);
    let trimmed = &path[start..end];
    if trimmed.contains(&0) {
        return Err(FileError::BadPath("the path contains a NUL byte"));
    }
    if trimmed.split(is_slash).any(|name| name == b"..") {
        return Err(FileError::BadPath("'..' is not allowed in a path: give it from the workspace down"));
    }
    Ok(trimmed)
}

/// Checks a path that must not be the root.
pub(super) fn check_name(path: &[u8]) -> Result<&[u8], FileError> {
    let path = check_path(path)?;
    match path.rsplit(|byte| *byte == b'/').next() {
        None | Some(b"" | b".") => {
            Err(FileError::BadPath("the path names no file: it must not be empty or end in '.'"))
        }
        Some(_) => Ok(path),
    }
}

/// Opens a subdirectory without following links.
pub(super) fn open_beneath(at: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    open_within(at, name, flags, BENEATH)
}

/// Opens an entry within the limits of `reach`.
pub(super) fn open_within(
    at: BorrowedFd<'_>,
    name: &[u8],
    flags: OFlags,
    reach: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let mut tries = 0;
    loop {
        match openat2(at, name, flags | OFlags::CLOEXEC, Mode::empty(), reach) {
            // A rename made the result uncertain; openat2(2) says to try again.
            Err(Errno::AGAIN) if tries < STEP_TRIES => tries += 1,
            outcome => return outcome,
        }
    }
}

/// Opens the directory at a path of any length, without following links.
pub(super) fn descend(root: BorrowedFd<'_>, path: &[u8], reach: ResolveFlags) -> Result<OwnedFd, FileError> {
    let (mut at, mut rest) = (clone(root)?, path);
    while !rest.is_empty() {
        let is_long = rest.len() > CALL_BYTES_MAX;
        let cut = rest[..rest.len().min(CALL_BYTES_MAX)].iter().rposition(|byte| *byte == b'/').filter(|_| is_long);
        let (head, tail) = cut.map_or((rest, &b""[..]), |cut| (&rest[..cut], &rest[cut + 1..]));
        at = open_within(at.as_fd(), head, HANDLE | OFlags::DIRECTORY, reach)?;
        rest = tail;
    }
    Ok(open_within(at.as_fd(), b".", OFlags::RDONLY | OFlags::DIRECTORY, reach)?)
}

/// A handle to an entry, or `None`.
pub(super) fn lookup(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Option<EntryHandle>, FileError> {
    lookup_within(directory, name, BENEATH)
}

/// As [`lookup`], within the limits of `reach`.
pub(super) fn lookup_within(
    directory: BorrowedFd<'_>,
    name: &[u8],
    reach: ResolveFlags,
) -> Result<Option<EntryHandle>, FileError> {
    match open_within(directory, name, HANDLE, reach) {
        Ok(handle) => Ok(Some(EntryHandle { stat: fstat(&handle)?, handle })),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Creates a directory unless it exists, and opens it within the limits of `reach`.
pub(super) fn make_directory(
    at: BorrowedFd<'_>,
    name: &[u8],
    owner: Owner,
    reach: ResolveFlags,
) -> Result<OwnedFd, FileError> {
    let mode = Mode::from_raw_mode(0o755);
    let is_new = match mkdirat(at, name, mode) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(error) => return Err(error.into()),
    };
    let made = open_within(at, name, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW, reach)?;
    if is_new {
        owner.set_owner(&made)?;
        rustix::fs::fchmod(&made, mode)?;
    }
    Ok(made)
}

/// Resolves `path` from `root`.
pub(super) fn resolve(root: BorrowedFd<'_>, path: &[u8], manner: ResolveOptions) -> Result<Place, FileError> {
    let mut walker =
        PathWalker { root, current: clone(root)?, names: Vec::new(), is_above: false, left: Vec::new(), links: 0 };
    walker.push(path, true);
    for _ in 0..STEPS_MAX {
        let Some((name, is_asked)) = walker.left.pop() else { return walker.into_place() };
        if let Some(place) = walker.step(name, is_asked, manner)? {
            return Ok(place);
        }
    }
    Err(FileError::BadPath("the path and the links on it have too many names"))
}

fn clone(fd: BorrowedFd<'_>) -> Result<OwnedFd, FileError> {
    Ok(fd.try_clone_to_owned()?)
}

struct PathWalker<'a> {
    root: BorrowedFd<'a>,
    current: OwnedFd,
    /// The components from the root to `current`; none was a link.
    names: Vec<Vec<u8>>,
    /// We are at the container's `/`, the parent of the workspace.
    is_above: bool,
    /// Remaining components in reverse, each with whether it comes from the caller's path.
    left: Vec<(Vec<u8>, bool)>,
    links: usize,
}

impl PathWalker<'_> {
    fn push(&mut self, path: &[u8], is_asked: bool) {
        let names = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
        let from = self.left.len();
        self.left.extend(names.map(|name| (name.to_vec(), is_asked)));
        self.left[from..].reverse();
    }

    /// Resolves one component. Returns the place if it was the last.
    fn step(&mut self, name: Vec<u8>, is_asked: bool, manner: ResolveOptions) -> Result<Option<Place>, FileError> {
        if name == b".." {
            self.ascend()?;
            return Ok(None);
        }
        if self.is_above {
            if name != WORKSPACE_PATH.trim_start_matches('/').as_bytes() {
                return Err(FileError::Outside);
            }
            (self.current, self.is_above) = (clone(self.root)?, false);
            self.names.clear();
            return Ok(None);
        }
        let is_last = self.left.is_empty();
        let node = lookup(self.current.as_fd(), &name)?;
        match &node {
            None if is_last => {}
            None => {
                let owner = manner.make.filter(|_| is_asked).ok_or(FileError::NotFound)?;
                self.current = make_directory(self.current.as_fd(), &name, owner, BENEATH)?;
                self.names.push(name);
                return Ok(None);
            }
            Some(node) if node.kind() == FileType::Symlink && (manner.follow || !is_last) => {
                self.follow(&readlinkat(&node.handle, "", Vec::new())?.into_bytes())?;
                return Ok(None);
            }
            Some(_) if is_last => {}
            Some(found) if found.kind() == FileType::Directory => {
                self.names.push(name);
                if let Some(node) = node {
                    self.current = node.handle;
                }
                return Ok(None);
            }
            Some(_) => return Err(Errno::NOTDIR.into()),
        }
        let directory = std::mem::replace(&mut self.current, clone(self.root)?);
        Ok(Some(Place { directory, name, node }))
    }

    fn follow(&mut self, target: &[u8]) -> Result<(), FileError> {
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(FileError::Loop);
        }
        self.is_above |= target.starts_with(b"/");
        self.push(target, false);
        Ok(())
    }

    fn ascend(&mut self) -> Result<(), FileError> {
        // The parent of `/` is `/`.
        if self.is_above {
            return Ok(());
        }
        self.is_above = self.names.pop().is_none();
        // Reopened by path: `..` would lead to where the directory was moved.
        self.current = match self.names.join(&b'/').as_slice() {
            b"" => clone(self.root)?,
            names => open_beneath(self.root, names, HANDLE | OFlags::DIRECTORY)?,
        };
        Ok(())
    }

    /// The place of a path without a last component.
    fn into_place(self) -> Result<Place, FileError> {
        if self.is_above {
            return Err(FileError::Outside);
        }
        let node = EntryHandle { stat: fstat(&self.current)?, handle: clone(self.current.as_fd())? };
        Ok(Place { directory: self.current, name: b".".to_vec(), node: Some(node) })
    }
}
