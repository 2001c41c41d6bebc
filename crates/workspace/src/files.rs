//! Files of one workspace.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::SystemTime;

use raworc_core::limits::LISTING_ENTRIES_MAX;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::fs::{mkdirat, openat2, readlinkat, renameat, renameat_with, statat, unlinkat};
use uuid::Uuid;

use crate::FileError;

/// An open workspace.
#[derive(Debug)]
pub struct Workspace {
    root: OwnedFd,
    trash: PathBuf,
    owner: Option<u32>,
    /// To whoever buries what is in the trash.
    graves: Sender<PathBuf>,
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
    pub(crate) fn open(
        path: &Path,
        trash: &Path,
        owner: Option<u32>,
        graves: Sender<PathBuf>,
    ) -> Result<Self, FileError> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self { root, trash: trash.to_owned(), owner, graves })
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
        // Out of the container's reach first, so that nothing moves while it is taken apart.
        let grave = self.trash.join(Uuid::new_v4().simple().to_string());
        fs::create_dir(&grave)?;
        let moved = renameat_with(&directory, name, rustix::fs::CWD, grave.join("0"), RenameFlags::NOREPLACE);
        if let Err(error) = moved {
            fs::remove_dir(&grave)?;
            return Err(error.into());
        }
        File::from(directory).sync_all()?;
        // Where nobody buries it any more, the next start does.
        let _ = self.graves.send(grave);
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

/// Removes a directory of the trash, however deep it is: directories in it are moved up, one after the other, so that two
/// are open at any time and no path becomes long. A process that was in there may go on making files meanwhile; what is
/// left then is out of every workspace, and is tried again when the server starts.
pub(crate) fn bury(grave: &Path) {
    let mut failures = 0;
    while failures < BURY_FAILURES_MAX && fs::remove_dir(grave).is_err() {
        let Ok(entries) = fs::read_dir(grave) else { return };
        for entry in entries.flatten() {
            failures += usize::from(take_apart(grave, &entry.path()).is_err());
        }
    }
}

fn take_apart(grave: &Path, path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.is_dir() {
        return fs::remove_file(path);
    }
    for entry in fs::read_dir(path)? {
        let inner = entry?.path();
        if fs::symlink_metadata(&inner)?.is_dir() {
            fs::rename(&inner, grave.join(Uuid::new_v4().simple().to_string()))?;
        } else {
            fs::remove_file(&inner)?;
        }
    }
    fs::remove_dir(path)
}

/// How often something may have been added while a tree is taken apart.
const BURY_FAILURES_MAX: usize = 64;
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
    use std::os::unix::fs::symlink;

    struct Fixture {
        directory: tempfile::TempDir,
        workspace: Workspace,
        buried: std::sync::mpsc::Receiver<PathBuf>,
    }

    impl Fixture {
        /// Nothing is left in the trash once it has been buried.
        fn assert_buried(&self) {
            self.buried.try_iter().for_each(|grave| bury(&grave));
            assert_eq!(fs::read_dir(self.directory.path().join("trash")).unwrap().count(), 0);
        }
    }

    fn fixture() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        for name in ["w", "trash"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        fs::write(directory.path().join("secret"), "secret").unwrap();
        let (graves, buried) = std::sync::mpsc::channel();
        let (path, trash) = (directory.path().join("w"), directory.path().join("trash"));
        let workspace = Workspace::open(&path, &trash, None, graves).unwrap();
        Fixture { directory, workspace, buried }
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
        fixture.assert_buried();
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
        fixture.assert_buried();
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
