//! Project quotas of ext4 and XFS (mount option `prjquota`), which limit directory trees independently of who writes
//! to them. A project is a number stored in files; new files inherit it from their directory, and user namespaces
//! cannot change it. See `quotactl(2)`, `ioctl_xfs_fsgetxattr(2)`, `mount(8)`.
//!
//! Also helps to find open files without a name: [`same_files`].

mod sys;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

/// The lowest project number we use; lower ones are for `/etc/projid`.
const FIRST: u32 = 1 << 31;
/// The unit of limits, in bytes (`QIF_DQBLKSIZE`).
const BLOCK_BYTES: u64 = 1 << 10;
/// How many numbers are tried if the first ones are in use.
const TRIES: u32 = 1 << 10;

/// The projects of one file system.
#[derive(Debug)]
pub struct Projects {
    /// A directory on the file system.
    root: OwnedFd,
}

impl Projects {
    /// The projects of the file system with `directory`. `None` if it does not enforce project quotas, or without
    /// `CAP_SYS_ADMIN` in the initial user namespace.
    #[must_use]
    pub fn of(directory: &Path) -> Option<Self> {
        let projects = Self { root: self::directory(directory).ok()? };
        let is_ours = || projects.used(FIRST).is_ok();
        (sys::is_enforced(&projects.root).is_ok_and(|enforced| enforced) && is_ours()).then_some(projects)
    }

    /// Makes empty directories a new project, which their files will inherit. The number is the first unused one
    /// after a value derived from `seed`.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn found(&self, directories: &[&Path], seed: u128) -> io::Result<()> {
        let first = (seed ^ (seed >> 64)) as u32;
        for number in (0..TRIES).map(|n| FIRST | first.wrapping_add(n)) {
            if self.used(number)? == Used::default() {
                return directories.iter().try_for_each(|path| Ok(sys::join(directory(path)?.as_fd(), number)?));
            }
        }
        Err(io::Error::other("no project has a free number"))
    }

    /// The project of a directory; `None` if it is not one of ours.
    ///
    /// # Errors
    /// If the directory does not exist.
    pub fn project(&self, path: &Path) -> io::Result<Option<u32>> {
        Ok(sys::project(directory(path)?.as_fd())?.filter(|number| *number >= FIRST))
    }

    /// Limits a project's disk space in bytes (rounded up to KiB, at least one) and its number of files, directories
    /// and links (at least one). `None`: no limit.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn limit(&self, project: u32, bytes: Option<u64>, files: Option<u64>) -> io::Result<()> {
        let blocks = bytes.map_or(0, |bytes| bytes.div_ceil(BLOCK_BYTES).max(1));
        let files = files.map_or(0, |files| files.max(1));
        Ok(sys::set_limits(&self.root, project, blocks, files)?)
    }

    /// The usage of a project.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn used(&self, project: u32) -> io::Result<Used> {
        match sys::used(&self.root, project) {
            // XFS has no record of an unused project.
            Err(Errno::NOENT | Errno::SRCH) => Ok(Used::default()),
            outcome => Ok(outcome?),
        }
    }
}

/// Removes the project from a directory: new files get none, and files of other projects can be linked into it.
///
/// # Errors
/// If the file system refuses; no error without project quotas.
pub fn leave(directory: impl AsFd) -> io::Result<()> {
    match sys::leave(directory.as_fd()) {
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL) => Ok(()),
        outcome => Ok(outcome?),
    }
}

/// Whether two tasks (`gettid(2)`) share their open files, as threads usually do (`kcmp(2)`). Also true if one has
/// ended; false if the kernel does not tell.
#[must_use]
pub fn same_files(one: i32, other: i32) -> bool {
    matches!(sys::same_files(one, other), Ok(true) | Err(Errno::SRCH))
}

/// Usage of a project.
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
