//! Reads untrusted tars: ustar and pax (POSIX.1-2017, pax) with GNU extensions (GNU tar manual, "Basic Tar Format").
//! Every number is checked against a bound, and only one entry is kept in memory.

use std::io::{self, Read};

use super::acl;
use super::pax::{self, BLOCK};
use super::sparse::{self, SEGMENTS_MAX, Segment};
use super::{EXTENSION_BYTES_MAX, PATH_BYTES_MAX};
use crate::Error;
use crate::digest::{Digest, Digesting};

/// The type of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TarEntryKind {
    /// A regular file, sparse or not.
    File,
    /// A hard link.
    Link,
    /// A symbolic link.
    Symlink,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A character or block device.
    Device,
    /// An unknown type.
    Other,
}

/// An entry. Its data must be read before the next entry.
#[derive(Debug)]
pub struct TarEntry {
    /// Its type.
    pub kind: TarEntryKind,
    /// Its path as in the archive.
    pub path: Vec<u8>,
    /// The target of a hard or symbolic link.
    pub link: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Its user id.
    pub uid: u64,
    /// Its group id.
    pub gid: u64,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Size of the file in bytes; the archive has fewer if it is sparse.
    pub size: u64,
    /// The data segments of a sparse file.
    pub segments: Option<Vec<Segment>>,
    /// Extended attributes.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// Access control lists: the attribute to set, and the list's text.
    pub lists: Vec<(&'static [u8], Vec<u8>)>,
}

/// Values of extended headers for the next entry.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
    lists: Vec<(&'static [u8], Vec<u8>)>,
    sparse: Sparse,
}

/// The records `GNU.sparse.*`.
#[derive(Default)]
struct Sparse {
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// Format 1.0: the map precedes the data.
    map_in_data: bool,
    /// Formats 0.0 and 0.1: offsets and lengths, alternating.
    map: Vec<u64>,
}

/// Reads a tar of at most `bytes_max` bytes.
pub struct Reader<R: Read> {
    inner: Digesting<R>,
    bytes_max: u64,
    /// Bytes of the current entry's data and padding that were not read.
    data: u64,
    padding: u64,
    has_end: bool,
}

impl<R: Read> Reader<R> {
    /// A reader of `inner`.
    pub fn new(inner: R, bytes_max: u64) -> Self {
        Self { inner: Digesting::new(inner), bytes_max, data: 0, padding: 0, has_end: false }
    }

    /// Whether the end marker was read; without it, the tar may be truncated.
    pub fn has_end(&self) -> bool {
        self.has_end
    }

    /// Bytes of the tar that were read.
    pub fn bytes(&self) -> u64 {
        self.inner.passed()
    }

    /// The next entry, or `None` at the end.
    ///
    /// # Errors
    /// [`Error::BadArchive`], [`Error::TooLarge`], or if reading fails.
    pub fn next_entry(&mut self) -> Result<Option<TarEntry>, Error> {
        let mut extended = Extended::default();
        // Each extended header replaces the one before, so only the size of the tar bounds their number.
        loop {
            self.skip_rest()?;
            let Some(block) = self.header()? else { return Ok(None) };
            let size = number(&block[124..136]).and_then(|size| u64::try_from(size).ok());
            let size = size.ok_or_else(|| bad("a size that is no number"))?;
            match block[156] {
                b'x' => extended.read(&self.extension(size)?)?,
                b'L' => extended.path = Some(until_nul(&self.extension(size)?)),
                b'K' => extended.link = Some(until_nul(&self.extension(size)?)),
                // Global headers are not used in layers, and other tools ignore them.
                b'g' => self.begin_data(size)?,
                _ => return self.entry(&block, size, extended).map(Some),
            }
        }
    }

    /// Reads data of the current entry; 0 at its end.
    ///
    /// # Errors
    /// As [`Self::next_entry`].
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let wanted = usize::try_from(self.data).unwrap_or(usize::MAX).min(buffer.len());
        let count = loop {
            match self.inner.read(&mut buffer[..wanted]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome.map_err(Error::from_io)?,
            }
        };
        if count == 0 && wanted > 0 {
            return Err(bad("it ends in the middle of a file"));
        }
        self.data -= count as u64;
        Ok(count)
    }

