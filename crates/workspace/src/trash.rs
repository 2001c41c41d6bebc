//! What is being removed: nobody waits for it, and it may be much.

use std::ffi::CStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use rustix::fs::{AtFlags, Dir, DirEntry, Mode, OFlags, open, openat, renameat, unlinkat};
use rustix::io::Errno;
use uuid::Uuid;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// How often something may have been added while a tree is taken apart.
pub(crate) const BURY_FAILURES_MAX: usize = 64;

/// A directory of what is being removed, by a thread that ends with the last of the clones.
#[derive(Clone, Debug)]
pub struct Trash {
    directory: PathBuf,
    graves: mpsc::Sender<PathBuf>,
}

impl Trash {
    /// Makes the directory where it is not there yet, and goes on with what an earlier run was removing when it ended.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn open(directory: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let (graves, buried) = mpsc::channel::<PathBuf>();
        std::thread::Builder::new().name("trash".into()).spawn(move || buried.iter().for_each(|grave| bury(&grave)))?;
        for entry in fs::read_dir(directory)?.flatten() {
            let _ = graves.send(entry.path());
        }
        Ok(Self { directory: directory.to_owned(), graves })
    }

    /// Takes the directory `path` away, where there is one; what it takes on the disk is given back in the background.
    ///
    /// # Errors
    /// Where it cannot be moved here.
    pub fn take(&self, path: &Path) -> io::Result<()> {
        if let Some(grave) = self.move_here(path)? {
            // Where nobody buries it any more, the next start does.
            let _ = self.graves.send(grave);
        }
        Ok(())
    }

    /// The same, and what it takes is given back when this returns.
    ///
    /// # Errors
    /// Where it cannot be moved here.
    pub fn take_whole(&self, path: &Path) -> io::Result<()> {
        if let Some(grave) = self.move_here(path)? {
            bury(&grave);
        }
        Ok(())
    }

    fn move_here(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let grave = self.directory.join(Uuid::new_v4().simple().to_string());
        match fs::rename(path, &grave) {
            Ok(()) => Ok(Some(grave)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where it is.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// Removes a directory of the trash, however deep it is: directories in it are moved up, one after the other, so that two
/// are open at any time and no path becomes long. No link is followed. What cannot be removed now is tried again when the server
/// starts; it is out of every workspace.
fn bury(grave: &Path) {
    let mut failures = 0;
    while failures < BURY_FAILURES_MAX && fs::remove_dir(grave).is_err() {
        let Ok(top) = open(grave, DIRECTORY, Mode::empty()) else { return };
        let Ok(entries) = Dir::read_from(&top) else { return };
        for entry in entries.flatten().filter(is_real) {
            failures += usize::from(take_apart(&top, entry.file_name()).is_err());
        }
    }
}

fn take_apart(top: &OwnedFd, name: &CStr) -> io::Result<()> {
    let directory = match openat(top, name, DIRECTORY, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(unlinkat(top, name, AtFlags::empty())?),
        Err(error) => return Err(error.into()),
    };
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        if is_real(&entry) {
            let inner = entry.file_name();
            match unlinkat(&directory, inner, AtFlags::empty()) {
                Err(Errno::ISDIR) => renameat(&directory, inner, top, Uuid::new_v4().simple().to_string())?,
                outcome => outcome?,
            }
        }
    }
    Ok(unlinkat(top, name, AtFlags::REMOVEDIR)?)
}

fn is_real(entry: &DirEntry) -> bool {
    !matches!(entry.file_name().to_bytes(), b"." | b"..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::mkdirat;

    /// Deeper than any path is long.
    const DEPTH: usize = 3000;

    fn deep(directory: &Path) {
        fs::create_dir(directory).unwrap();
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = open(directory, flags, Mode::empty()).unwrap();
        for _ in 0..DEPTH {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", flags, Mode::empty()).unwrap();
        }
    }

    #[test]
    fn what_is_taken_goes_however_deep_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let [path, left, taken] = ["trash", "trash/left", "taken"].map(|name| directory.path().join(name));
        fs::create_dir(&path).unwrap();
        deep(&left);
        deep(&taken);
        let trash = Trash::open(&path).unwrap();
        trash.take(&taken).unwrap();
        trash.take(&taken).unwrap();
        assert!(!taken.exists());
        let begun = std::time::Instant::now();
        while fs::read_dir(&path).unwrap().next().is_some() {
            assert!(begun.elapsed().as_secs() < 60, "it does not go");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
