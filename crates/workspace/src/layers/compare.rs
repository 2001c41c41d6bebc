//! What differs between two versions of a workspace.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags, Stat, openat, readlinkat};
use similar::TextDiff;

use super::entry;
use crate::Kind;

/// How long the shortest difference of two texts is looked for: the time grows with the product of their lengths.
const TEXT_MAX: Duration = Duration::from_secs(1);

/// How a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is only in the later one.
    Added,
    /// It is in both, and not the same.
    Changed,
    /// It is only in the earlier one.
    Deleted,
}

/// One path that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// From the root down.
    pub path: Vec<u8>,
    /// How.
    pub change: Change,
    /// What it is, in the later one if it is there.
    pub kind: Kind,
    /// Bytes, where there is a file.
    pub size_before: Option<u64>,
    /// Bytes, where there is a file.
    pub size_after: Option<u64>,
}

/// What differs between two trees, by path, and whether there is more than `bound`. Both are of layers that never change, or lie
/// on such: what they share is not gone through.
///
/// # Errors
/// Where one cannot be read.
pub fn compare(before: impl AsFd, after: impl AsFd, bound: usize) -> io::Result<(Vec<Difference>, bool)> {
    let (before, after) = (open_directory(before)?, open_directory(after)?);
    let mut compare = Compare { found: Vec::new(), bound };
    compare.directories(Some(&before), Some(&after), &[], 0)?;
    let is_truncated = compare.found.len() > bound;
    compare.found.truncate(bound);
    Ok((compare.found, is_truncated))
}

/// How what is at `path` differs by itself, without what is in it where it is a directory; none where it does not.
///
/// # Errors
/// Where it cannot be read.
pub fn compare_one(before: impl AsFd, after: impl AsFd, path: &str) -> io::Result<Option<Difference>> {
    let mut sides = [Some(open_directory(before)?), Some(open_directory(after)?)];
    let mut names = path.split('/').filter(|name| !matches!(*name, "" | ".")).peekable();
    let mut depth = 0;
    while let Some(name) = names.next() {
        let name = CString::new(name)?;
        if names.peek().is_none() {
            let [before, after] = &sides;
            let pair = Pair::look(before.as_ref(), after.as_ref(), &name)?;
            return pair.difference(before.as_ref(), after.as_ref(), &name, path.as_bytes());
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

fn open_directory(root: impl AsFd) -> io::Result<OwnedFd> {
    Ok(openat(root, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

struct Compare {
    found: Vec<Difference>,
    bound: usize,
}

impl Compare {
    fn directories(
        &mut self,
        before: Option<&OwnedFd>,
        after: Option<&OwnedFd>,
        path: &[u8],
        depth: usize,
    ) -> io::Result<()> {
        let mut names: BTreeSet<CString> = BTreeSet::new();
        for directory in [before, after].into_iter().flatten() {
            names.extend(entry::names(directory)?);
        }
        for name in names {
            if self.found.len() > self.bound {
                break;
            }
            self.one(before, after, &name, path, depth)?;
        }
        Ok(())
    }

    fn one(
        &mut self,
        before: Option<&OwnedFd>,
        after: Option<&OwnedFd>,
        name: &CStr,
        path: &[u8],
        depth: usize,
    ) -> io::Result<()> {
        let pair = Pair::look(before, after, name)?;
        // Both are that one directory of a layer: whatever lies above it has nothing in there, and what is below it is the same
        // for both. (Where something above has, that has a directory of its own here.)
        if pair.is_shared() {
            return Ok(());
        }
        let path = if path.is_empty() { name.to_bytes().to_vec() } else { [path, b"/", name.to_bytes()].concat() };
        self.found.extend(pair.difference(before, after, name, &path)?);
        let inner = |directory: Option<&OwnedFd>, found: &Option<Found>| match (directory, found) {
            (Some(directory), Some(found)) if found.kind() == Kind::Directory => {
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

/// What is called the same in two trees.
struct Pair {
    old: Option<Found>,
    new: Option<Found>,
}

impl Pair {
    fn look(before: Option<&OwnedFd>, after: Option<&OwnedFd>, name: &CStr) -> io::Result<Self> {
        let here = |directory: Option<&OwnedFd>| match directory {
            Some(directory) => Ok(entry::look(directory, name)?.map(|stat| Found { stat })),
            None => io::Result::Ok(None),
        };
        Ok(Self { old: here(before)?, new: here(after)? })
    }

    /// Whether both show one file or directory of a layer: nothing else has the number of that and changed at the same time. (One
    /// that was copied up has its number, too, but changed when it was.) That is most of them, and spares opening them.
    fn is_shared(&self) -> bool {
        let at = |found: &Found| {
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
        matches!((&self.old, &self.new), (Some(old), Some(new)) if at(old) == at(new))
    }

    fn difference(
        &self,
        before: Option<&OwnedFd>,
        after: Option<&OwnedFd>,
        name: &CStr,
        path: &[u8],
    ) -> io::Result<Option<Difference>> {
        let change = match (&self.old, &self.new) {
            (None, None) => return Ok(None),
            (None, Some(_)) => Change::Added,
            (Some(_), None) => Change::Deleted,
            (Some(_), Some(_)) if self.is_shared() => return Ok(None),
            (Some(old), Some(new)) => match (before, after) {
                (Some(before), Some(after)) if is_same(before, &old.stat, after, &new.stat, name)? => return Ok(None),
                _ => Change::Changed,
            },
        };
        let size = |found: &Option<Found>| found.as_ref().and_then(Found::size);
        let kind = self.new.as_ref().or(self.old.as_ref()).map_or(Kind::Other, Found::kind);
        let (size_before, size_after) = (size(&self.old), size(&self.new));
        Ok(Some(Difference { path: path.to_vec(), change, kind, size_before, size_after }))
    }
}

struct Found {
    stat: Stat,
}

impl Found {
    fn kind(&self) -> Kind {
        match entry::kind(&self.stat) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            _ => Kind::Other,
        }
    }

    fn size(&self) -> Option<u64> {
        (self.kind() == Kind::File).then(|| u64::try_from(self.stat.st_size).unwrap_or(0))
    }
}

/// Whether two entries of one name say the same. Times do not count by themselves.
fn is_same(before: &OwnedFd, old: &Stat, after: &OwnedFd, new: &Stat, name: &CStr) -> io::Result<bool> {
    if (old.st_mode, old.st_uid, old.st_gid) != (new.st_mode, new.st_uid, new.st_gid) {
        return Ok(false);
    }
    match entry::kind(old) {
        FileType::RegularFile => {
            if old.st_size != new.st_size {
                return Ok(false);
            }
            let (old_file, new_file) = (open_file(before, name)?, open_file(after, name)?);
            if entry::attributes(&old_file)? != entry::attributes(&new_file)? {
                return Ok(false);
            }
            let times = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec);
            Ok(times(old) == times(new) || has_same_content(old_file, new_file)?)
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

fn has_same_content(old: File, new: File) -> io::Result<bool> {
    let (mut old, mut new) = (io::BufReader::new(old), io::BufReader::new(new));
    let (mut a, mut b) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let length = old.read(&mut a)?;
        if length == 0 {
            return Ok(new.read(&mut b)? == 0);
        }
        match new.read_exact(&mut b[..length]) {
            Ok(()) if a[..length] == b[..length] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

/// The difference of two versions of a file (absent: there is none) in unified format; `None` where one is no text. Where
/// finding the shortest takes too long, it is a longer one.
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
