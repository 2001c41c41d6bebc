//! Room on the disk. What comes from outside leaves some, so that sessions go on, and the server can record what it does.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;
use rustix::io::Errno;

/// Of the disk's bytes and of its inodes, one in so many is left.
const LEFT_ONE_IN: u64 = 16;
/// So many bytes are enough to leave.
const LEFT_BYTES_MAX: u64 = 1 << 30;
/// So many inodes are enough to leave.
const LEFT_INODES_MAX: u64 = 1 << 16;
/// Bytes that may be written between two looks at the disk.
const LOOK_BYTES: u64 = 8 << 20;

/// Looks now and then how much room is left where something is written.
#[derive(Debug)]
pub struct Room {
    directory: PathBuf,
    /// Bytes until the next look.
    unseen: u64,
}

impl Room {
    /// On the file system of this directory.
    pub fn of(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), unseen: 0 }
    }

    /// Asks for `bytes`.
    ///
    /// # Errors
    /// `ENOSPC` where there is no room for them; where the disk cannot be looked at.
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
    // File systems without a fixed number of inodes say 0.
    let has_inodes = found.f_files == 0 || found.f_favail > (found.f_files / LEFT_ONE_IN).min(LEFT_INODES_MAX);
    if free < left.saturating_add(bytes) || !has_inodes { Err(Errno::NOSPC.into()) } else { Ok(()) }
}