    /// Reads the rest of the tar. Returns its digest and size.
    ///
    /// # Errors
    /// As [`Self::next_entry`].
    pub fn finish(mut self) -> Result<(Digest, u64), Error> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = match self.inner.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                outcome => outcome.map_err(Error::from_io)?,
            };
            if self.bytes() > self.bytes_max {
                return Err(Error::TooLarge("the archive".into()));
            }
            if count == 0 {
                let (_, digest, bytes) = self.inner.finish();
                return Ok((digest, bytes));
            }
        }
    }

    fn entry(&mut self, block: &[u8], size: u64, extended: Extended) -> Result<TarEntry, Error> {
        let header = |field: &[u8]| until_nul(field);
        let id = |field: &[u8]| number(field).and_then(|id| u64::try_from(id).ok()).unwrap_or(u64::MAX);
        let path = extended.path.unwrap_or_else(|| ustar_path(block));
        let mut found = TarEntry {
            kind: kind(block[156], &path),
            path,
            link: extended.link.unwrap_or_else(|| header(&block[157..257])),
            mode: number(&block[100..108]).map_or(0, |mode| (mode & 0o7777) as u32),
            uid: extended.uid.unwrap_or_else(|| id(&block[108..116])),
            gid: extended.gid.unwrap_or_else(|| id(&block[116..124])),
            mtime: extended.mtime.unwrap_or_else(|| (number(&block[136..148]).unwrap_or(0), 0)),
            size: extended.size.unwrap_or(size),
            segments: None,
            attributes: extended.attributes,
            lists: extended.lists,
        };
        // These types never have data, whatever the size field says.
        if !matches!(found.kind, TarEntryKind::File | TarEntryKind::Other) {
            found.size = 0;
        }
        self.begin_data(found.size)?;
        if block[156] == b'S' {
            self.old_sparse(block, &mut found)?;
        } else if found.kind == TarEntryKind::File {
            self.pax_sparse(extended.sparse, &mut found)?;
        }
        if found.path.len() > PATH_BYTES_MAX || found.link.len() > PATH_BYTES_MAX {
            return Err(bad("a path that is too long"));
        }
        Ok(found)
    }

    fn pax_sparse(&mut self, sparse: Sparse, found: &mut TarEntry) -> Result<(), Error> {
        if let Some(name) = sparse.name {
            found.path = name;
        }
        let segments = if sparse.map_in_data {
            self.map_in_data()?
        } else if !sparse.map.is_empty() {
            sparse.map.chunks(2).map(|pair| (pair[0], pair.get(1).copied().unwrap_or(u64::MAX))).collect()
        } else {
            return Ok(());
        };
        found.size = sparse.size.ok_or_else(|| bad("a sparse file without a size"))?;
        sparse::check(&segments, found.size, self.data)?;
        found.segments = Some(segments);
        Ok(())
    }

    /// Parses the map of sparse format 1.0.
    fn map_in_data(&mut self) -> Result<Vec<Segment>, Error> {
        let mut block = Block::default();
        let count = self.map_number(&mut block)?;
        if count > SEGMENTS_MAX as u64 + 1 {
            return Err(Error::TooLarge("the map of a sparse file".into()));
        }
        let mut segments = Vec::new();
        for _ in 0..count {
            segments.push((self.map_number(&mut block)?, self.map_number(&mut block)?));
        }
        Ok(segments)
    }

    fn map_number(&mut self, block: &mut Block) -> Result<u64, Error> {
        let mut value: u64 = 0;
        for digits in 0..=20 {
            if block.at == block.filled {
                block.filled = 0;
                while block.filled < block.bytes.len() {
                    let count = self.read_data(&mut block.bytes[block.filled..])?;
                    if count == 0 {
                        return Err(bad("the map of a sparse file has no end"));
                    }
                    block.filled += count;
                }
                block.at = 0;
            }
            let byte = block.bytes[block.at];
            block.at += 1;
            match byte {
                b'\n' if digits > 0 => return Ok(value),
                b'0'..=b'9' => {
                    let next = value.checked_mul(10).and_then(|value| value.checked_add(u64::from(byte - b'0')));
                    value = next.ok_or_else(|| bad("the map of a sparse file has a number that is too large"))?;
                }
                _ => break,
            }
        }
        Err(bad("the map of a sparse file is no list of numbers"))
    }

    /// Parses the map of GNU's old sparse format: four segments in the header, 21 in each following block.
    fn old_sparse(&mut self, header: &[u8], found: &mut TarEntry) -> Result<(), Error> {
        let mut segments = Vec::new();
        let mut more = old_segments(&header[386..482], &mut segments)? && header[482] != 0;
        let data = (self.data, self.padding);
        (self.data, self.padding) = (0, 0);
        while more {
            let mut block = [0; BLOCK as usize];
            self.check_limit(BLOCK)?;
            self.fill(&mut block)?;
            more = old_segments(&block[..504], &mut segments)? && block[504] != 0;
            if segments.len() > SEGMENTS_MAX + 1 {
                return Err(Error::TooLarge("the map of a sparse file".into()));
            }
        }
        (self.data, self.padding) = data;
        self.check_limit(self.data.saturating_add(self.padding))?;
        let size = number(&header[483..495]).and_then(|size| u64::try_from(size).ok());
        found.size = size.ok_or_else(|| bad("a sparse file without a size"))?;
        sparse::check(&segments, found.size, self.data)?;
        found.segments = Some(segments);
        Ok(())
    }

    fn header(&mut self) -> Result<Option<[u8; BLOCK as usize]>, Error> {
        let mut block = [0; BLOCK as usize];
        self.check_limit(0)?;
        if !self.fill_or_end(&mut block)? {
            return Ok(None);
        }
        if block.iter().all(|byte| *byte == 0) {
            self.has_end = true;
            if self.fill_or_end(&mut block)? && block.iter().any(|byte| *byte != 0) {
                return Err(bad("something follows its end"));
            }
            return Ok(None);
        }
        if !is_tar_header(&block) {
            return Err(bad("it is not a tar, or damaged"));
        }
        Ok(Some(block))
    }

    /// Reads the whole data of an extended header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        if size > EXTENSION_BYTES_MAX as u64 {
            return Err(Error::TooLarge("an extended header".into()));
        }
        self.begin_data(size)?;
        let mut bytes = vec![0; size as usize];
        self.fill(&mut bytes)?;
        self.data = 0;
        Ok(bytes)
    }

    /// Registers `size` bytes of data for the current entry.
    fn begin_data(&mut self, size: u64) -> Result<(), Error> {
        self.check_limit(size.saturating_add(pax::padding(size)))?;
        (self.data, self.padding) = (size, pax::padding(size));
        Ok(())
    }

    /// Checks that `bytes` more are within the limit.
    fn check_limit(&self, bytes: u64) -> Result<(), Error> {
        if self.bytes().saturating_add(bytes) > self.bytes_max {
            return Err(Error::TooLarge("the archive".into()));
        }
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<(), Error> {
        let (data, padding) = (self.data, self.padding);
        (self.data, self.padding) = (0, 0);
        let skipped = io::copy(&mut (&mut self.inner).take(data + padding), &mut io::sink()).map_err(Error::from_io)?;
        // Some tools omit the padding after the last file (umoci's `insert`); the digest still protects it.
        if skipped >= data { Ok(()) } else { Err(bad("it ends in the middle of a file")) }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        if self.fill_or_end(buffer)? || buffer.is_empty() { Ok(()) } else { Err(bad("it ends in the middle")) }
    }

    /// Returns false at the end of the stream.
    fn fill_or_end(&mut self, buffer: &mut [u8]) -> Result<bool, Error> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.inner.read(&mut buffer[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(bad("it ends in the middle")),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::from_io(error)),
            }
        }
        Ok(true)
    }
}

