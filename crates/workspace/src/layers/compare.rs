//! What differs between two versions of a workspace.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, Stat, openat, readlinkat};
use similar::TextDiff;

use super::entry;
use crate::Kind;

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

/// What differs between two trees, by path, and whether there is more than `bound`.
///
/// # Errors
/// Where one cannot be read.
pub fn compare(before: impl AsFd, after: impl AsFd, bound: usize) -> io::Result<(Vec<Difference>, bool)> {
    let open = |root: rustix::fd::BorrowedFd<'_>| {
        openat(root, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    };
    let (before, after) = (open(before.as_fd())?, open(after.as_fd())?);
    let mut compare = Compare { found: Vec::new(), bound };
    compare.directories(Some(&before), Some(&after), &[], 0)?;
    let is_truncated = compare.found.len() > bound;
    compare.found.truncate(bound);
    Ok((compare.found, is_truncated))
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
        let here = |directory: Option<&OwnedFd>| match directory {
            Some(directory) => Ok(entry::look(directory, name)?.map(|stat| Found { stat })),
            None => io::Result::Ok(None),
        };
        let (old, new) = (here(before)?, here(after)?);
        let path = if path.is_empty() { name.to_bytes().to_vec() } else { [path, b"/", name.to_bytes()].concat() };
        let change = match (&old, &new) {
            (None, None) => return Ok(()),
            (None, Some(_)) => Some(Change::Added),
            (Some(_), None) => Some(Change::Deleted),
            (Some(old), Some(new)) => match (before, after) {
                (Some(before), Some(after)) if is_same(before, &old.stat, after, &new.stat, name)? => None,
                _ => Some(Change::Changed),
            },
        };
        let size = |found: &Option<Found>| found.as_ref().and_then(Found::size);
        let kind = new.as_ref().or(old.as_ref()).map_or(Kind::Other, Found::kind);
        if let Some(change) = change {
            let (size_before, size_after) = (size(&old), size(&new));
            self.found.push(Difference { path: path.clone(), change, kind, size_before, size_after });
        }
        let inner = |directory: Option<&OwnedFd>, found: &Option<Found>| match (directory, found) {
            (Some(directory), Some(found)) if found.kind() == Kind::Directory => {
                entry::inner(directory, name, depth).map(Some)
            }
            _ => Ok(None),
        };
        let (old, new) = (inner(before, &old)?, inner(after, &new)?);
        if old.is_some() || new.is_some() {
            self.directories(old.as_ref(), new.as_ref(), &path, depth + 1)?;
        }
        Ok(())
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
    // Both show one file of a layer: nothing else has the number of that and changed at the same time. (One that was copied up
    // has its number, too, but changed when it was.) That is most of them, and spares opening them.
    let at = |stat: &Stat| (stat.st_ino, stat.st_ctime, stat.st_ctime_nsec, stat.st_size);
    if entry::kind(old) != FileType::Directory && at(old) == at(new) {
        return Ok(true);
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

/// The difference of two versions of a file (absent: there is none) in unified format; `None` where one is no text.
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
    Some(TextDiff::from_lines(&old, &new).unified_diff().context_radius(3).header(&old_name, &new_name).to_string())
}
