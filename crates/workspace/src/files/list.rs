//! Lists a directory in pages, sorted by name.

use std::collections::BinaryHeap;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Stat, readlinkat, statat};

use super::{EntryKind, FileTime, modified};
use crate::error::FileError;

/// Maximum size of a page's names and targets as JSON, in bytes. A page with long names has fewer entries.
const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Size of an entry as JSON without its name, in bytes.
const ENTRY_BYTES: usize = 160;
/// Memory that a name takes besides its bytes, in bytes.
pub(super) const NAME_BYTES: usize = 64;
/// A page always has at least this many names.
const NAMES_MIN: usize = 4;

#[cfg(test)]
thread_local! {
    /// How often this thread has read a directory.
    pub(super) static READS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: Vec<u8>,
    /// Its type.
    pub kind: EntryKind,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Modification time of its content.
    pub modified: FileTime,
    /// Target of a symbolic link.
    pub target: Option<Vec<u8>>,
}

/// One page of a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Sorted by the bytes of their names.
    pub entries: Vec<Entry>,
    /// The last name of this page if there are more.
    pub next: Option<Vec<u8>>,
}

/// Lists up to `entries_max` entries whose names sort after `after`. Each page reads the whole directory, but keeps
/// only a page of it in memory.
///
/// # Errors
/// If the directory cannot be read.
pub fn list(directory: &OwnedFd, after: Option<&[u8]>, entries_max: usize) -> Result<Entries, FileError> {
    let (names, mut has_more) = names(directory, after, entries_max, usize::MAX)?;
    let (mut found, mut bytes, mut last) = (Entries::default(), 0, None);
    for name in names {
        if bytes > PAGE_BYTES_MAX {
            has_more = true;
            break;
        }
        // An entry that was removed meanwhile is left out.
        if let Ok(stat) = statat(directory, &name[..], AtFlags::SYMLINK_NOFOLLOW) {
            let entry = describe(directory, &name, &stat);
            bytes += ENTRY_BYTES + written(&entry.name) + entry.target.as_deref().map_or(0, written);
            found.entries.push(entry);
        }
        last = Some(name);
    }
    found.next = last.filter(|_| has_more);
    Ok(found)
}

/// Returns the names that sort after `after`, in order, and whether there are more. At most `entries_max`, and about
/// `bytes_max` bytes.
pub(super) fn names(
    directory: &OwnedFd,
    after: Option<&[u8]>,
    entries_max: usize,
    bytes_max: usize,
) -> Result<(Vec<Vec<u8>>, bool), FileError> {
    #[cfg(test)]
    READS.set(READS.get() + 1);
    let (mut found, mut bytes, mut has_more) = (BinaryHeap::<Vec<u8>>::new(), 0, false);
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") || after.is_some_and(|after| name <= after) {
            continue;
        }
        if has_more && found.peek().is_some_and(|last| name > last.as_slice()) {
            continue;
        }
        found.push(name.to_vec());
        bytes += NAME_BYTES + name.len();
        while found.len() > entries_max || (bytes > bytes_max && found.len() > NAMES_MIN) {
            bytes -= found.pop().map_or(0, |name| NAME_BYTES + name.len());
            has_more = true;
        }
    }
    Ok((found.into_sorted_vec(), has_more))
}

/// The size of a name as JSON, in bytes: up to six bytes for a control character.
fn written(name: &[u8]) -> usize {
    name.iter().map(|byte| if byte.is_ascii_control() { 6 } else { 1 }).sum::<usize>()
        + if name.is_ascii() { 0 } else { 4 * name.len() }
}

fn describe(directory: &OwnedFd, name: &[u8], stat: &Stat) -> Entry {
    let kind = EntryKind::of(FileType::from_raw_mode(stat.st_mode));
    let target = (kind == EntryKind::Symlink)
        .then(|| readlinkat(directory, name, Vec::new()).ok())
        .flatten()
        .map(std::ffi::CString::into_bytes);
    Entry {
        name: name.to_vec(),
        kind,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode & 0o7777,
        modified: modified(stat),
        target,
    }
}
