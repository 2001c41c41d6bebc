//! Room for bad days: a file that only takes space. On a full disk it is removed when the server starts, and before whatever
//! frees space, since that has to be recorded first. It is made again when there is room.
//!
//! Whoever filled the disk may be faster in taking what was given up. That is for a [limit](raworc_api::session::Resources) to
//! prevent; removing the session that does it, again, works as well.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, open, statvfs};

use crate::app::{Shared, blocking};

/// What it takes.
const BYTES: u64 = 16 << 20;
/// With less than this, the disk is full.
const FULL_BYTES: u64 = 4 << 20;
/// With more than this, there is room for it.
const ROOM_BYTES: u64 = 4 * BYTES;

/// With fewer inodes than this, the disk is full, or almost.
const FULL_FILES: u64 = 64;
const ROOM_FILES: u64 = 1024;

/// How often it is looked whether there is room for it again: soon after some was made, or it is taken by others.
const INTERVAL: Duration = Duration::from_secs(2);

/// Keeps it until the server stops.
pub async fn run(app: Shared) {
    let Some(reserve) = app.reserve.clone() else { return };
    loop {
        let kept = reserve.clone();
        let _ = blocking(move || kept.keep()).await;
        app.loops.ran("reserve", true);
        tokio::select! {
            biased;
            () = app.stopping.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

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

    /// Gives it up, if the disk is full. What goes wrong is logged: whoever needs the room will see.
    pub fn give_up_if_full(&self) {
        let given_up = self.free().and_then(|free| {
            if free >= FULL_BYTES {
                return Ok(false);
            }
            match fs::remove_file(self.file()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                outcome => outcome.map(|()| true),
            }
        });
        match given_up {
            Ok(true) => tracing::warn!(bytes = BYTES, "the disk is full; what was kept for that is given up"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "what is kept for a full disk could not be given up"),
        }
    }

    /// Makes it, where there is none and enough room.
    pub fn keep(&self) {
        let kept = self.free().and_then(|free| {
            if free < ROOM_BYTES || self.file().exists() {
                return Ok(());
            }
            // It gets its name when it has what it is for.
            let new = self.data_dir.join("reserve.new");
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = open(&new, flags, Mode::RUSR | Mode::WUSR)?;
            match fallocate(&file, FallocateFlags::empty(), 0, BYTES) {
                Ok(()) => fs::rename(&new, self.file()),
                Err(error) => {
                    fs::remove_file(&new)?;
                    Err(error.into())
                }
            }
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
        Ok(match (free, files) {
            (..FULL_BYTES, _) => Room::None,
            (_, ..FULL_FILES) => Room::NoFiles,
            (..ROOM_BYTES, _) => Room::Little,
            (_, ..ROOM_FILES) => Room::FewFiles,
            _ => Room::Enough,
        })
    }

    fn file(&self) -> PathBuf {
        self.data_dir.join("reserve")
    }

    fn free(&self) -> io::Result<u64> {
        let found = statvfs(&self.data_dir)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }
}
