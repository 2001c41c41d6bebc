//! Walks a directory tree of any depth with one open directory and without long paths.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Dir, Mode, OFlags, Stat, fstat, open, openat};

use crate::Error;

/// Flags for opening a directory without following links.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The current directory of a walk, and the names still to visit in it and above. Names are sorted by bytes.
pub struct Walk {
    current: OwnedFd,
    levels: Vec<Level>,
    path: Vec<u8>,
}

struct Level {
    /// Device and inode, to recognize the directory on return.
    id: (u64, u64),
    names: std::vec::IntoIter<CString>,
    /// Length of its own part of the path.
    path_bytes: usize,
}

impl Walk {
    /// Starts at the directory `root`.
    pub fn begin(root: &Path) -> Result<Self, Error> {
        let current = open(root, DIRECTORY - OFlags::NOFOLLOW, Mode::empty())?;
        let mut walk = Self { current, levels: Vec::new(), path: Vec::new() };
        walk.push()?;
        Ok(walk)
    }

    /// The current directory.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.current.as_fd()
    }

    /// The next name in the current directory.
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

    /// Enters the directory `name`, whose status was `seen`.
    pub fn enter(&mut self, name: &CString, seen: &Stat) -> Result<(), Error> {
        let inner = openat(&self.current, name.as_c_str(), DIRECTORY, Mode::empty())?;
        self.path.extend_from_slice(name.as_bytes());
        self.path.push(b'/');
        self.current = inner;
        self.push()?;
        self.expect(id(seen))
    }

    /// Returns to the parent. False at the root.
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

    /// Checks that the directory is the expected one, in case someone renames directories meanwhile.
    fn expect(&self, expected: (u64, u64)) -> Result<(), Error> {
        if id(&fstat(&self.current)?) == expected {
            Ok(())
        } else {
            Err(Error::Changed(String::from_utf8_lossy(&self.path).into_owned()))
        }
    }
}

/// Identifies a file by device and inode.
pub fn id(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}
