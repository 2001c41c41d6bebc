//! Data segments of sparse files, on disk and in tars (GNU tar manual, "Sparse Formats").

use std::io::Write as _;
use std::os::fd::AsFd;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::Error;

/// A data segment: offset and length in bytes.
pub type Segment = (u64, u64);

/// Segments per file that are kept in memory.
pub const SEGMENTS_MAX: usize = 1 << 18;
/// The smallest hole that is kept, in bytes.
const HOLE_MIN: u64 = 4096;
/// Disk space per segment, in bytes, at least.
const SEGMENT_ON_DISK: u64 = 4096;

/// The data segments of an open file of `size` bytes; `None` if it has no holes. After `segments_max`, the rest
/// counts as data.
///
/// # Errors
/// If the file system fails.
pub fn segments(file: impl AsFd, size: u64, segments_max: usize) -> Result<Option<Vec<Segment>>, Error> {
    let mut found: Vec<Segment> = Vec::new();
    let mut at = 0;
    let mut holes = 0;
    while at < size {
        let start = match seek(&file, SeekFrom::Data(at)) {
            Ok(start) => start.min(size),
            Err(Errno::NXIO) => size,
            // The file system does not support holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        holes += start - at;
        if start == size {
            break;
        }
        let mut end = seek(&file, SeekFrom::Hole(start))?.min(size);
        if found.len() + 1 >= segments_max {
            end = size;
        }
        found.push((start, end - start));
        at = end;
    }
    seek(&file, SeekFrom::Start(0))?;
    if holes < HOLE_MIN {
        return Ok(None);
    }
    // GNU tar marks the end of a file with an empty segment.
    if found.last().is_none_or(|(start, length)| start + length < size) {
        found.push((size, 0));
    }
    Ok(Some(found))
}

/// Encodes the map of sparse format 1.0: decimal numbers, one per line. The caller pads it to a block.
pub fn encode(segments: &[Segment]) -> Vec<u8> {
    let mut map = format!("{}\n", segments.len()).into_bytes();
    for (start, length) in segments {
        // Writing to a vector cannot fail.
        let _ = write!(map, "{start}\n{length}\n");
    }
    map
}

/// Checks that segments are in order, within `size`, and have `data` bytes in total.
///
/// # Errors
/// [`Error::BadArchive`] otherwise.
pub fn check(segments: &[Segment], size: u64, data: u64) -> Result<(), Error> {
    let mut at = 0;
    let mut total = 0_u64;
    for (start, length) in segments {
        let end = start.checked_add(*length).filter(|end| *start >= at && *end <= size);
        at = end.ok_or_else(|| Error::BadArchive("the map of a sparse file is not in order".into()))?;
        total += length; // cannot overflow: they do not overlap and end within `size`
    }
    if total == data { Ok(()) } else { Err(Error::BadArchive("the map of a sparse file does not fit its data".into())) }
}

/// Bytes that the segments may take on disk.
pub fn on_disk(segments: &[Segment]) -> u64 {
    segments.iter().fold(0, |sum: u64, (_, length)| {
        let blocks = if *length == 0 { 0 } else { length.div_ceil(SEGMENT_ON_DISK).saturating_add(1) };
        sum.saturating_add(blocks.saturating_mul(SEGMENT_ON_DISK))
    })
}
