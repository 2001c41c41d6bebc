//! What a directory takes on the disk, while a hostile program may be writing to it.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Stat};

use super::entry;

/// Bytes of a block in what `stat(2)` counts.
const BLOCK_BYTES: u64 = 512;

/// Bytes that the least thing counts as, and each further name of a file: an empty one takes a place among the files that a disk
/// can have, and to go through names takes time.
pub const ENTRY_BYTES_MIN: u64 = 4096;

/// What something takes by itself.
pub fn taken(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(BLOCK_BYTES).max(ENTRY_BYTES_MIN)
}

/// Counts files with several names once.
#[derive(Debug, Default)]
pub struct InodeDedup(BTreeSet<u64>);

impl InodeDedup {
    /// What something takes under one of its names.
    pub fn taken(&mut self, stat: &Stat) -> u64 {
        let has_names = stat.st_nlink > 1 && entry::kind(stat) != FileType::Directory;
        if has_names && !self.0.insert(stat.st_ino) { ENTRY_BYTES_MIN } else { taken(stat) }
    }
}

/// Bytes on the disk of everything in a directory, at least [`ENTRY_BYTES_MIN`] for each name; a file with several names is
/// counted once. What comes and goes meanwhile is counted or not. Nothing, where there is no such directory.
///
/// # Errors
/// Where something cannot be read, or directories are more than [`super::DEPTH_MAX`] levels deep.
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
            let Some(stat) = entry::look(directory, &name)? else { continue };
            self.bytes = self.bytes.saturating_add(self.once.taken(&stat));
            if entry::kind(&stat) == FileType::Directory {
                match entry::inner(directory, &name, depth + 1) {
                    Ok(inner) => self.directory(&inner, depth + 1)?,
                    // It was removed, or replaced, in between.
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
