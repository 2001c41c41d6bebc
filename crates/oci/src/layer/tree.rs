//! The directory that a tar is unpacked into. Nobody else writes to it, and no link is followed. Directories have
//! ids, so paths may be longer than system calls take.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, XattrFlags};
use rustix::fs::{fchmod, fchown, fgetxattr, fremovexattr, fsetxattr, mkdirat, openat2, statat, unlinkat};
use rustix::io::Errno;

use super::{ATTRIBUTE_BYTES_MAX, Format, Ids, acl};
use crate::Error;

/// Flags for opening a directory without following links.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
/// Longest path for one system call, in bytes (Linux: `PATH_MAX` is 4096 with the NUL).
const CALL_BYTES_MAX: usize = 4000;
/// Bytes of paths of all implied directories.
const IMPLIED_BYTES_MAX: usize = 16 << 20;

/// The id of a directory.
pub type DirectoryId = u32;
/// The id of the root directory.
pub const ROOT: DirectoryId = 0;

/// A directory that was created.
struct DirectoryState {
    parent: DirectoryId,
    name: Box<[u8]>,
    inside: BTreeMap<Box<[u8]>, DirectoryId>,
    /// Its final modification time, set last because creating entries changes it.
    mtime: Option<(i64, u32)>,
    /// Its default access control list, set last because new entries would inherit it.
    list: Option<Vec<u8>>,
    implied: bool,
    removed: bool,
}

/// The directory that a tar is unpacked into.
pub struct Tree {
    root: Rc<OwnedFd>,
    format: Format,
    known: Vec<DirectoryState>,
    /// The directory that was opened last, because the next entry is usually in it.
    open: (DirectoryId, Rc<OwnedFd>),
    found: (Vec<u8>, DirectoryId),
    /// Number of entries that may still be created.
    left: u64,
}

