//! Compares two versions of a workspace.

use std::cmp::Ordering;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::iter::Peekable;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};
use std::vec::IntoIter;

use raworc_core::limits::PAGE_BYTES_MAX;
use rustix::fs::{FileType, Mode, OFlags, SeekFrom, Stat, openat, readlinkat, seek};
use rustix::io::Errno;
use similar::TextDiff;

use super::entry;
use crate::EntryKind;

/// Time limit for finding the shortest text difference, which takes quadratic time.
const TEXT_MAX: Duration = Duration::from_secs(1);
/// Bytes per block when contents are compared.
const BLOCK_BYTES: u64 = 256 << 10;

/// Returns false when the caller no longer waits for the result.
pub type ContinueCheck<'a> = &'a dyn Fn() -> bool;

fn check_continue(goes_on: ContinueCheck<'_>) -> io::Result<()> {
    if goes_on() { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
}

/// How a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DifferenceKind {
    /// It exists only in the later version.
    Added,
    /// It exists in both and differs.
    Changed,
    /// It exists only in the earlier version.
    Deleted,
}

/// One path that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its path from the root.
    pub path: Vec<u8>,
    /// How.
    pub change: DifferenceKind,
    /// Its type, in the later version if it exists there.
    pub kind: EntryKind,
    /// Size of the earlier file, in bytes.
    pub size_before: Option<u64>,
    /// Size of the later file, in bytes.
    pub size_after: Option<u64>,
}

/// One of the two trees that are compared.
#[derive(Clone, Copy, Debug)]
pub struct ComparedTree<'s> {
    /// Its root directory.
    pub root: BorrowedFd<'s>,
    /// When its content was sealed in layers; any later time if it still is writable. Inode numbers survive copy-up,
    /// so two files copied up at the same moment look alike.
    pub sealed_at: SystemTime,
}

impl ComparedTree<'_> {
    /// A tree of sealed layers.
    #[must_use]
    pub fn sealed(root: BorrowedFd<'_>) -> ComparedTree<'_> {
        ComparedTree { root, sealed_at: SystemTime::now() }
    }
}

/// Returns differences sorted by path, and whether there are more than `bound` or than fit into an answer. Subtrees
/// in shared sealed layers are skipped. `goes_on` is called regularly and may cancel.
///
/// # Errors
/// If a tree cannot be read; [`io::ErrorKind::Interrupted`] if cancelled.
pub fn compare(
    before: ComparedTree<'_>,
    after: ComparedTree<'_>,
    bound: usize,
    goes_on: ContinueCheck<'_>,
) -> io::Result<(Vec<Difference>, bool)> {
    let sealed = sealed(before, after);
    let (before, after) = (open_directory(before.root)?, open_directory(after.root)?);
    let mut compare = Compare { found: Vec::new(), bytes: 0, bound, sealed, goes_on };
    compare.directories(Some(&before), Some(&after), &[], 0)?;
    let is_truncated = compare.is_full();
    compare.found.truncate(bound);
    Ok((compare.found, is_truncated))
}

/// How the entry at `path` differs, without the content of a directory; `None` if it does not.
///
/// # Errors
/// If it cannot be read; [`io::ErrorKind::Interrupted`] if cancelled.
pub fn compare_one(
    before: ComparedTree<'_>,
    after: ComparedTree<'_>,
    path: &str,
    goes_on: ContinueCheck<'_>,
) -> io::Result<Option<Difference>> {
    let sealed = sealed(before, after);
    let mut sides = [Some(open_directory(before.root)?), Some(open_directory(after.root)?)];
    let mut names = path.split('/').filter(|name| !matches!(*name, "" | ".")).peekable();
    let mut depth = 0;
    while let Some(name) = names.next() {
        let name = CString::new(name)?;
        if names.peek().is_none() {
            let [before, after] = &sides;
            let pair = EntryPair::lookup(before.as_ref(), after.as_ref(), &name, sealed)?;
            return pair.difference(before.as_ref(), after.as_ref(), &name, path.as_bytes(), goes_on);
        }
        for side in &mut sides {
            *side = match side.take().map(|directory| entry::inner(directory, &name, depth)).transpose() {
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => None,
                outcome => outcome?,
            };
        }
        depth += 1;
    }
    Ok(None)
}

