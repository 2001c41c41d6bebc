//! Removes directories in the background, because that may take long.

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

/// How often removal is retried while someone adds entries.
pub(crate) const REMOVE_FAILURES_MAX: usize = 64;

/// A trash directory, emptied by a thread that ends with the last clone.
#[derive(Clone, Debug)]
pub struct Trash {
    directory: PathBuf,
    queue: mpsc::Sender<PathBuf>,
}

impl Trash {
    /// Creates the directory if missing, and resumes removals that a crash interrupted.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn open(directory: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let (queue, queued) = mpsc::channel::<PathBuf>();
        std::thread::Builder::new()
            .name("trash".into())
            .spawn(move || queued.iter().for_each(|doomed| delete_tree(&doomed)))?;
        for entry in fs::read_dir(directory)?.flatten() {
            let _ = queue.send(entry.path());
        }
        Ok(Self { directory: directory.to_owned(), queue })
    }

    /// Moves the directory `path` to the trash, if it exists; its space is freed in the background.
    ///
    /// # Errors
    /// If it cannot be moved.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        if let Some(doomed) = self.move_to_trash(path)? {
            // If the thread is gone, the next start removes it.
            let _ = self.queue.send(doomed);
        }
        Ok(())
    }

    /// As [`Self::remove`], but returns after the space is freed.
    ///
    /// # Errors
    /// If it cannot be moved.
    pub fn remove_now(&self, path: &Path) -> io::Result<()> {
        if let Some(doomed) = self.move_to_trash(path)? {
            delete_tree(&doomed);
        }
        Ok(())
    }

    fn move_to_trash(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let doomed = self.directory.join(Uuid::new_v4().simple().to_string());
        match fs::rename(path, &doomed) {
            Ok(()) => Ok(Some(doomed)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The path of the trash.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// Deletes a directory of any depth: nested directories are moved up one after the other, so that at most two are
/// open and paths stay short. Links are not followed. Failures are retried at the next start.
fn delete_tree(doomed: &Path) {
    let mut failures = 0;
    while failures < REMOVE_FAILURES_MAX && fs::remove_dir(doomed).is_err() {
        let Ok(top) = open(doomed, DIRECTORY, Mode::empty()) else { return };
        let Ok(entries) = Dir::read_from(&top) else { return };
        for entry in entries.flatten().filter(is_real) {
            failures += usize::from(flatten(&top, entry.file_name()).is_err());
        }
    }
}

fn flatten(top: &OwnedFd, name: &CStr) -> io::Result<()> {
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

    /// Deeper than the longest path.
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
        trash.remove(&taken).unwrap();
        trash.remove(&taken).unwrap();
        assert!(!taken.exists());
        let begun = std::time::Instant::now();
        while fs::read_dir(&path).unwrap().next().is_some() {
            assert!(begun.elapsed().as_secs() < 60, "it does not go");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
