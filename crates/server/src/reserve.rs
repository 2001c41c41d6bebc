//! Room for bad days: a directory that only takes space and inodes. On a full disk it is removed when the server starts, and before
//! what frees space, since that has to be recorded first. It is made again when there is room.
//!
//! The disk is full as well when the file system refuses to write for another reason than what it has left, such as a quota: so
//! writing is tried.
//!
//! Who filled the disk may be faster in taking what was given up. That is for a [limit](raworc_api::session::Resources) to
//! prevent; removing the session that does it, again, works as well.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, open, statvfs};
use rustix::io::Errno;

/// What it takes, as bytes of one file, and as empty files.
const BYTES: u64 = 16 << 20;
const BYTES_FILE: &str = "bytes";
const FILES: usize = 64;
/// What is written to see whether anything can be.
const TRIED_BYTES: u64 = 64 << 10;
/// With less than this, the disk is full.
const FULL_BYTES: u64 = 4 << 20;
/// With more than this, there is room for it.
const ROOM_BYTES: u64 = 4 * BYTES;

/// With fewer inodes than this, the disk is full, or almost.
const FULL_FILES: u64 = 64;
const ROOM_FILES: u64 = 1024;

/// How much room is left on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Enough.
    Enough,
    /// Few bytes.
    Little,
    /// Hardly any bytes.
    None,
    /// Few inodes.
    FewFiles,
    /// Hardly any inodes.
    NoFiles,
    /// The file system refuses to write, though it has room: a quota, most likely.
    Refused,
}

/// The reserve of a data directory.
#[derive(Clone, Debug)]
pub struct Reserve {
    data_dir: PathBuf,
}

impl Reserve {
    /// That of this directory.
    #[must_use]
    pub fn of(data_dir: &Path) -> Self {
        Self { data_dir: data_dir.to_owned() }
    }

    /// Gives it up, if the disk is full. What goes wrong is logged: what needs the room fails then, and says so.
    pub fn give_up_if_full(&self) {
        let given_up = self.room().and_then(|room| match room {
            // The bytes first: what is left without them is no reserve.
            Room::None | Room::NoFiles | Room::Refused => Ok(remove(&self.bytes())? | remove(&self.place())?),
            Room::Enough | Room::Little | Room::FewFiles => Ok(false),
        });
        match given_up {
            Ok(true) => tracing::warn!(bytes = BYTES, "the disk is full; what was kept for that is given up"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "what is kept for a full disk could not be given up"),
        }
    }

    /// Makes it, where there is none and enough room.
    pub fn keep(&self) {
        // It was a file once, which kept no inodes.
        if self.bytes().exists() {
            return;
        }
        let kept = self.room().and_then(|room| {
            if room != Room::Enough {
                return Ok(());
            }
            // It gets its name when it has what it is for.
            let new = self.data_dir.join("reserve.new");
            remove(&new)?;
            let made = fill(&new).and_then(|()| {
                remove(&self.place())?;
                fs::rename(&new, self.place())
            });
            if made.is_err() {
                remove(&new)?;
            }
            made
        });
        if let Err(error) = kept {
            tracing::warn!(%error, "nothing can be kept for a full disk");
        }
    }

    /// How much room is left, beside the reserve.
    ///
    /// # Errors
    /// Where the data directory cannot be looked at.
    pub fn room(&self) -> io::Result<Room> {
        let found = statvfs(&self.data_dir)?;
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        // Some file systems make inodes as they need them, and count none.
        let files = if found.f_files == 0 { u64::MAX } else { found.f_favail };
        let room = match (free, files) {
            (..FULL_BYTES, _) => Room::None,
            (_, ..FULL_FILES) => Room::NoFiles,
            (..ROOM_BYTES, _) => Room::Little,
            (_, ..ROOM_FILES) => Room::FewFiles,
            _ => Room::Enough,
        };
        if matches!(room, Room::None | Room::NoFiles) {
            return Ok(room);
        }
        match self.try_to_write() {
            Ok(()) => Ok(room),
            Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                Ok(Room::Refused)
            }
            Err(error) => Err(error),
        }
    }

    fn try_to_write(&self) -> io::Result<()> {
        // Several may try at once, each with a file of its own that has no name.
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = open(&self.data_dir, flags, Mode::RUSR | Mode::WUSR);
        match file.and_then(|file| fallocate(&file, FallocateFlags::empty(), 0, TRIED_BYTES)) {
            // The file system has no such files, or reserves nothing.
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => Ok(()),
            outcome => Ok(outcome?),
        }
    }

    fn place(&self) -> PathBuf {
        self.data_dir.join("reserve")
    }

    fn bytes(&self) -> PathBuf {
        self.place().join(BYTES_FILE)
    }
}

fn fill(directory: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(directory)?;
    for number in 1..=FILES {
        File::create(directory.join(format!("inode-{number}")))?;
    }
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = open(directory.join(BYTES_FILE), flags, Mode::RUSR | Mode::WUSR)?;
    Ok(fallocate(&file, FallocateFlags::empty(), 0, BYTES)?)
}

/// Removes a file or a directory with all that is in it; whether there was one.
fn remove(path: &Path) -> io::Result<bool> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
        outcome => outcome.map(|()| true),
    }
}
