//! The directory that a tar is unpacked into: everything in it is of our own making, and found again without following
//! anything. Directories are known by number, so that paths may be longer than system calls take.

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

/// How directories are opened: beneath, through nothing but directories.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
/// How long a path given to one system call may be, in bytes (Linux: `PATH_MAX` is 4096, with the NUL).
const CALL_BYTES_MAX: usize = 4000;
/// How many bytes the paths of implied directories may have together.
const IMPLIED_BYTES_MAX: usize = 16 << 20;

/// A directory, by number.
pub type Node = u32;
/// The directory that all is in.
pub const ROOT: Node = 0;

/// What is known of a directory.
struct Known {
    parent: Node,
    name: Box<[u8]>,
    inside: BTreeMap<Box<[u8]>, Node>,
    /// When it is to have been changed last: everything that is made in it changes that.
    mtime: Option<(i64, u32)>,
    /// The access control list of what will be made in it.
    list: Option<Vec<u8>>,
    implied: bool,
    removed: bool,
}

/// The directory that a tar is unpacked into.
pub struct Tree {
    root: Rc<OwnedFd>,
    format: Format,
    known: Vec<Known>,
    /// The directory opened last, and its path where it was found by one: mostly, the next entry is in there too.
    open: (Node, Rc<OwnedFd>),
    found: (Vec<u8>, Node),
    /// Entries that may still be made.
    left: u64,
}

impl Tree {
    /// The directory must be empty.
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
        let first = Known {
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

    /// One entry more.
    pub fn charge(&mut self) -> Result<(), Error> {
        self.left = self.left.checked_sub(1).ok_or_else(|| Error::TooLarge("the number of entries".into()))?;
        Ok(())
    }

    /// The directory of `path` (clean, see `unpack::clean`), made with all above it where it is not there.
    pub fn make_directories(&mut self, path: &[u8]) -> Result<Node, Error> {
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

    /// The directory of `path`, where it is there.
    pub fn find(&self, path: &[u8]) -> Option<Node> {
        let (node, rest) = self.start(path);
        names(rest).try_fold(node, |node, name| self.known[node as usize].inside.get(name).copied())
    }

    /// The directory `name` in `node`, where it is one.
    pub fn inside(&self, node: Node, name: &[u8]) -> Option<Node> {
        self.known[node as usize].inside.get(name).copied()
    }

    /// Makes the directory `name` in `node`. It is opaque where it replaces a whiteout: what is below stays hidden.
    pub fn make_directory(&mut self, node: Node, name: &[u8]) -> Result<Node, Error> {
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
        let made = Node::try_from(self.known.len()).map_err(|_| Error::TooLarge("the number of entries".into()))?;
        self.known.push(Known {
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

    /// Hides all that is below a directory.
    pub fn make_opaque(&mut self, node: Node) -> Result<(), Error> {
        let directory = self.open(node)?;
        Ok(fsetxattr(&directory, self.format.marks.opaque(), b"y", XattrFlags::empty())?)
    }

    /// Removes whatever has `name` in `node`.
    pub fn make_room(&mut self, node: Node, name: &[u8]) -> Result<(), Error> {
        let parent = self.open(node)?;
        let Some(stat) = look(&parent, name)? else { return Ok(()) };
        if !FileType::from_raw_mode(stat.st_mode).is_dir() {
            return Ok(unlinkat(&parent, name, AtFlags::empty())?);
        }
        if let Some(gone) = self.known[node as usize].inside.remove(name) {
            self.known[gone as usize].removed = true;
        }
        // They may be among what is removed.
        self.open = (ROOT, Rc::clone(&self.root));
        self.found = (Vec::new(), ROOT);
        remove_tree(&parent, name)
    }

    /// The directory's own attributes have been said.
    pub fn described(&mut self, node: Node, mtime: (i64, u32), list: Option<Vec<u8>>) {
        let known = &mut self.known[node as usize];
        known.implied = false;
        known.list = list;
        known.mtime = Some(mtime);
    }

    /// Opens a directory.
    pub fn open(&mut self, node: Node) -> Result<Rc<OwnedFd>, Error> {
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

    /// Which ids there are.
    pub fn ids(&self) -> Ids {
        self.format.ids
    }

    /// Gives an open file to ids of inside.
    pub fn own(&self, file: BorrowedFd<'_>, uid: u64, gid: u64) -> Result<(), Error> {
        let (uid, gid) = self.owner(uid, gid);
        Ok(fchown(file, Some(uid), Some(gid))?)
    }

    /// Ids outside for ids of inside.
    pub fn owner(&self, uid: u64, gid: u64) -> (Uid, Gid) {
        let ids = self.format.ids;
        (Uid::from_raw(ids.outside(uid)), Gid::from_raw(ids.outside(gid)))
    }

    /// Sets the times of directories, and says which have never been described.
    pub fn finish(mut self) -> Result<Vec<PathBuf>, Error> {
        let (mut implied, mut bytes) = (Vec::new(), 0);
        for at in 0..self.known.len() {
            let parent = self.known[at].parent as usize;
            // Parents have lower numbers, so this reaches all that went with them.
            self.known[at].removed |= self.known[parent].removed;
            if self.known[at].removed {
                continue;
            }
            if let Some(list) = self.known[at].list.take() {
                let directory = self.open(at as Node)?;
                fsetxattr(&directory, acl::LISTS[1].0, &list, XattrFlags::empty())?;
            }
            if let Some(mtime) = self.known[at].mtime {
                let directory = self.open(at as Node)?;
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

    /// Where to begin to look for `path`, and what of it is left.
    fn start<'a>(&self, path: &'a [u8]) -> (Node, &'a [u8]) {
        let (known, node) = &self.found;
        match path.strip_prefix(&known[..]) {
            Some(rest) if rest.is_empty() || rest[0] == b'/' => (*node, rest),
            _ => (ROOT, path),
        }
    }
}

/// Takes what the root would have all that is made in it inherit; it gets it back in the end.
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

/// Seconds and nanoseconds as the kernel takes them; the time of access is left as it is.
pub fn times((seconds, nanos): (i64, u32)) -> rustix::fs::Timestamps {
    let omit = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    let modified = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    rustix::fs::Timestamps { last_access: omit, last_modification: modified }
}

/// What has `name`, if anything.
pub fn look(directory: &OwnedFd, name: &[u8]) -> Result<Option<Stat>, Error> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether it is overlayfs's mark for a deleted name.
pub fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

pub fn blocked(path: &[u8]) -> Error {
    Error::Blocked(String::from_utf8_lossy(path).into_owned())
}

/// Removes a directory of any depth with one of it open at a time.
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
                // Nobody else is in here, so that the way back is the one we came.
                directory = rustix::fs::openat(&directory, c"..", DIRECTORY, Mode::empty())?;
                unlinkat(&directory, &emptied[..], AtFlags::REMOVEDIR)?;
            }
        }
    }
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// Removes what is in a directory, until there is a directory.
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