impl Tree {
    /// Opens an empty directory.
    pub fn begin(path: &Path, format: Format, entries_max: u64) -> Result<Self, Error> {
        let root = Rc::new(rustix::fs::open(path, DIRECTORY - OFlags::NOFOLLOW, Mode::empty())?);
        for entry in Dir::read_from(&root)? {
            if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                return Err(io::Error::new(
                    io::ErrorKind::DirectoryNotEmpty,
                    "the directory to unpack to is not empty",
                )
                .into());
            }
        }
        let list = inherited(&root)?;
        let first = DirectoryState {
            parent: ROOT,
            name: Box::default(),
            inside: BTreeMap::new(),
            mtime: None,
            list,
            implied: false,
            removed: false,
        };
        let open = (ROOT, Rc::clone(&root));
        Ok(Self { root, format, known: vec![first], open, found: (Vec::new(), ROOT), left: entries_max })
    }

    /// Counts one entry.
    pub fn charge(&mut self) -> Result<(), Error> {
        self.left = self.left.checked_sub(1).ok_or_else(|| Error::TooLarge("the number of entries".into()))?;
        Ok(())
    }

    /// Returns the directory of `path` (normalized) and creates missing ones.
    pub fn make_directories(&mut self, path: &[u8]) -> Result<DirectoryId, Error> {
        let (mut node, rest) = self.start(path);
        for name in names(rest) {
            node = match self.known[node as usize].inside.get(name) {
                Some(next) => *next,
                None => {
                    self.charge()?;
                    let made = self.make_directory(node, name);
                    let made = made.map_err(|error| match error {
                        Error::Io(io) if io.kind() == io::ErrorKind::AlreadyExists => blocked(path),
                        other => other,
                    })?;
                    self.known[made as usize].implied = true;
                    made
                }
            };
        }
        self.found = (path.to_vec(), node);
        Ok(node)
    }

    /// Returns the directory of `path`, if it exists.
    pub fn find(&self, path: &[u8]) -> Option<DirectoryId> {
        let (node, rest) = self.start(path);
        names(rest).try_fold(node, |node, name| self.known[node as usize].inside.get(name).copied())
    }

    /// Returns the subdirectory `name`, if it is one.
    pub fn child(&self, node: DirectoryId, name: &[u8]) -> Option<DirectoryId> {
        self.known[node as usize].inside.get(name).copied()
    }

    /// Creates the subdirectory `name`. It is opaque if it replaces a whiteout, so lower layers stay hidden.
    pub fn make_directory(&mut self, node: DirectoryId, name: &[u8]) -> Result<DirectoryId, Error> {
        let parent = self.open(node)?;
        let mut opaque = false;
        match mkdirat(&parent, name, Mode::RWXU) {
            Err(Errno::EXIST) if look(&parent, name)?.is_some_and(|stat| is_whiteout(&stat)) => {
                unlinkat(&parent, name, AtFlags::empty())?;
                mkdirat(&parent, name, Mode::RWXU)?;
                opaque = true;
            }
            outcome => outcome?,
        }
        let made =
            DirectoryId::try_from(self.known.len()).map_err(|_| Error::TooLarge("the number of entries".into()))?;
        self.known.push(DirectoryState {
            parent: node,
            name: name.into(),
            inside: BTreeMap::new(),
            mtime: None,
            list: None,
            implied: false,
            removed: false,
        });
        self.known[node as usize].inside.insert(name.into(), made);
        let directory = self.open(made)?;
        self.own(directory.as_fd(), 0, 0)?;
        fchmod(&directory, Mode::from_raw_mode(0o755))?;
        if opaque {
            self.make_opaque(made)?;
        }
        Ok(made)
    }

    /// Makes a directory opaque.
    pub fn make_opaque(&mut self, node: DirectoryId) -> Result<(), Error> {
        let directory = self.open(node)?;
        Ok(fsetxattr(&directory, self.format.xattrs.opaque(), b"y", XattrFlags::empty())?)
    }

    /// Removes the entry `name`, if it exists.
    pub fn remove_entry(&mut self, node: DirectoryId, name: &[u8]) -> Result<(), Error> {
        let parent = self.open(node)?;
        let Some(stat) = look(&parent, name)? else { return Ok(()) };
        if !FileType::from_raw_mode(stat.st_mode).is_dir() {
            return Ok(unlinkat(&parent, name, AtFlags::empty())?);
        }
        if let Some(gone) = self.known[node as usize].inside.remove(name) {
            self.known[gone as usize].removed = true;
        }
        // The open directory may be among what is removed.
        self.open = (ROOT, Rc::clone(&self.root));
        self.found = (Vec::new(), ROOT);
        remove_tree(&parent, name)
    }

    /// Records the final attributes of a directory.
    pub fn set_final_attributes(&mut self, node: DirectoryId, mtime: (i64, u32), list: Option<Vec<u8>>) {
        let known = &mut self.known[node as usize];
        known.implied = false;
        known.list = list;
        known.mtime = Some(mtime);
    }

    /// Opens a directory.
    pub fn open(&mut self, node: DirectoryId) -> Result<Rc<OwnedFd>, Error> {
        let mut way = Vec::new();
        let mut at = node;
        while at != self.open.0 && at != ROOT {
            way.push(at);
            at = self.known[at as usize].parent;
        }
        let mut opened = Rc::clone(if at == self.open.0 { &self.open.1 } else { &self.root });
        let mut path: Vec<u8> = Vec::new();
        while let Some(next) = way.pop() {
            path.extend_from_slice(&self.known[next as usize].name);
            path.push(b'/');
            let fits =
                way.last().is_some_and(|next| path.len() + self.known[*next as usize].name.len() < CALL_BYTES_MAX);
            if !fits {
                opened = Rc::new(openat2(&opened, &path[..], DIRECTORY, Mode::empty(), RESOLVE)?);
                path.clear();
            }
        }
        self.open = (node, Rc::clone(&opened));
        Ok(opened)
    }

    /// The id mapping.
    pub fn ids(&self) -> Ids {
        self.format.ids
    }

    /// Sets the owner of an open file to container ids.
    pub fn own(&self, file: BorrowedFd<'_>, uid: u64, gid: u64) -> Result<(), Error> {
        let (uid, gid) = self.owner(uid, gid);
        Ok(fchown(file, Some(uid), Some(gid))?)
    }

    /// The host ids of container ids.
    pub fn owner(&self, uid: u64, gid: u64) -> (Uid, Gid) {
        let ids = self.format.ids;
        (Uid::from_raw(ids.to_host(uid)), Gid::from_raw(ids.to_host(gid)))
    }

    /// Sets the times of directories. Returns the implied ones.
    pub fn finish(mut self) -> Result<Vec<PathBuf>, Error> {
        let (mut implied, mut bytes) = (Vec::new(), 0);
        for at in 0..self.known.len() {
            let parent = self.known[at].parent as usize;
            // Parents have lower ids, so this marks all descendants of removed directories.
            self.known[at].removed |= self.known[parent].removed;
            if self.known[at].removed {
                continue;
            }
            if let Some(list) = self.known[at].list.take() {
                let directory = self.open(at as DirectoryId)?;
                fsetxattr(&directory, acl::LISTS[1].0, &list, XattrFlags::empty())?;
            }
            if let Some(mtime) = self.known[at].mtime {
                let directory = self.open(at as DirectoryId)?;
                rustix::fs::futimens(&directory, &times(mtime))?;
            }
            if self.known[at].implied {
                let path = self.path(at);
                bytes += path.as_os_str().len();
                if bytes > IMPLIED_BYTES_MAX {
                    return Err(Error::TooLarge("the list of directories that are only implied".into()));
                }
                implied.push(path);
            }
        }
        Ok(implied)
    }

    fn path(&self, mut at: usize) -> PathBuf {
        let mut names = Vec::new();
        while at != ROOT as usize {
            names.push(OsStr::from_bytes(&self.known[at].name));
            at = self.known[at].parent as usize;
        }
        names.into_iter().rev().collect()
    }

    /// The closest known parent of `path`, and the remaining path.
    fn start<'a>(&self, path: &'a [u8]) -> (DirectoryId, &'a [u8]) {
        let (known, node) = &self.found;
        match path.strip_prefix(&known[..]) {
            Some(rest) if rest.is_empty() || rest[0] == b'/' => (*node, rest),
            _ => (ROOT, path),
        }
    }
}

