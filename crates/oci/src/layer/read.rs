//! Reading tars that may be hostile: ustar and pax (POSIX.1-2017, pax), and what GNU tar adds (GNU tar manual, "Basic Tar
//! Format"). Nothing is believed before it has been compared with a bound; nothing is kept but one entry.

use std::io::{self, Read};

use super::acl;
use super::pax::{self, BLOCK};
use super::sparse::{self, SEGMENTS_MAX, Segment};
use super::{EXTENSION_BYTES_MAX, PATH_BYTES_MAX};
use crate::Error;
use crate::digest::{Digest, Digesting};

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TarEntryKind {
    /// A regular file, sparse or not.
    File,
    /// A further name of a file.
    Link,
    /// A symbolic link.
    Symlink,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A device of either kind.
    Device,
    /// What means nothing here.
    Other,
}

/// An entry; its data is to be read before the next.
#[derive(Debug)]
pub struct TarEntry {
    /// What it is.
    pub kind: TarEntryKind,
    /// Its path, as the archive has it.
    pub path: Vec<u8>,
    /// Where a link of either kind leads.
    pub link: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// The id of its user.
    pub uid: u64,
    /// The id of its group.
    pub gid: u64,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Bytes of the file; those in the archive are less where it is sparse.
    pub size: u64,
    /// Where the data belongs, in a sparse file.
    pub segments: Option<Vec<Segment>>,
    /// Extended attributes.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// Access control lists: the attribute that each is to be, and its text.
    pub lists: Vec<(&'static [u8], Vec<u8>)>,
}

/// What extended headers have said about the next entry.
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

/// `GNU.sparse.*`.
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
    /// Data of the current entry that has not been read, and the padding after it.
    data: u64,
    padding: u64,
    has_end: bool,
}

impl<R: Read> Reader<R> {
    /// Reads from `inner`.
    pub fn new(inner: R, bytes_max: u64) -> Self {
        Self { inner: Digesting::new(inner), bytes_max, data: 0, padding: 0, has_end: false }
    }

    /// Whether the mark of its end was there; without it, it may have been cut off after an entry.
    pub fn has_end(&self) -> bool {
        self.has_end
    }

    /// Bytes of the tar that have been read.
    pub fn bytes(&self) -> u64 {
        self.inner.passed()
    }

    /// The next entry, or `None` at the end.
    ///
    /// # Errors
    /// [`Error::BadArchive`], [`Error::TooLarge`], and whatever reading says.
    pub fn next_entry(&mut self) -> Result<Option<TarEntry>, Error> {
        let mut extended = Extended::default();
        // Each extended header replaces what others said, so their number is bounded by the length of the tar only.
        loop {
            self.skip_rest()?;
            let Some(block) = self.header()? else { return Ok(None) };
            let size = number(&block[124..136]).and_then(|size| u64::try_from(size).ok());
            let size = size.ok_or_else(|| bad("a size that is no number"))?;
            match block[156] {
                b'x' => extended.read(&self.extension(size)?)?,
                b'L' => extended.path = Some(until_nul(&self.extension(size)?)),
                b'K' => extended.link = Some(until_nul(&self.extension(size)?)),
                // What holds for all that follows is not used by layers, and not heeded by the tools of others.
                b'g' => self.announce(size)?,
                _ => return self.entry(&block, size, extended).map(Some),
            }
        }
    }

    /// Reads data of the current entry. 0 at its end.
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

    /// Reads what follows the last entry, and says the digest and length of all.
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
        // All tools agree that these have no data, whatever the size says.
        if !matches!(found.kind, TarEntryKind::File | TarEntryKind::Other) {
            found.size = 0;
        }
        self.announce(found.size)?;
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

    /// The map of format 1.0.
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

    /// The map of GNU tar's own format: four segments in the header, 21 in each block that may follow.
    fn old_sparse(&mut self, header: &[u8], found: &mut TarEntry) -> Result<(), Error> {
        let mut segments = Vec::new();
        let mut more = old_segments(&header[386..482], &mut segments)? && header[482] != 0;
        let data = (self.data, self.padding);
        (self.data, self.padding) = (0, 0);
        while more {
            let mut block = [0; BLOCK as usize];
            self.demand(BLOCK)?;
            self.fill(&mut block)?;
            more = old_segments(&block[..504], &mut segments)? && block[504] != 0;
            if segments.len() > SEGMENTS_MAX + 1 {
                return Err(Error::TooLarge("the map of a sparse file".into()));
            }
        }
        (self.data, self.padding) = data;
        self.demand(self.data.saturating_add(self.padding))?;
        let size = number(&header[483..495]).and_then(|size| u64::try_from(size).ok());
        found.size = size.ok_or_else(|| bad("a sparse file without a size"))?;
        sparse::check(&segments, found.size, self.data)?;
        found.segments = Some(segments);
        Ok(())
    }

    fn header(&mut self) -> Result<Option<[u8; BLOCK as usize]>, Error> {
        let mut block = [0; BLOCK as usize];
        self.demand(0)?;
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

    /// Reads the data of an extended header whole.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        if size > EXTENSION_BYTES_MAX as u64 {
            return Err(Error::TooLarge("an extended header".into()));
        }
        self.announce(size)?;
        let mut bytes = vec![0; size as usize];
        self.fill(&mut bytes)?;
        self.data = 0;
        Ok(bytes)
    }

    /// `size` bytes of data follow.
    fn announce(&mut self, size: u64) -> Result<(), Error> {
        self.demand(size.saturating_add(pax::padding(size)))?;
        (self.data, self.padding) = (size, pax::padding(size));
        Ok(())
    }

    /// Whether `bytes` more are allowed, before they are read.
    fn demand(&self, bytes: u64) -> Result<(), Error> {
        if self.bytes().saturating_add(bytes) > self.bytes_max {
            return Err(Error::TooLarge("the archive".into()));
        }
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<(), Error> {
        let (data, padding) = (self.data, self.padding);
        (self.data, self.padding) = (0, 0);
        let skipped = io::copy(&mut (&mut self.inner).take(data + padding), &mut io::sink()).map_err(Error::from_io)?;
        // Some write nothing after the last file, not even the padding (umoci's `insert`). Its digest says that it is whole.
        if skipped >= data { Ok(()) } else { Err(bad("it ends in the middle of a file")) }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        if self.fill_or_end(buffer)? || buffer.is_empty() { Ok(()) } else { Err(bad("it ends in the middle")) }
    }

    /// False at the end of the stream.
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

/// A block of a map, and how much of it has been used.
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
        // A second extended header replaces these, so that they are bounded by one.
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
        // An empty value takes back what was said before.
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
        // The first that is empty ends the map.
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
        // Before ustar, a directory was a file whose name ends so.
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

/// Whether a block has the checksum of a header in it (POSIX.1-2017, pax, "ustar Interchange Format").
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
    // GNU tar has other things where ustar has the prefix, and says so with "ustar  ".
    let prefix = if &block[257..263] == b"ustar\0" { until_nul(&block[345..500]) } else { Vec::new() };
    if prefix.is_empty() { name } else { [&prefix[..], b"/", &name].concat() }
}

fn until_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// A number in octal digits, or in GNU tar's binary form (marked by the highest bit).
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
