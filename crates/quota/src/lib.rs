//! Project quotas: what a file system (ext4 or XFS, mounted with `prjquota`) lets a tree of directories take, whoever writes to
//! it. A project is a number that files have; what is made in a directory of a project has the same, and nothing inside of a
//! user namespace can change it. `quotactl(2)`, `ioctl_xfs_fsgetxattr(2)`, `mount(8)`.
//!
//! And what helps to find files that no directory shows: [`same_files`].

mod sys;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

/// Projects of ours have numbers from here on: the lower ones are those that people write into `/etc/projid`.
const FIRST: u32 = 1 << 31;
/// What limits are counted in, in bytes (`QIF_DQBLKSIZE`).
const BLOCK_BYTES: u64 = 1 << 10;
/// How many numbers are tried where files have the first ones already.
const TRIES: u32 = 1 << 10;

/// The projects of one file system.
#[derive(Debug)]
pub struct Projects {
    /// A directory on it.
    root: OwnedFd,
}

impl Projects {
    /// Those of the file system that `directory` is on; none where it does not enforce limits of projects, or where they are
    /// not ours to set (which takes `CAP_SYS_ADMIN`, outside of all user namespaces).
    #[must_use]
    pub fn of(directory: &Path) -> Option<Self> {
        let projects = Self { root: self::directory(directory).ok()? };
        let is_ours = || projects.used(FIRST).is_ok();
        (sys::is_enforced(&projects.root).is_ok_and(|enforced| enforced) && is_ours()).then_some(projects)
    }

    /// Makes empty directories a project, and whatever will be made in them. Of those that no file has yet, it is the next
    /// number after one that follows from `seed`.
    ///
    /// # Errors
    /// Where the file system refuses.
    pub fn found(&self, directories: &[&Path], seed: u128) -> io::Result<()> {
        let first = (seed ^ (seed >> 64)) as u32;
        for number in (0..TRIES).map(|n| FIRST | first.wrapping_add(n)) {
            if self.used(number)? == Used::default() {
                return directories.iter().try_for_each(|path| Ok(sys::join(directory(path)?.as_fd(), number)?));
            }
        }
        Err(io::Error::other("no project has a free number"))
    }

    /// The project that a directory was made; none where it is no project of ours.
    ///
    /// # Errors
    /// Where the directory is not there.
    pub fn project(&self, path: &Path) -> io::Result<Option<u32>> {
        Ok(sys::project(directory(path)?.as_fd())?.filter(|number| *number >= FIRST))
    }

    /// Lets a project take so many bytes on the disk (rounded up to a KiB, at least one) and have so many files, directories and
    /// links (at least one), or as many as there is room for.
    ///
    /// # Errors
    /// Where the file system refuses.
    pub fn limit(&self, project: u32, bytes: Option<u64>, files: Option<u64>) -> io::Result<()> {
        let blocks = bytes.map_or(0, |bytes| bytes.div_ceil(BLOCK_BYTES).max(1));
        let files = files.map_or(0, |files| files.max(1));
        Ok(sys::set_limits(&self.root, project, blocks, files)?)
    }

    /// What the files of a project take.
    ///
    /// # Errors
    /// Where the file system refuses.
    pub fn used(&self, project: u32) -> io::Result<Used> {
        match sys::used(&self.root, project) {
            // XFS keeps no count of what nothing has.
            Err(Errno::NOENT | Errno::SRCH) => Ok(Used::default()),
            outcome => Ok(outcome?),
        }
    }
}

/// What is made in this directory from now on is of no project, and files of other projects may get names in it.
///
/// # Errors
/// Where the file system refuses; not where it has no projects.
pub fn leave(directory: impl AsFd) -> io::Result<()> {
    match sys::leave(directory.as_fd()) {
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL) => Ok(()),
        outcome => Ok(outcome?),
    }
}

/// Whether two tasks (`gettid(2)`) have the same open files, as threads mostly do (`kcmp(2)`). Also where one of them has ended;
/// not where the kernel does not tell.
#[must_use]
pub fn same_files(one: i32, other: i32) -> bool {
    matches!(sys::same_files(one, other), Ok(true) | Err(Errno::SRCH))
}

/// What files take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Files, directories, links.
    pub files: u64,
}

fn directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}