/// Removes and returns the root's default access control list, which new entries would inherit.
fn inherited(root: &OwnedFd) -> Result<Option<Vec<u8>>, Error> {
    let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
    match fgetxattr(root, acl::LISTS[1].0, &mut value[..]) {
        Ok(count) => {
            value.truncate(count);
            fremovexattr(root, acl::LISTS[1].0)?;
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
}

/// A modification time for the kernel; the access time stays.
pub fn times((seconds, nanos): (i64, u32)) -> rustix::fs::Timestamps {
    let omit = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    let modified = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    rustix::fs::Timestamps { last_access: omit, last_modification: modified }
}

/// The entry `name`, if it exists.
pub fn look(directory: &OwnedFd, name: &[u8]) -> Result<Option<Stat>, Error> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether it is a whiteout.
pub fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

pub fn blocked(path: &[u8]) -> Error {
    Error::Blocked(String::from_utf8_lossy(path).into_owned())
}

/// Removes a directory of any depth, with one directory open at a time.
fn remove_tree(parent: &OwnedFd, name: &[u8]) -> Result<(), Error> {
    let mut above = Vec::new();
    let mut directory = openat2(parent, name, DIRECTORY, Mode::empty(), RESOLVE)?;
    loop {
        match empty_until_directory(&directory)? {
            Some(inner) => {
                directory = openat2(&directory, &inner[..], DIRECTORY, Mode::empty(), RESOLVE)?;
                above.push(inner);
            }
            None => {
                let Some(emptied) = above.pop() else { break };
                // Nobody else is in here, so `..` leads back.
                directory = rustix::fs::openat(&directory, c"..", DIRECTORY, Mode::empty())?;
                unlinkat(&directory, &emptied[..], AtFlags::REMOVEDIR)?;
            }
        }
    }
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// Removes entries until it finds a directory, which it returns.
fn empty_until_directory(directory: &OwnedFd) -> Result<Option<Vec<u8>>, Error> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::ISDIR) => return Ok(Some(name.to_bytes().to_vec())),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}
