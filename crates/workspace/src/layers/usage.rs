//! Measures disk usage of a directory that a hostile program may be writing to.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Stat};

use super::entry;

/// Bytes per block in the counts of `stat(2)`.
const BLOCK_BYTES: u64 = 512;

/// Minimum bytes per entry and per additional name: an empty file takes an inode, and every name takes time to visit.
pub const ENTRY_BYTES_MIN: u64 = 4096;

/// Disk usage of one entry, in bytes.
pub fn disk_bytes(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(BLOCK_BYTES).max(ENTRY_BYTES_MIN)
}

/// Counts hard-linked files once.
#[derive(Debug, Default)]
pub struct InodeDedup(BTreeSet<u64>);

impl InodeDedup {
    /// Disk usage of an entry under one of its names.
    pub fn disk_bytes(&mut self, stat: &Stat) -> u64 {
        let has_names = stat.st_nlink > 1 && entry::kind(stat) != FileType::Directory;
        if has_names && !self.0.insert(stat.st_ino) { ENTRY_BYTES_MIN } else { disk_bytes(stat) }
    }
}

/// Disk usage of a directory tree in bytes, at least [`ENTRY_BYTES_MIN`] per name; hard-linked files count once.
/// Entries that change meanwhile may count or not. 0 if the directory does not exist.
///
/// # Errors
/// If it cannot be read, or is deeper than [`super::DEPTH_MAX`] levels.
pub fn usage(directory: &Path) -> io::Result<u64> {
    let root = match entry::root(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        outcome => outcome?,
    };
    let mut usage = Usage { once: InodeDedup::default(), bytes: 0 };
    usage.directory(&root, 0)?;
    Ok(usage.bytes)
}

struct Usage {
    once: InodeDedup,
    bytes: u64,
}

impl Usage {
    fn directory(&mut self, directory: &OwnedFd, depth: usize) -> io::Result<()> {
        for name in entry::names(directory)? {
            let Some(stat) = entry::lookup(directory, &name)? else { continue };
            self.bytes = self.bytes.saturating_add(self.once.disk_bytes(&stat));
            if entry::kind(&stat) == FileType::Directory {
                match entry::inner(directory, &name, depth + 1) {
                    Ok(inner) => self.directory(&inner, depth + 1)?,
                    // The directory was removed or replaced meanwhile.
                    Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

    use std::fs;

    use super::*;

    #[test]
    fn names_of_one_file_and_holes_take_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        assert_eq!(usage(&at("nowhere")).unwrap(), 0);
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/file"), vec![1; 1 << 20]).unwrap();
        let once = usage(scratch.path()).unwrap();
        assert!((1 << 20..2 << 20).contains(&once), "{once}");
        fs::hard_link(at("d/file"), at("same")).unwrap();
        fs::File::create(at("sparse")).unwrap().set_len(1 << 30).unwrap();
        assert!(usage(scratch.path()).unwrap() < once + (64 << 10));
        (0..50).for_each(|n| drop(fs::File::create(at(&n.to_string())).unwrap()));
        (50..100).for_each(|n| fs::hard_link(at("same"), at(&n.to_string())).unwrap());
        assert!(usage(scratch.path()).unwrap() >= once + 101 * ENTRY_BYTES_MIN);
    }
}