/// A block of a sparse map, and how much of it was parsed.
struct Block {
    bytes: [u8; BLOCK as usize],
    filled: usize,
    at: usize,
}

impl Default for Block {
    fn default() -> Self {
        Self { bytes: [0; BLOCK as usize], filled: 0, at: 0 }
    }
}

impl Extended {
    fn read(&mut self, bytes: &[u8]) -> Result<(), Error> {
        // A second extended header replaces these, which bounds their size.
        self.attributes.clear();
        self.lists.clear();
        self.sparse.map.clear();
        for record in pax::records(bytes) {
            let (key, value) = record.ok_or_else(|| bad("an extended header that is malformed"))?;
            self.record(key, value)?;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        // An empty value removes an earlier one.
        let text = (!value.is_empty()).then(|| value.to_vec());
        let count = || match value {
            b"" => Ok(None),
            _ => std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse::<u64>().ok())
                .map(Some)
                .ok_or_else(|| bad("an extended header with a number that is none")),
        };
        match key {
            b"path" => self.path = text,
            b"linkpath" => self.link = text,
            b"size" => self.size = count()?,
            b"uid" => self.uid = count()?,
            b"gid" => self.gid = count()?,
            b"mtime" => self.mtime = pax::parse_time(value),
            b"GNU.sparse.name" => self.sparse.name = text,
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse.size = count()?,
            b"GNU.sparse.major" => self.sparse.map_in_data = value == b"1",
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse.map.extend(count()?),
            b"GNU.sparse.map" => {
                let numbers = value.split(|byte| *byte == b',');
                let numbers = numbers.map(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
                let map: Option<Vec<u64>> = numbers.collect();
                self.sparse.map = map.ok_or_else(|| bad("the map of a sparse file is no list of numbers"))?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.attributes.push((name.to_vec(), value.to_vec()));
                } else if let Some(name) = acl::attribute_of(key) {
                    self.lists.push((name, value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

fn old_segments(fields: &[u8], segments: &mut Vec<Segment>) -> Result<bool, Error> {
    for field in fields.chunks_exact(24) {
        // The first empty segment ends the map.
        if field[0] == 0 {
            return Ok(false);
        }
        let part = |field: &[u8]| number(field).and_then(|value| u64::try_from(value).ok());
        let (Some(start), Some(length)) = (part(&field[..12]), part(&field[12..])) else {
            return Err(bad("the map of a sparse file is no list of numbers"));
        };
        segments.push((start, length));
    }
    Ok(true)
}

fn kind(flag: u8, path: &[u8]) -> TarEntryKind {
    match flag {
        // Before ustar, a directory was a file whose name ends with a slash.
        0 if path.ends_with(b"/") => TarEntryKind::Directory,
        0 | b'0' | b'7' | b'S' => TarEntryKind::File,
        b'1' => TarEntryKind::Link,
        b'2' => TarEntryKind::Symlink,
        b'3' | b'4' => TarEntryKind::Device,
        b'5' => TarEntryKind::Directory,
        b'6' => TarEntryKind::Fifo,
        _ => TarEntryKind::Other,
    }
}

/// Whether a block has a valid header checksum (POSIX.1-2017, pax, "ustar Interchange Format").
pub(crate) fn is_tar_header(block: &[u8]) -> bool {
    if block.len() < BLOCK as usize {
        return false;
    }
    let sum: u32 = block[..BLOCK as usize].iter().map(|byte| u32::from(*byte)).sum();
    let field: u32 = block[148..156].iter().map(|byte| u32::from(*byte)).sum();
    number(&block[148..156]) == Some(i64::from(sum - field + 8 * u32::from(b' ')))
}

fn ustar_path(block: &[u8]) -> Vec<u8> {
    let name = until_nul(&block[..100]);
    // GNU tar uses the prefix field for other data, and has "ustar  " as magic.
    let prefix = if &block[257..263] == b"ustar\0" { until_nul(&block[345..500]) } else { Vec::new() };
    if prefix.is_empty() { name } else { [&prefix[..], b"/", &name].concat() }
}

fn until_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// A number in octal, or in GNU's binary form (highest bit set).
fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let start = if negative { -1 } else { 0 };
        return field.iter().enumerate().try_fold(start, |value: i64, (at, byte)| {
            let byte = if at == 0 { if negative { *byte | 0x80 } else { *byte & 0x3f } } else { *byte };
            if at == 0 && negative {
                (byte == 0xff).then_some(-1)
            } else {
                value.checked_mul(256)?.checked_add(i64::from(byte))
            }
        });
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(|c: char| c == ' ' || c == '\0');
    if text.is_empty() { Some(0) } else { i64::from_str_radix(text, 8).ok().filter(|value| *value >= 0) }
}

fn bad(what: &str) -> Error {
    Error::BadArchive(what.to_owned())
}
