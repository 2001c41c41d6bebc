//! The persistent directory of a session, seen from outside its container.
//!
//! What is in a workspace belongs to a hostile program. Every path is therefore opened with `openat2` beneath the
//! workspace: no `..`, symbolic link or mount leads out of it, whatever changes while we look. Calls block.

mod files;

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use raworc_core::ids::SessionId;

pub use files::{Entry, Found, Kind, Workspace};

/// What can go wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is nothing of this name.
    #[error("there is no such file or directory")]
    NotFound,
    /// The path cannot be one in a workspace.
    #[error("{0}")]
    BadPath(&'static str),
    /// The path leads out of the workspace.
    #[error("the path leads out of the workspace")]
    Outside,
    /// It is a directory, or is none, or is neither file nor directory.
    #[error("{0}")]
    WrongKind(&'static str),
    /// More bytes than allowed.
    #[error("the file is too large")]
    TooLarge,
    /// The disk is full.
    #[error("the disk is full")]
    DiskFull,
    /// Anything else.
    #[error("{0}")]
    Io(io::Error),
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        use rustix::io::Errno;
        match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => FileError::NotFound,
            Some(Errno::XDEV | Errno::LOOP) => FileError::Outside,
            Some(Errno::NOTDIR) => FileError::WrongKind("a part of the path is not a directory"),
            Some(Errno::ISDIR) => FileError::WrongKind("it is a directory"),
            // What opening a socket says, and a pipe that nobody reads.
            Some(Errno::NXIO) => FileError::WrongKind("it is neither a file nor a directory"),
            Some(Errno::NAMETOOLONG) => FileError::BadPath("the path or one of its names is too long"),
            Some(Errno::NOSPC | Errno::DQUOT) => FileError::DiskFull,
            _ => FileError::Io(error),
        }
    }
}

impl From<rustix::io::Errno> for FileError {
    fn from(error: rustix::io::Errno) -> Self {
        io::Error::from(error).into()
    }
}

/// All workspaces of a server: `ROOT/SESSION/`, and `TRASH/` for what is being removed.
#[derive(Clone, Debug)]
pub struct Workspaces {
    root: PathBuf,
    trash: PathBuf,
    owner: Option<u32>,
    graves: mpsc::Sender<PathBuf>,
}

impl Workspaces {
    /// Workspaces below `data_dir`; new files belong to the user and group `owner` (the agents' id outside).
    ///
    /// # Errors
    /// Where the directories cannot be made.
    pub fn open(data_dir: &Path, owner: Option<u32>) -> io::Result<Self> {
        let (root, trash) = (data_dir.join("workspaces"), data_dir.join("trash"));
        DirBuilder::new().recursive(true).mode(0o711).create(&root)?;
        DirBuilder::new().recursive(true).mode(0o700).create(&trash)?;
        // Nobody waits for what is being removed, and it may be much. The thread ends with the last of us, or the process.
        let (graves, buried) = mpsc::channel::<PathBuf>();
        std::thread::Builder::new()
            .name("trash".into())
            .spawn(move || buried.iter().for_each(|grave| files::bury(&grave)))?;
        // What an earlier run was removing when it ended.
        for entry in fs::read_dir(&trash)?.flatten() {
            let _ = graves.send(entry.path());
        }
        Ok(Self { root, trash, owner, graves })
    }

    /// Where a session's workspace is.
    pub fn path(&self, session: SessionId) -> PathBuf {
        self.root.join(session.to_string())
    }

    /// Makes the workspace of a session, where it is not there yet, durably.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn create(&self, session: SessionId) -> io::Result<()> {
        let path = self.path(session);
        match DirBuilder::new().mode(0o755).create(&path) {
            Ok(()) => {}
            // A server that was killed here before may not have got round to giving it away.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if self.owner.is_none_or(|owner| fs::metadata(&path).is_ok_and(|found| found.uid() == owner)) {
                    return Ok(());
                }
            }
            Err(error) => return Err(error),
        }
        if self.owner.is_some() {
            chown(&path, self.owner, self.owner)?;
        }
        OpenOptions::new().read(true).open(&self.root)?.sync_all()
    }

    /// Opens the workspace of a session.
    ///
    /// # Errors
    /// [`FileError::NotFound`] where it has none yet.
    pub fn get(&self, session: SessionId) -> Result<Workspace, FileError> {
        Workspace::open(&self.path(session), &self.trash, self.owner, self.graves.clone())
    }
}
