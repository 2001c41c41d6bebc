//! Paths of a workspace, resolved as a process in the container would, and never out of the workspace.
//!
//! Each name is opened by itself beneath the directory before it, so the kernel follows no link and no `..`. Links are
//! followed here: an absolute one begins at the container's `/`, where only `workspace` leads anywhere.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use raworc_core::link::WORKSPACE_PATH;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::fs::{fstat, mkdirat, openat2, readlinkat};
use rustix::io::Errno;

use super::Owner;
use crate::FileError;

/// Links followed on the way to one file (as Linux: path_resolution(7)).
const LINKS_MAX: usize = 40;
/// Names that are visited on the way to one file, those of links included.
const STEPS_MAX: usize = 16 * 1024;
/// How often a step is tried while someone keeps renaming what is on it.
const STEP_TRIES: u32 = 16;
/// Longest path that one system call takes, in bytes.
const CALL_BYTES_MAX: usize = 4000;
/// Nothing leads out of the directory that a step begins at, but what is mounted in it.
pub(super) const BELOW: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
/// Nothing leads out of the directory that a step begins at.
pub(super) const BENEATH: ResolveFlags = BELOW.union(ResolveFlags::NO_XDEV);
/// A handle to what has a name, whatever it is: nothing is opened, so nothing blocks.
pub(super) const HANDLE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Something that has a name.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) handle: OwnedFd,
    pub(super) stat: Stat,
}

impl Node {
    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

/// Where a path leads: a directory, a name in it, and what has that name.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) directory: OwnedFd,
    /// `.` for the workspace itself, and where a link leads to a directory by `..`.
    pub(super) name: Vec<u8>,
    pub(super) node: Option<Node>,
}

/// What is done on the way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ResolveOptions {
    /// Whether the last name is followed where it is a link.
    pub(super) follow: bool,
    /// Whether directories of the path that are missing are made, and whose they become.
    pub(super) make: Option<Owner>,
}

/// The path as it is used: without slashes at either end.
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

/// A path that has to name something in the workspace.
pub(super) fn check_name(path: &[u8]) -> Result<&[u8], FileError> {
    let path = check_path(path)?;
    match path.rsplit(|byte| *byte == b'/').next() {
        None | Some(b"" | b".") => {
            Err(FileError::BadPath("the path names no file: it must not be empty or end in '.'"))
        }
        Some(_) => Ok(path),
    }
}

/// Opens a directory that `at` has by this name; no link is followed.
pub(super) fn open_beneath(at: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    open_within(at, name, flags, BENEATH)
}

/// Opens what `at` has by this name, as far as `reach` lets it lead.
pub(super) fn open_within(
    at: BorrowedFd<'_>,
    name: &[u8],
    flags: OFlags,
    reach: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let mut tries = 0;
    loop {
        match openat2(at, name, flags | OFlags::CLOEXEC, Mode::empty(), reach) {
            // Something was renamed meanwhile and the kernel could not be sure; openat2(2) says to try again.
            Err(Errno::AGAIN) if tries < STEP_TRIES => tries += 1,
            outcome => return outcome,
        }
    }
}

/// The directory at a path of any length, without links, from `root`.
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

/// What has a name in a directory, or nothing.
pub(super) fn look(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Node>, FileError> {
    look_within(directory, name, BENEATH)
}

/// The same, as far as `reach` lets it lead.
pub(super) fn look_within(
    directory: BorrowedFd<'_>,
    name: &[u8],
    reach: ResolveFlags,
) -> Result<Option<Node>, FileError> {
    match open_within(directory, name, HANDLE, reach) {
        Ok(handle) => Ok(Some(Node { stat: fstat(&handle)?, handle })),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes a directory, if there is none, and opens it, as far as `reach` lets it lead.
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
        owner.give(&made)?;
        rustix::fs::fchmod(&made, mode)?;
    }
    Ok(made)
}

/// Where `path` leads, from `root`.
pub(super) fn resolve(root: BorrowedFd<'_>, path: &[u8], manner: ResolveOptions) -> Result<Place, FileError> {
    let mut way = Way { root, current: clone(root)?, names: Vec::new(), is_above: false, left: Vec::new(), links: 0 };
    way.push(path, true);
    for _ in 0..STEPS_MAX {
        let Some((name, is_asked)) = way.left.pop() else { return way.end() };
        if let Some(place) = way.step(name, is_asked, manner)? {
            return Ok(place);
        }
    }
    Err(FileError::BadPath("the path and the links on it have too many names"))
}

fn clone(fd: BorrowedFd<'_>) -> Result<OwnedFd, FileError> {
    Ok(fd.try_clone_to_owned()?)
}

struct Way<'a> {
    root: BorrowedFd<'a>,
    current: OwnedFd,
    /// The names from the root to `current`, none of which was a link.
    names: Vec<Vec<u8>>,
    /// We are at the container's `/`, the directory above the workspace.
    is_above: bool,
    /// What is still to go, the next one last, and whether the caller's path has it (or a link on it).
    left: Vec<(Vec<u8>, bool)>,
    links: usize,
}

impl Way<'_> {
    fn push(&mut self, path: &[u8], is_asked: bool) {
        let names = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
        let from = self.left.len();
        self.left.extend(names.map(|name| (name.to_vec(), is_asked)));
        self.left[from..].reverse();
    }

    /// Goes one name further; the place, where that was the last.
    fn step(&mut self, name: Vec<u8>, is_asked: bool, manner: ResolveOptions) -> Result<Option<Place>, FileError> {
        if name == b".." {
            self.up()?;
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
        let node = look(self.current.as_fd(), &name)?;
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

    fn up(&mut self) -> Result<(), FileError> {
        // Above `/` is `/`.
        if self.is_above {
            return Ok(());
        }
        self.is_above = self.names.pop().is_none();
        // By its names: the kernel's way up would lead where someone has moved the directory to meanwhile.
        self.current = match self.names.join(&b'/').as_slice() {
            b"" => clone(self.root)?,
            names => open_beneath(self.root, names, HANDLE | OFlags::DIRECTORY)?,
        };
        Ok(())
    }

    /// Where a path ends that has no last name.
    fn end(self) -> Result<Place, FileError> {
        if self.is_above {
            return Err(FileError::Outside);
        }
        let node = Node { stat: fstat(&self.current)?, handle: clone(self.current.as_fd())? };
        Ok(Place { directory: self.current, name: b".".to_vec(), node: Some(node) })
    }
}