/// Changes before this time are in sealed layers on both sides; in whole seconds.
fn sealed(before: ComparedTree<'_>, after: ComparedTree<'_>) -> i64 {
    let since = before.sealed_at.min(after.sealed_at).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn open_directory(root: impl AsFd) -> io::Result<OwnedFd> {
    Ok(openat(root, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Merges two sorted lists without duplicates.
struct MergeSorted {
    lists: [Peekable<IntoIter<CString>>; 2],
}

impl Iterator for MergeSorted {
    type Item = CString;

    fn next(&mut self) -> Option<CString> {
        let [one, other] = &mut self.lists;
        let order = match (one.peek(), other.peek()) {
            (Some(first), Some(second)) => first.cmp(second),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        match order {
            Ordering::Less => one.next(),
            Ordering::Greater => other.next(),
            Ordering::Equal => one.next().and(other.next()),
        }
    }
}

struct Compare<'a> {
    found: Vec<Difference>,
    /// Bytes of all paths.
    bytes: usize,
    bound: usize,
    sealed: i64,
    goes_on: ContinueCheck<'a>,
}

impl Compare<'_> {
    /// Whether the result is full.
    fn is_full(&self) -> bool {
        self.found.len() > self.bound || self.bytes > PAGE_BYTES_MAX
    }

    fn directories(
        &mut self,
        before: Option<&OwnedFd>,
        after: Option<&OwnedFd>,
        path: &[u8],
        depth: usize,
    ) -> io::Result<()> {
        let names = |directory: Option<&OwnedFd>| -> io::Result<_> {
            Ok(directory.map(entry::names).transpose()?.unwrap_or_default().into_iter().peekable())
        };
        for name in (MergeSorted { lists: [names(before)?, names(after)?] }) {
            if self.is_full() {
                break;
            }
            check_continue(self.goes_on)?;
            self.compare_entry(before, after, &name, path, depth)?;
        }
        Ok(())
    }

    fn compare_entry(
        &mut self,
        before: Option<&OwnedFd>,
        after: Option<&OwnedFd>,
        name: &CStr,
        path: &[u8],
        depth: usize,
    ) -> io::Result<()> {
        let pair = EntryPair::lookup(before, after, name, self.sealed)?;
        // Both show the same directory of a sealed layer: no layer above has anything in it (it would have its own
        // directory), so the content is the same.
        if pair.is_shared() {
            return Ok(());
        }
        let path = if path.is_empty() { name.to_bytes().to_vec() } else { [path, b"/", name.to_bytes()].concat() };
        if let Some(difference) = pair.difference(before, after, name, &path, self.goes_on)? {
            self.bytes += difference.path.len();
            self.found.push(difference);
        }
        let inner = |directory: Option<&OwnedFd>, found: &Option<StatEntry>| match (directory, found) {
            (Some(directory), Some(found)) if found.kind() == EntryKind::Directory => {
                entry::inner(directory, name, depth).map(Some)
            }
            _ => Ok(None),
        };
        let (old, new) = (inner(before, &pair.old)?, inner(after, &pair.new)?);
        if old.is_some() || new.is_some() {
            self.directories(old.as_ref(), new.as_ref(), &path, depth + 1)?;
        }
        Ok(())
    }
}

/// The entries of one name in both trees.
struct EntryPair {
    old: Option<StatEntry>,
    new: Option<StatEntry>,
    /// See [`sealed`].
    sealed: i64,
}

impl EntryPair {
    fn lookup(before: Option<&OwnedFd>, after: Option<&OwnedFd>, name: &CStr, sealed: i64) -> io::Result<Self> {
        let here = |directory: Option<&OwnedFd>| match directory {
            Some(directory) => Ok(entry::lookup(directory, name)?.map(|stat| StatEntry { stat })),
            None => io::Result::Ok(None),
        };
        Ok(Self { old: here(before)?, new: here(after)?, sealed })
    }

    /// Whether both show the same entry of a sealed layer, by inode and change time. This spares opening most
    /// entries.
    fn is_shared(&self) -> bool {
        let at = |found: &StatEntry| {
            let stat = &found.stat;
            (
                stat.st_ino,
                stat.st_mode,
                stat.st_ctime,
                stat.st_ctime_nsec,
                stat.st_mtime,
                stat.st_mtime_nsec,
                stat.st_size,
            )
        };
        matches!((&self.old, &self.new), (Some(old), Some(new)) if at(old) == at(new) && old.stat.st_ctime < self.sealed)
    }

    fn difference(
        &self,
        before: Option<&OwnedFd>,
        after: Option<&OwnedFd>,
        name: &CStr,
        path: &[u8],
        goes_on: ContinueCheck<'_>,
    ) -> io::Result<Option<Difference>> {
        let change = match (&self.old, &self.new) {
            (None, None) => return Ok(None),
            (None, Some(_)) => DifferenceKind::Added,
            (Some(_), None) => DifferenceKind::Deleted,
            (Some(_), Some(_)) if self.is_shared() => return Ok(None),
            (Some(old), Some(new)) => match (before, after) {
                (Some(before), Some(after)) if is_same((before, &old.stat), (after, &new.stat), name, goes_on)? => {
                    return Ok(None);
                }
                _ => DifferenceKind::Changed,
            },
        };
        let size = |found: &Option<StatEntry>| found.as_ref().and_then(StatEntry::size);
        let kind = self.new.as_ref().or(self.old.as_ref()).map_or(EntryKind::Other, StatEntry::kind);
        let (size_before, size_after) = (size(&self.old), size(&self.new));
        Ok(Some(Difference { path: path.to_vec(), change, kind, size_before, size_after }))
    }
}

struct StatEntry {
    stat: Stat,
}

impl StatEntry {
    fn kind(&self) -> EntryKind {
        match entry::kind(&self.stat) {
            FileType::RegularFile => EntryKind::File,
            FileType::Directory => EntryKind::Directory,
            FileType::Symlink => EntryKind::Symlink,
            _ => EntryKind::Other,
        }
    }

    fn size(&self) -> Option<u64> {
        (self.kind() == EntryKind::File).then(|| u64::try_from(self.stat.st_size).unwrap_or(0))
    }
}

/// Whether two entries are equal. Times are ignored, because they can be set to hide a change.
fn is_same(
    (before, old): (&OwnedFd, &Stat),
    (after, new): (&OwnedFd, &Stat),
    name: &CStr,
    goes_on: ContinueCheck<'_>,
) -> io::Result<bool> {
    if (old.st_mode, old.st_uid, old.st_gid) != (new.st_mode, new.st_uid, new.st_gid) {
        return Ok(false);
    }
    match entry::kind(old) {
        FileType::RegularFile => {
            if old.st_size != new.st_size {
                return Ok(false);
            }
            let (old_file, new_file) = (open_file(before, name)?, open_file(after, name)?);
            Ok(entry::attributes(&old_file)? == entry::attributes(&new_file)?
                && has_same_content(&old_file, &new_file, u64::try_from(old.st_size).unwrap_or(0), goes_on)?)
        }
        FileType::Directory => {
            let attributes = |directory: &OwnedFd| entry::attributes(entry::inner(directory, name, 0)?);
            Ok(attributes(before)? == attributes(after)?)
        }
        FileType::Symlink => Ok(readlinkat(before, name, Vec::new())? == readlinkat(after, name, Vec::new())?),
        _ => Ok(old.st_rdev == new.st_rdev),
    }
}

fn open_file(directory: &OwnedFd, name: &CStr) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(openat(directory, name, flags, Mode::empty())?))
}

/// Whether two files of `size` bytes are equal. Common holes are not read.
fn has_same_content(old: &File, new: &File, size: u64, goes_on: ContinueCheck<'_>) -> io::Result<bool> {
    let length = usize::try_from(BLOCK_BYTES.min(size)).map_err(io::Error::other)?;
    let (mut a, mut b) = (vec![0; length], vec![0; length]);
    let mut at = 0;
    while at < size {
        check_continue(goes_on)?;
        at = data_from(old, at, size)?.min(data_from(new, at, size)?);
        let length = length.min(usize::try_from(size - at).unwrap_or(length));
        let (a, b) = (&mut a[..length], &mut b[..length]);
        // A running container may have truncated the file.
        for (file, block) in [(old, &mut *a), (new, &mut *b)] {
            match file.read_exact_at(block, at) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                outcome => outcome?,
            }
        }
        if a != b {
            return Ok(false);
        }
        at += length as u64;
    }
    Ok(true)
}

