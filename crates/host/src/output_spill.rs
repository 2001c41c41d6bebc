//! Writes the complete output of work to a file in the workspace when it exceeds what the server keeps.
//!
//! The agents' user owns the file, so it counts towards their quota and cannot reach where they could not. Each path
//! component is opened on its own without following symbolic links.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use raworc_core::ids::TurnId;
use raworc_core::limits::{OUTPUT_BYTES_MAX, OUTPUT_FILE_BYTES_MAX, OUTPUT_FILES_MAX};
use raworc_core::link::{OUTPUT_DIRECTORY, WorkId};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, mkdirat, open, openat, unlinkat};
use rustix::io::{Errno, write};

use crate::identity;

/// Directory entries that are examined when old files are removed.
const ENTRIES_MAX: usize = 10_000;
/// Bytes buffered before a file is created: more than the half that the server is sent at once.
const HELD_BYTES_MAX: usize = OUTPUT_BYTES_MAX;
/// A `.gitignore` that excludes its own directory.
const IGNORE: &[u8] = b"*\n";

/// The complete output of one work.
pub struct OutputSpill {
    workspace: PathBuf,
    name: String,
    state: State,
}

enum State {
    /// Buffered: the output may still fit into what the server keeps.
    Held(Vec<u8>),
    /// Written to a file.
    Written { directory: OwnedFd, file: OwnedFd, bytes: u64, is_cut: bool },
    /// The file could not be created or written.
    Failed,
}

impl OutputSpill {
    /// The spill of a work that has written nothing yet.
    pub fn new(workspace: &Path, work: WorkId) -> Self {
        let (WorkId::Turn(TurnId(id)) | WorkId::Exec(id)) = work;
        Self { workspace: workspace.to_owned(), name: format!("{id}.log"), state: State::Held(Vec::new()) }
    }

    /// Adds output. If `too_much` is set, it may exceed what the server keeps and goes to the file.
    pub fn add(&mut self, bytes: &[u8], too_much: bool) {
        match &mut self.state {
            State::Held(held) => {
                held.extend_from_slice(bytes);
                if held.len() > HELD_BYTES_MAX {
                    // The server already has so much of this output that a file is not needed.
                    self.state = State::Failed;
                } else if too_much {
                    self.begin();
                }
            }
            State::Written { file, bytes: written, is_cut, .. } => {
                let room = usize::try_from(OUTPUT_FILE_BYTES_MAX.saturating_sub(*written)).unwrap_or(usize::MAX);
                let taken = &bytes[..bytes.len().min(room)];
                *is_cut |= taken.len() < bytes.len() || write_all(file, taken).is_err();
                *written += taken.len() as u64;
                if *is_cut {
                    // Nothing more is written: a gap in the file would be worse than an early end.
                    *written = OUTPUT_FILE_BYTES_MAX;
                }
            }
            State::Failed => {}
        }
    }

    fn begin(&mut self) {
        let State::Held(held) = std::mem::replace(&mut self.state, State::Failed) else { return };
        let opened = identity::with_agent_fsuid(|| create(&self.workspace, &self.name));
        if let Ok((directory, file)) = opened {
            self.state = State::Written { directory, file, bytes: 0, is_cut: false };
            self.add(&held, true);
        }
    }

    /// Ends the file. Returns its path in the workspace and whether it is complete. Without `wanted` the file is
    /// removed.
    pub fn finish(&mut self, wanted: bool) -> Option<(String, bool)> {
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Written { is_cut, .. } if wanted => Some((format!("{OUTPUT_DIRECTORY}/{}", self.name), !is_cut)),
            State::Written { directory, .. } => {
                let _ = identity::with_agent_fsuid(|| unlinkat(&directory, &self.name, AtFlags::empty()));
                None
            }
            State::Held(_) | State::Failed => None,
        }
    }
}

/// Creates the file and its directories.
fn create(workspace: &Path, name: &str) -> Result<(OwnedFd, OwnedFd), Errno> {
    let mut directory = open(workspace, DIRECTORY, Mode::empty())?;
    for (depth, step) in OUTPUT_DIRECTORY.split('/').enumerate() {
        let is_new = match mkdirat(&directory, step, Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error),
        };
        directory = openat(&directory, step, DIRECTORY, Mode::empty())?;
        if depth == 0 && is_new {
            write_all(&new_file(&directory, ".gitignore")?, IGNORE)?;
        }
    }
    remove_old(&directory);
    // An earlier attempt at the same message may have left a file.
    let _ = unlinkat(&directory, name, AtFlags::empty());
    let file = new_file(&directory, name)?;
    Ok((directory, file))
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn new_file(directory: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::from_raw_mode(0o644))
}

/// Removes old files to make room for one more. Their names are ids that grow with time.
fn remove_old(directory: &OwnedFd) {
    let Ok(entries) = Dir::read_from(directory) else { return };
    let names = entries.take(ENTRIES_MAX).filter_map(|entry| entry.ok()?.file_name().to_str().ok().map(str::to_owned));
    let mut ours: Vec<String> = names.filter(|name| is_ours(name)).collect();
    ours.sort();
    let surplus = (ours.len() + 1).saturating_sub(OUTPUT_FILES_MAX);
    for name in &ours[..surplus.min(ours.len())] {
        let _ = unlinkat(directory, name, AtFlags::empty());
    }
}

fn is_ours(name: &str) -> bool {
    name.strip_suffix(".log")
        .is_some_and(|id| id.len() == 36 && id.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit()))
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(file, bytes) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
