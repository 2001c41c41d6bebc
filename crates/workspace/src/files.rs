//! Files of one workspace.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::SystemTime;

use raworc_core::limits::LISTING_ENTRIES_MAX;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::fs::{mkdirat, openat2, readlinkat, renameat, statat, unlinkat};
use uuid::Uuid;

use crate::FileError;
use crate::trash::BURY_FAILURES_MAX;

/// An open workspace.
#[derive(Debug)]
pub struct Workspace {
    root: OwnedFd,
    owner: Option<u32>,
}

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A pipe, socket or device.
    Other,
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// When its content last changed.
    pub modified: SystemTime,
    /// Where a symbolic link points.
    pub target: Option<String>,
}

/// What is at a path.
#[derive(Debug)]
pub enum Found {
    /// A regular file, open for reading, and its size in bytes.
    File(File, u64),
    /// A directory's entries by name, and whether there are more.
    Directory(Vec<Entry>, bool),
}

impl Workspace {
    pub(crate) fn new(root: OwnedFd, owner: Option<u32>) -> Self {
        Self { root, owner }
    }

    /// Its root directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// What is at `path` (relative; empty: the workspace itself). Symbolic links are followed inside the workspace.
    ///
    /// # Errors
    /// Where there is nothing, or neither a file nor a directory.
    pub fn look(&self, path: &str) -> Result<Found, FileError> {
        // Without NONBLOCK, opening a pipe would wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(self.beneath(check_path(path)?, flags, Mode::empty())?);
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            let (entries, more) = list(&OwnedFd::from(file))?;
            Ok(Found::Directory(entries, more))
        } else if metadata.is_file() {
            Ok(Found::File(file, metadata.len()))
        } else {
            Err(FileError::WrongKind("it is neither a file nor a directory"))
        }
    }

    /// Writes what `content` yields, up to `bytes_max`, to the file at `path`, which appears whole or not at all;
    /// directories on the way are made. True where the file is new.
    ///
    /// # Errors
    /// [`FileError::TooLarge`] where there is more; then nothing changed.
    pub fn write(&self, path: &str, content: &mut dyn Read, bytes_max: u64) -> Result<bool, FileError> {
        let (parent, name) = split(check_path(path)?)?;
        let directory = self.make_directories(parent)?;
        let is_new = match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() => {
                return Err(FileError::WrongKind("it is a directory"));
            }
            Ok(_) => false,
            Err(rustix::io::Errno::NOENT) => true,
            Err(error) => return Err(error.into()),
        };
        let temporary = format!(".raworc-{}", Uuid::new_v4().simple());
        let outcome = self.fill(&directory, &temporary, content, bytes_max).and_then(|()| {
            renameat(&directory, temporary.as_str(), &directory, name)?;
            File::from(self.reopen(&directory)?).sync_all()?;
            Ok(())
        });
        if outcome.is_err() {
            let _ = unlinkat(&directory, temporary.as_str(), AtFlags::empty());
        }
        outcome.map(|()| is_new)
    }

    /// Removes the file, link or directory (with all that is in it) at `path`.
    ///
    /// # Errors
    /// Where there is nothing, or it is the workspace itself.
    pub fn remove(&self, path: &str) -> Result<(), FileError> {
        let (parent, name) = split(check_path(path)?)?;
        let directory = self.beneath(parent, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())?;
        match unlinkat(&directory, name, AtFlags::empty()) {
            Err(rustix::io::Errno::ISDIR) => take_down(&directory, name)?,
            other => other?,
        }
        File::from(directory).sync_all()?;
        Ok(())
    }

    fn fill(&self, directory: &OwnedFd, name: &str, content: &mut dyn Read, bytes_max: u64) -> Result<(), FileError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        let mut file = File::from(rustix::fs::openat(directory, name, flags, mode)?);
        if self.owner.is_some() {
            std::os::unix::fs::fchown(&file, self.owner, self.owner)?;
        }
        let written = io::copy(&mut content.take(bytes_max.saturating_add(1)), &mut file)?;
        if written > bytes_max {
            return Err(FileError::TooLarge);
        }
        file.flush()?;
        file.sync_all()?;
        Ok(())
    }

    fn make_directories(&self, path: &str) -> Result<OwnedFd, FileError> {
        let mut made = String::new();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let parent = self.beneath(&made, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())?;
            match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    if self.owner.is_some() {
                        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                        let new = rustix::fs::openat(&parent, name, flags, Mode::empty())?;
                        std::os::unix::fs::fchown(&new, self.owner, self.owner)?;
                    }
                }
                Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            made = if made.is_empty() { name.to_owned() } else { format!("{made}/{name}") };
        }
        self.beneath(&made, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())
    }

    /// Opens `path` so that nothing leads out of the workspace (`RESOLVE_BENEATH`) nor through `/proc`'s magic links.
    fn beneath(&self, path: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd, FileError> {
        let path = if path.is_empty() { "." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        for _ in 0..BENEATH_TRIES {
            match openat2(&self.root, path, flags | OFlags::CLOEXEC, mode, resolve) {
                // Something was renamed meanwhile and the kernel could not be sure; openat2(2) says to try again.
                Err(rustix::io::Errno::AGAIN) => {}
                outcome => return Ok(outcome?),
            }
        }
        Err(FileError::Outside)
    }

    fn reopen(&self, directory: &OwnedFd) -> Result<OwnedFd, FileError> {
        Ok(rustix::fs::openat(directory, ".", OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }
}

/// Removes the directory `name` with all that is in it, in place, however deep it is: one directory is open at any time.
/// Others may change it meanwhile; should they move it about, it is left, since the way back up may lead elsewhere then.
fn take_down(parent: &OwnedFd, name: &str) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |at: &OwnedFd, name: &CStr| rustix::fs::openat(at, name, flags, Mode::empty());
    let identity = |directory: &OwnedFd| rustix::fs::fstat(directory).map(|stat| (stat.st_dev, stat.st_ino));
    let mut at = open(parent, c".")?;
    // From `parent` down: which directory that is, and what in it is still to be removed.
    let mut way = vec![(identity(&at)?, vec![CString::new(name)?])];
    let mut failures = 0;
    while let Some((_, left)) = way.last_mut() {
        if let Some(name) = left.last() {
            at = open(&at, name)?;
            let inner = empty_but_directories(&at)?;
            way.push((identity(&at)?, inner));
            continue;
        }
        way.pop();
        let Some((above, left)) = way.last_mut() else { break };
        at = open(&at, c"..")?;
        if identity(&at)? != *above {
            return Err(io::Error::other("the directory was moved while it was removed"));
        }
        let Some(name) = left.pop() else { break };
        match unlinkat(&at, &name, AtFlags::REMOVEDIR) {
            // Someone adds to it: again, but not for ever.
            Err(rustix::io::Errno::NOTEMPTY) if failures < BURY_FAILURES_MAX => {
                failures += 1;
                left.push(name);
            }
            other => other?,
        }
    }
    Ok(())
}

/// Removes everything in a directory but directories, whose names it returns.
fn empty_but_directories(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match unlinkat(directory, name, AtFlags::empty()) {
            Err(rustix::io::Errno::ISDIR) => found.push(name.to_owned()),
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

/// How often a path is tried while someone keeps renaming what is on it.
const BENEATH_TRIES: u32 = 16;

/// The path as it is used: without slashes at either end.
fn check_path(path: &str) -> Result<&str, FileError> {
    let trimmed = path.trim_matches('/');
    if trimmed.contains('\0') {
        return Err(FileError::BadPath("the path contains a NUL byte"));
    }
    if trimmed.split('/').any(|name| name == "..") {
        return Err(FileError::BadPath("'..' is not allowed in a path: give it from the workspace down"));
    }
    Ok(trimmed)
}

fn split(path: &str) -> Result<(&str, &str), FileError> {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    if name.is_empty() || name == "." {
        return Err(FileError::BadPath("the path names no file: it must not be empty or end in '.'"));
    }
    Ok((parent, name))
}

fn list(directory: &OwnedFd) -> Result<(Vec<Entry>, bool), FileError> {
    let mut entries = Vec::new();
    let mut more = false;
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if entries.len() == LISTING_ENTRIES_MAX {
            more = true;
            break;
        }
        // What vanished meanwhile is not listed.
        if let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            entries.push(describe(directory, OsStr::from_bytes(name.to_bytes()), &stat));
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((entries, more))
}

fn describe(directory: &OwnedFd, name: &OsStr, stat: &rustix::fs::Stat) -> Entry {
    use rustix::fs::FileType;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        _ => Kind::Other,
    };
    let target = (kind == Kind::Symlink)
        .then(|| readlinkat(directory, name, Vec::new()).ok())
        .flatten()
        .map(|target| target.to_string_lossy().into_owned());
    let nanos = std::time::Duration::from_nanos(stat.st_mtime_nsec);
    let seconds = std::time::Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
    Entry {
        name: name.to_string_lossy().into_owned(),
        kind,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode & 0o7777,
        modified: SystemTime::UNIX_EPOCH + seconds + nanos,
        target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    struct Fixture {
        directory: tempfile::TempDir,
        workspace: Workspace,
    }

    fn fixture() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("w")).unwrap();
        fs::write(directory.path().join("secret"), "secret").unwrap();
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let root = rustix::fs::open(directory.path().join("w"), flags, Mode::empty()).unwrap();
        let workspace = Workspace::new(root, None);
        Fixture { directory, workspace }
    }

    fn read(workspace: &Workspace, path: &str) -> Result<String, FileError> {
        match workspace.look(path)? {
            Found::File(mut file, size) => {
                let mut text = String::new();
                file.read_to_string(&mut text)?;
                assert_eq!(text.len() as u64, size);
                Ok(text)
            }
            Found::Directory(entries, _) => Ok(entries.into_iter().map(|e| e.name).collect::<Vec<_>>().join(" ")),
        }
    }

    #[test]
    fn files_are_written_listed_replaced_and_removed() {
        let fixture = fixture();
        let Fixture { workspace, .. } = &fixture;
        assert!(workspace.write("a/b/c.txt", &mut "one".as_bytes(), 3).unwrap());
        assert!(!workspace.write("/a/b/c.txt", &mut "two".as_bytes(), 3).unwrap());
        assert_eq!(read(workspace, "a/b/c.txt").unwrap(), "two");
        assert_eq!(read(workspace, "").unwrap(), "a");
        assert!(matches!(workspace.write("a/b/c.txt", &mut "four".as_bytes(), 3), Err(FileError::TooLarge)));
        assert_eq!(read(workspace, "a/b").unwrap(), "c.txt", "nothing is left of a write that failed");
        assert!(matches!(workspace.write("a/b", &mut "x".as_bytes(), 3), Err(FileError::WrongKind(_))));
        workspace.remove("a").unwrap();
        assert!(matches!(workspace.look("a"), Err(FileError::NotFound)));
    }

    #[test]
    fn nothing_leads_out() {
        let fixture = fixture();
        let Fixture { directory, workspace, .. } = &fixture;
        let inside = directory.path().join("w");
        symlink(directory.path().join("secret"), inside.join("absolute")).unwrap();
        symlink("../secret", inside.join("relative")).unwrap();
        symlink("..", inside.join("up")).unwrap();
        symlink("/proc/self/root/etc/passwd", inside.join("magic")).unwrap();
        for path in ["absolute", "relative", "up/secret", "magic"] {
            assert!(matches!(workspace.look(path), Err(FileError::Outside)), "{path}");
        }
        for path in ["../secret", "a/../../secret", "..", "a\0b"] {
            assert!(matches!(workspace.look(path), Err(FileError::BadPath(_))), "{path}");
        }
        assert!(matches!(workspace.write("up/new", &mut "x".as_bytes(), 9), Err(FileError::Outside)));
        assert!(matches!(workspace.remove("up/secret"), Err(FileError::Outside)));
        // Writing to a link replaces the link, not what it points to; removing removes the link.
        workspace.write("absolute", &mut "mine".as_bytes(), 9).unwrap();
        workspace.remove("relative").unwrap();
        assert_eq!(fs::read_to_string(directory.path().join("secret")).unwrap(), "secret");
        for path in ["", "/", ".", "a/."] {
            assert!(matches!(workspace.remove(path), Err(FileError::BadPath(_))), "{path:?}");
        }
    }

    #[test]
    fn a_tree_of_any_depth_is_removed() {
        let fixture = fixture();
        let Fixture { directory, workspace, .. } = &fixture;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let mut at = rustix::fs::open(directory.path().join("w"), flags, Mode::empty()).unwrap();
        for _ in 0..20_000 {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            let inner = rustix::fs::openat(&at, "d", flags, Mode::empty()).unwrap();
            rustix::fs::openat(&inner, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
            at = inner;
        }
        workspace.remove("d").unwrap();
        assert_eq!(fs::read_dir(directory.path().join("w")).unwrap().count(), 0);
    }

    #[test]
    fn a_pipe_does_not_hold_us() {
        let fixture = fixture();
        let Fixture { directory, workspace, .. } = &fixture;
        let pipe = directory.path().join("w/pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert!(matches!(workspace.look("pipe"), Err(FileError::WrongKind(_))));
    }
}
