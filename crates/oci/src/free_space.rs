//! Keeps part of the disk free during imports, so that sessions and the server can go on writing.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;
use rustix::io::Errno;

/// The fraction of bytes and inodes that stays free: one in this many.
const LEFT_ONE_IN: u64 = 16;
/// Bytes that stay free, at most.
const LEFT_BYTES_MAX: u64 = 1 << 30;
/// Inodes that stay free, at most.
const LEFT_INODES_MAX: u64 = 1 << 16;
/// Bytes written between two checks.
const LOOK_BYTES: u64 = 8 << 20;

/// Checks free space while an import is written.
#[derive(Debug)]
pub struct FreeSpaceGuard {
    directory: PathBuf,
    /// Bytes until the next check.
    unseen: u64,
}

impl FreeSpaceGuard {
    /// On the file system of `directory`.
    pub fn of(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), unseen: 0 }
    }

    /// Reserves `bytes`.
    ///
    /// # Errors
    /// `ENOSPC` if there is not enough space, or if it cannot be checked.
    pub fn charge(&mut self, bytes: u64) -> io::Result<()> {
        match self.unseen.checked_sub(bytes) {
            Some(unseen) => self.unseen = unseen,
            None => {
                check(&self.directory, bytes)?;
                self.unseen = LOOK_BYTES;
            }
        }
        Ok(())
    }
}

fn check(directory: &Path, bytes: u64) -> io::Result<()> {
    let found = statvfs(directory)?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let left = (found.f_blocks.saturating_mul(found.f_frsize) / LEFT_ONE_IN).min(LEFT_BYTES_MAX);
    // File systems without a fixed number of inodes report 0.
    let has_inodes = found.f_files == 0 || found.f_favail > (found.f_files / LEFT_ONE_IN).min(LEFT_INODES_MAX);
    if free < left.saturating_add(bytes) || !has_inodes { Err(Errno::NOSPC.into()) } else { Ok(()) }
}