/// The next data at or after `at`; `size` if only a hole follows.
fn data_from(file: &File, at: u64, size: u64) -> io::Result<u64> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(data.min(size)),
        Err(Errno::NXIO) => Ok(size),
        Err(error) => Err(error.into()),
    }
}

/// The difference of two versions of a file in unified format (`None`: no such file). Returns `None` if one is not
/// text. After a time limit, the result is not the shortest.
#[must_use]
pub fn text(path: &str, before: Option<&[u8]>, after: Option<&[u8]>) -> Option<String> {
    let as_text = |bytes: Option<&[u8]>| match bytes {
        Some(bytes) if bytes.contains(&0) => None,
        Some(bytes) => std::str::from_utf8(bytes).ok().map(str::to_owned),
        None => Some(String::new()),
    };
    let (old, new) = (as_text(before)?, as_text(after)?);
    let name = |side: &str, bytes: Option<&[u8]>| match bytes {
        Some(_) => format!("{side}/{path}"),
        None => "/dev/null".to_owned(),
    };
    let (old_name, new_name) = (name("a", before), name("b", after));
    let differences = TextDiff::configure().timeout(TEXT_MAX).diff_lines(&old, &new);
    Some(differences.unified_diff().context_radius(3).header(&old_name, &new_name).to_string())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, FileTimes};
    use std::time::SystemTime;

    use super::*;

    fn changed(before: &std::path::Path, after: &std::path::Path) -> Vec<String> {
        let [before, after] = [before, after].map(|path| entry::root(path).unwrap());
        let (found, _) =
            compare(ComparedTree::sealed(before.as_fd()), ComparedTree::sealed(after.as_fd()), usize::MAX, &|| true)
                .unwrap();
        found.into_iter().map(|found| String::from_utf8(found.path).unwrap()).collect()
    }

    #[test]
    fn times_hide_nothing_and_holes_cost_nothing() {
        let sides = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for (side, text) in sides.iter().zip(["one", "two"]) {
            for (name, text) in [("same", "same"), ("hidden", text)] {
                let file = File::create(side.path().join(name)).unwrap();
                file.write_all_at(text.as_bytes(), 0).unwrap();
                file.set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH)).unwrap();
            }
            // Data in different places, of which one has zeros only, and more hole than could be read.
            for (name, at, byte) in [("sparse", 9 << 40, b'x'), ("zeros", if text == "one" { 0 } else { 8 << 40 }, 0)] {
                let file = File::create(side.path().join(name)).unwrap();
                file.set_len(10 << 40).unwrap();
                file.write_all_at(&[byte], at).unwrap();
            }
        }
        let [before, after] = sides.each_ref().map(|side| side.path());
        assert_eq!(changed(before, after), ["hidden"]);
        File::options().write(true).open(after.join("sparse")).unwrap().write_all_at(b"y", (9 << 40) + 1).unwrap();
        fs::write(after.join("added"), "").unwrap();
        assert_eq!(changed(before, after), ["added", "hidden", "sparse"]);
        let [before, after] = [before, after].map(|path| entry::root(path).unwrap());
        assert_eq!(
            compare(ComparedTree::sealed(before.as_fd()), ComparedTree::sealed(after.as_fd()), 9, &|| false)
                .unwrap_err()
                .kind(),
            io::ErrorKind::Interrupted
        );
    }
}
