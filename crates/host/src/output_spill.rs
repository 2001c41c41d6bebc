//! All that work writes, in a file of the workspace, where the server keeps only some of it.
//!
//! The agents' user makes and owns the file: it counts as theirs, and leads nowhere that they could not go. Every step on the
//! way is one name in a directory that is open, and no symbolic link is followed.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use raworc_core::ids::TurnId;
use raworc_core::limits::{OUTPUT_BYTES_MAX, OUTPUT_FILE_BYTES_MAX, OUTPUT_FILES_MAX};
use raworc_core::link::{OUTPUT_DIRECTORY, WorkId};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, mkdirat, open, openat, unlinkat};
use rustix::io::{Errno, write};

use crate::identity;

/// Entries of the directory that are looked at, to remove old ones.
const ENTRIES_MAX: usize = 10_000;
/// What is held back at most, in bytes: more than the first half of what the server keeps.
const HELD_BYTES_MAX: usize = OUTPUT_BYTES_MAX;
/// Has Git ignore the directory that it is in.
const IGNORE: &[u8] = b"*\n";

/// What work has written so far.
pub struct OutputSpill {
    workspace: PathBuf,
    name: String,
    state: State,
}

enum State {
    /// Not more than is kept anyway, as far as is known.
    Held(Vec<u8>),
    /// More than that.
    Written { directory: OwnedFd, file: OwnedFd, bytes: u64, is_cut: bool },
    /// It could not be written.
    Failed,
}

impl OutputSpill {
    /// Of this work, which has written nothing yet.
    pub fn new(workspace: &Path, work: WorkId) -> Self {
        let (WorkId::Turn(TurnId(id)) | WorkId::Exec(id)) = work;
        Self { workspace: workspace.to_owned(), name: format!("{id}.log"), state: State::Held(Vec::new()) }
    }

    /// Takes what came. Where that is `too_much` to be sure that it is kept, it goes into the file.
    pub fn add(&mut self, bytes: &[u8], too_much: bool) {
        match &mut self.state {
            State::Held(held) => {
                held.extend_from_slice(bytes);
                if held.len() > HELD_BYTES_MAX {
                    // Whoever is passed on so much at once has no need of a file.
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
                    // Nothing more: a file with a gap in it would be worse than one that ends.
                    *written = OUTPUT_FILE_BYTES_MAX;
                }
            }
            State::Failed => {}
        }
    }

    fn begin(&mut self) {
        let State::Held(held) = std::mem::replace(&mut self.state, State::Failed) else { return };
        let opened = identity::with_agents_files(|| create(&self.workspace, &self.name));
        if let Ok((directory, file)) = opened {
            self.state = State::Written { directory, file, bytes: 0, is_cut: false };
            self.add(&held, true);
        }
    }

    /// There is no more. The file's path in the workspace, and whether all of it is in there; the file goes where it is not
    /// `wanted`.
    pub fn finish(&mut self, wanted: bool) -> Option<(String, bool)> {
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Written { is_cut, .. } if wanted => Some((format!("{OUTPUT_DIRECTORY}/{}", self.name), !is_cut)),
            State::Written { directory, .. } => {
                let _ = identity::with_agents_files(|| unlinkat(&directory, &self.name, AtFlags::empty()));
                None
            }
            State::Held(_) | State::Failed => None,
        }
    }
}

/// Makes the file, with the directories it is in.
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
    // An earlier attempt at the same message may have left one.
    let _ = unlinkat(&directory, name, AtFlags::empty());
    let file = new_file(&directory, name)?;
    Ok((directory, file))
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn new_file(directory: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::from_raw_mode(0o644))
}

/// Makes room for one more. The names are ids that grow with time.
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
