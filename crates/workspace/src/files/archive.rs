//! Reads tar archives entry by entry. Nothing in them is trusted.

use std::io::Read;

use raworc_oci::Error;
use raworc_oci::entries::{self, HOLE_BYTES, Reader, TarEntry, TarEntryKind};

use super::pack::PATH_BYTES_MAX;
use crate::error::FileError;
use crate::layers::{DEPTH_MAX, ENTRY_BYTES_MIN};

/// Bytes per read.
const BUFFER_BYTES: usize = 64 * 1024;
/// Longest file name, in bytes (Linux: `NAME_MAX`).
const NAME_BYTES_MAX: usize = 255;
/// How much of a path is quoted in an error, in bytes.
const SHOWN_BYTES_MAX: usize = 256;

/// How an archive is unpacked.
#[derive(Clone, Debug)]
pub struct UnpackOptions {
    /// Maximum size in bytes of the archive, and of its content on the disk.
    pub bytes_max: u64,
    /// Maximum number of entries.
    pub entries_max: u64,
    /// Mask for the permission bits of entries.
    pub mode_mask: u32,
    /// The name for the archive's only file or link; `None` keeps names.
    pub name: Option<Vec<u8>>,
}

/// The size of an archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArchiveSize {
    /// Number of entries.
    pub entries: u64,
    /// Bytes on the disk, at most.
    pub disk_bytes: u64,
}

/// Reads an archive to its end and returns its size.
///
/// # Errors
/// If the archive is invalid or exceeds a limit.
pub fn measure(archive: impl Read, how: &UnpackOptions) -> Result<ArchiveSize, FileError> {
    let mut source = ArchiveReader::new(archive, how);
    let mut measured = ArchiveSize::default();
    while let Some((found, _)) = source.next()? {
        measured.entries += 1;
        let mut bytes = ENTRY_BYTES_MIN;
        if found.kind == TarEntryKind::File {
            if i64::try_from(found.size).is_err() {
                return Err(FileError::TooLarge);
            }
            source.content(&found, |data, _| {
                bytes += data.len() as u64;
                Ok(())
            })?;
            bytes = bytes.max(found.segments.as_deref().map_or(0, entries::on_disk));
        }
        measured.disk_bytes = measured.disk_bytes.saturating_add(bytes);
        if measured.disk_bytes > how.bytes_max {
            return Err(FileError::TooLarge);
        }
    }
    Ok(measured)
}

/// Reads an archive entry by entry and checks each.
pub(super) struct ArchiveReader<'a, R: Read> {
    reader: Reader<R>,
    how: &'a UnpackOptions,
    entries: u64,
    buffer: Vec<u8>,
}

impl<'a, R: Read> ArchiveReader<'a, R> {
    pub(super) fn new(archive: R, how: &'a UnpackOptions) -> Self {
        Self { reader: Reader::new(archive, how.bytes_max), how, entries: 0, buffer: vec![0; BUFFER_BYTES] }
    }

    /// The next entry and its normalized path, which is empty for the root.
    pub(super) fn next(&mut self) -> Result<Option<(TarEntry, Vec<u8>)>, FileError> {
        let Some(found) = self.reader.next_entry().map_err(bad)? else {
            let cut_off = || FileError::BadArchive("it has no end, so it may have been cut off".into());
            return if self.reader.has_end() { Ok(None) } else { Err(cut_off()) };
        };
        self.entries += 1;
        if self.entries > self.how.entries_max {
            return Err(FileError::TooLarge);
        }
        let mut path = clean(&found.path)?;
        if path.is_empty() && found.kind != TarEntryKind::Directory {
            return Err(bad_path(&found.path, "is no name"));
        }
        let levels = path.split(|byte| *byte == b'/').count();
        if levels > DEPTH_MAX + usize::from(found.kind != TarEntryKind::Directory) {
            return Err(FileError::TooDeep);
        }
        if found.kind == TarEntryKind::Link {
            clean(&found.link)?;
        }
        if found.kind == TarEntryKind::Symlink && (found.link.is_empty() || found.link.contains(&0)) {
            return Err(bad_path(&found.path, "is a link that leads nowhere"));
        }
        if let Some(name) = &self.how.name {
            if path.contains(&b'/') || self.entries > 1 {
                return Err(bad_path(&path, "was not expected: the archive should have one file"));
            }
            path.clone_from(name);
        }
        Ok(Some((found, path)))
    }

    /// Passes a file's data with its offset to `take`; blocks of zeros are skipped.
    pub(super) fn content(
        &mut self,
        found: &TarEntry,
        mut take: impl FnMut(&[u8], u64) -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        let whole = [(0, found.size)];
        for (start, length) in found.segments.as_deref().unwrap_or(&whole) {
            let (mut at, end) = (*start, start.saturating_add(*length));
            while at < end {
                // Ends at a block boundary, so that every inner block is examined whole.
                let room = self.buffer.len() as u64 - at % HOLE_BYTES;
                let wanted = usize::try_from((end - at).min(room)).unwrap_or(self.buffer.len());
                let mut filled = 0;
                while filled < wanted {
                    let count = self.reader.read_data(&mut self.buffer[filled..wanted]).map_err(bad)?;
                    if count == 0 {
                        return Err(FileError::BadArchive("it ends in the middle of a file".into()));
                    }
                    filled += count;
                }
                let first = usize::try_from(HOLE_BYTES - at % HOLE_BYTES).unwrap_or(wanted);
                for (offset, data) in entries::runs_of_data(&self.buffer[..wanted], first) {
                    take(data, at + offset as u64)?;
                }
                at += wanted as u64;
            }
        }
        Ok(())
    }
}

/// Normalizes a path so that each has one spelling: empty for the root, absolute paths made relative.
pub(super) fn clean(path: &[u8]) -> Result<Vec<u8>, FileError> {
    if path.is_empty() || path.contains(&0) || path.len() > PATH_BYTES_MAX {
        return Err(bad_path(path, "is no name that a file can have"));
    }
    let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
    if names.contains(&&b".."[..]) {
        return Err(bad_path(path, "leads upwards"));
    }
    if names.iter().any(|name| name.len() > NAME_BYTES_MAX) {
        return Err(bad_path(path, "has a name that is longer than 255 bytes"));
    }
    Ok(names.join(&b'/'))
}

fn quoted(path: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(&path[..path.len().min(SHOWN_BYTES_MAX)]))
}

pub(super) fn conflict(path: &[u8], why: &str) -> FileError {
    FileError::Conflict(format!("{} {why}", quoted(path)))
}

pub(super) fn bad_path(path: &[u8], why: &str) -> FileError {
    FileError::BadArchive(format!("{} {why}", quoted(path)))
}

fn bad(error: Error) -> FileError {
    match error {
        Error::Io(error) => error.into(),
        Error::TooLarge(_) => FileError::TooLarge,
        Error::BadArchive(why) => FileError::BadArchive(why),
        other => FileError::BadArchive(other.to_string()),
    }
}
