//! Walking a tree of any depth with one open directory and without a long path.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Dir, Mode, OFlags, Stat, fstat, open, openat};

use crate::Error;

/// How directories are opened: never through a symbolic link.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A place in a tree, and what is still to be seen in the directories above it. Names come sorted by their bytes.
pub struct Walk {
    current: OwnedFd,
    levels: Vec<Level>,
    path: Vec<u8>,
}

struct Level {
    /// Device and inode, by which the directory is known when we come back to it.
    id: (u64, u64),
    names: std::vec::IntoIter<CString>,
    /// How much of the path is its own.
    path_bytes: usize,
}

impl Walk {
    /// Begins at the directory `root`.
    pub fn begin(root: &Path) -> Result<Self, Error> {
        let current = open(root, DIRECTORY - OFlags::NOFOLLOW, Mode::empty())?;
        let mut walk = Self { current, levels: Vec::new(), path: Vec::new() };
        walk.push()?;
        Ok(walk)
    }

    /// The directory that we are in.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.current.as_fd()
    }

    /// The next name in the directory that we are in.
    pub fn next(&mut self) -> Option<CString> {
        self.levels.last_mut()?.names.next()
    }

    /// The path of `name` from the root.
    pub fn path_of(&self, name: &CString) -> Vec<u8> {
        let mut path = Vec::with_capacity(self.path.len() + name.as_bytes().len() + 2);
        path.extend_from_slice(&self.path);
        path.extend_from_slice(name.as_bytes());
        path
    }

    /// Goes into the directory `name`, which `seen` has been said to be.
    pub fn enter(&mut self, name: &CString, seen: &Stat) -> Result<(), Error> {
        let inner = openat(&self.current, name.as_c_str(), DIRECTORY, Mode::empty())?;
        self.path.extend_from_slice(name.as_bytes());
        self.path.push(b'/');
        self.current = inner;
        self.push()?;
        self.expect(id(seen))
    }

    /// Goes back up. False where there is nothing above.
    pub fn leave(&mut self) -> Result<bool, Error> {
        self.levels.pop();
        let Some(above) = self.levels.last() else { return Ok(false) };
        let (id, path_bytes) = (above.id, above.path_bytes);
        self.path.truncate(path_bytes);
        self.current = openat(&self.current, c"..", DIRECTORY, Mode::empty())?;
        self.expect(id)?;
        Ok(true)
    }

    fn push(&mut self) -> Result<(), Error> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.current)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort_unstable();
        let id = id(&fstat(&self.current)?);
        self.levels.push(Level { id, names: names.into_iter(), path_bytes: self.path.len() });
        Ok(())
    }

    /// Whoever renames directories under us does not lead us elsewhere.
    fn expect(&self, expected: (u64, u64)) -> Result<(), Error> {
        if id(&fstat(&self.current)?) == expected {
            Ok(())
        } else {
            Err(Error::Changed(String::from_utf8_lossy(&self.path).into_owned()))
        }
    }
}

/// What a file is known by.
pub fn id(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}
