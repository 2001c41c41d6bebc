//! Packs a layer directory into a layer tar.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Read, Seek as _, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::fs::{fgetxattr, flistxattr, fstat, getxattr, openat, readlinkat, statat};
use rustix::io::Errno;
use tar::EntryType;

use super::acl;
use super::pax::{self, Entry, Records};
use super::walk::{Walk, id};
use super::{
    ATTRIBUTE_BYTES_MAX, EXTENSION_BYTES_MAX, Format, OPAQUE, OVERLAY_ATTRIBUTES, OverlayXattrs, PATH_BYTES_MAX,
    PackedLayer, Skipped, USER_ATTRIBUTES,
};
use super::{WHITEOUT, sparse};
use crate::Error;
use crate::digest::Digesting;

/// The attribute of file capabilities, which grant privileges to every user.
const CAPABILITY: &[u8] = b"security.capability";
/// Size of the output buffer, in bytes.
const BUFFER_BYTES: usize = 64 << 10;
/// Bytes of holes in one layer that are written as zeros. Beyond, files are written as sparse files.
const ZEROS_BYTES_MAX: u64 = 8 << 30;

/// Packs `directory` into a tar (POSIX pax format), deterministically: names are sorted, and nothing depends on the
/// machine but the mapping in `format`.
///
/// Sockets, devices, names with prefix `.wh.`, paths longer than 64 KiB, attribute names with `=` and file
/// capabilities have no form in a layer; they are listed in [`PackedLayer::skipped`]. Access control lists are
/// written as by GNU tar and bsdtar. Attributes other than these and `user.*` are not content and left out silently.
///
/// # Errors
/// [`Error::Changed`] if the directory changes meanwhile, or if reading or writing fails.
pub fn pack(directory: &Path, format: &Format, writer: impl Write) -> Result<PackedLayer, Error> {
    let mut packer = Packer {
        out: Digesting::new(BufWriter::with_capacity(BUFFER_BYTES, writer)),
        format: *format,
        links: HashMap::new(),
        entries: 0,
        skipped: Skipped::default(),
        zeros_left: ZEROS_BYTES_MAX,
        buffer: vec![0; BUFFER_BYTES],
    };
    let mut walk = Walk::begin(directory)?;
    let root = fstat(walk.directory())?;
    packer.directory(walk.directory(), b"./", &root)?;
    loop {
        match walk.next() {
            Some(name) => packer.visit(&mut walk, &name)?,
            None if walk.leave()? => {}
            None => break,
        }
    }
    packer.finish()
}

struct Packer<W: Write> {
    out: Digesting<BufWriter<W>>,
    format: Format,
    /// Where hard-linked files were written first.
    links: HashMap<(u64, u64), Box<[u8]>>,
    entries: u64,
    skipped: Skipped,
    /// Bytes of holes that may still be written as zeros.
    zeros_left: u64,
    buffer: Vec<u8>,
}

impl<W: Write> Packer<W> {
    fn visit(&mut self, walk: &mut Walk, name: &CString) -> Result<(), Error> {
        let stat = statat(walk.directory(), name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW)?;
        let mut path = walk.path_of(name);
        if name.as_bytes().starts_with(WHITEOUT) {
            self.skipped.add(&path, "its name is one that xattrs a deleted file");
            return Ok(());
        }
        if path.len() >= PATH_BYTES_MAX - WHITEOUT.len() - OPAQUE.len() {
            self.skipped.add(&path[..256], "its path is too long");
            return Ok(());
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                walk.enter(name, &stat)?;
                path.push(b'/');
                self.directory(walk.directory(), &path, &stat)
            }
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                let parent = path.len() - name.as_bytes().len();
                path.splice(parent..parent, WHITEOUT.iter().copied());
                self.mark(&path)
            }
            FileType::RegularFile | FileType::Symlink | FileType::Fifo => {
                if stat.st_nlink > 1 {
                    if let Some(first) = self.links.get(&id(&stat)).cloned() {
                        return self.entry(EntryType::Link, &path, &first, &stat, 0, Records::default());
                    }
                    self.links.insert(id(&stat), path.clone().into());
                }
                self.leaf(walk.directory(), name, &path, &stat)
            }
            FileType::Socket => {
                self.skipped.add(&path, "it is a socket");
                Ok(())
            }
            _ => {
                self.skipped.add(&path, "it is a device");
                Ok(())
            }
        }
    }

    fn directory(&mut self, directory: BorrowedFd<'_>, path: &[u8], stat: &Stat) -> Result<(), Error> {
        let records = self.attributes(directory, path)?;
        self.entry(EntryType::Directory, path, b"", stat, 0, records)?;
        let mut value = [0; 1];
        match fgetxattr(directory, self.format.xattrs.opaque(), &mut value) {
            Ok(1) if value == *b"y" => {
                let mut mark = if path == b"./" { Vec::new() } else { path.to_vec() };
                mark.extend_from_slice(OPAQUE);
                self.mark(&mark)
            }
            // Later kernels have other values ("x"), which hide nothing.
            Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn leaf(&mut self, directory: BorrowedFd<'_>, name: &CString, path: &[u8], stat: &Stat) -> Result<(), Error> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let target = readlinkat(directory, name.as_c_str(), Vec::new())?;
                self.entry(EntryType::Symlink, path, target.as_bytes(), stat, 0, Records::default())
            }
            FileType::Fifo => {
                // Opening it properly could have side effects.
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let pipe = openat(directory, name.as_c_str(), flags, Mode::empty())?;
                let mut records = Records::default();
                let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
                let file = format!("/proc/self/fd/{}", pipe.as_raw_fd());
                match getxattr(file, acl::LISTS[0].0, &mut value[..]) {
                    Ok(count) => self.list(acl::LISTS[0].1, &value[..count], path, &mut records),
                    Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                    Err(error) => return Err(error.into()),
                }
                self.entry(EntryType::Fifo, path, b"", stat, 0, records)
            }
            _ => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let file = File::from(openat(directory, name.as_c_str(), flags, Mode::empty())?);
                self.file(file, path, stat)
            }
        }
    }

    fn file(&mut self, mut file: File, path: &[u8], seen: &Stat) -> Result<(), Error> {
        let stat = fstat(&file)?;
        if id(&stat) != id(seen) || !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(changed(path));
        }
        let mut records = self.attributes(file.as_fd(), path)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        // Only a hint that saves a look at most files.
        let maybe_sparse = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) < size;
        let segments = if maybe_sparse { sparse::segments(&file, size, sparse::SEGMENTS_MAX)? } else { None };
        let segments = segments.filter(|segments| !self.fills(size, segments));
        let Some(segments) = segments else {
            self.entry(EntryType::Regular, path, b"", &stat, size, records)?;
            self.copy(&mut file, size, path)?;
            return Ok(pax::pad(&mut self.out, size)?);
        };
        let mut map = sparse::encode(&segments);
        map.resize(map.len() + pax::padding(map.len() as u64) as usize, 0);
        let data = map.len() as u64 + segments.iter().map(|(_, length)| length).sum::<u64>();
        records.add(b"GNU.sparse.major", b"1");
        records.add(b"GNU.sparse.minor", b"0");
        records.add(b"GNU.sparse.name", path);
        records.add(b"GNU.sparse.realsize", size.to_string().as_bytes());
        // Readers without sparse support unpack map and data under this name (as with GNU tar).
        self.entry(EntryType::Regular, &sparse_name(path), b"", &stat, data, records)?;
        self.out.write_all(&map)?;
        for (start, length) in segments {
            file.seek(SeekFrom::Start(start))?;
            self.copy(&mut file, length, path)?;
        }
        Ok(pax::pad(&mut self.out, data)?)
    }

    /// Whether holes are written as zeros. Every reader understands that (busybox takes the map of a sparse file for
    /// content), and zeros compress well.
    fn fills(&mut self, size: u64, segments: &[sparse::Segment]) -> bool {
        let data: u64 = segments.iter().map(|(_, length)| length).sum();
        let left = self.zeros_left.checked_sub(size.saturating_sub(data));
        self.zeros_left = left.unwrap_or(self.zeros_left);
        left.is_some()
    }

    fn copy(&mut self, file: &mut File, size: u64, path: &[u8]) -> Result<(), Error> {
        let mut left = size;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let count = match file.read(&mut self.buffer[..wanted]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                outcome => outcome?,
            };
            if count == 0 {
                return Err(changed(path));
            }
            self.out.write_all(&self.buffer[..count])?;
            left -= count as u64;
        }
        Ok(())
    }

    /// Writes an empty file owned by root that marks a deletion.
    fn mark(&mut self, path: &[u8]) -> Result<(), Error> {
        self.entries += 1;
        let kind = EntryType::Regular;
        let records = Records::default();
        let mark = Entry { kind, path, link: b"", mode: 0, uid: 0, gid: 0, mtime: (0, 0), size: 0, records };
        Ok(pax::write_header(&mut self.out, mark)?)
    }

    fn entry(
        &mut self,
        kind: EntryType,
        path: &[u8],
        link: &[u8],
        stat: &Stat,
        size: u64,
        records: Records,
    ) -> Result<(), Error> {
        self.entries += 1;
        let ids = self.format.ids;
        let entry = Entry {
            kind,
            path,
            link,
            mode: stat.st_mode & 0o7777,
            uid: ids.to_container(stat.st_uid),
            gid: ids.to_container(stat.st_gid),
            mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            size,
            records,
        };
        Ok(pax::write_header(&mut self.out, entry)?)
    }

    fn attributes(&mut self, file: BorrowedFd<'_>, path: &[u8]) -> Result<Records, Error> {
        let mut records = Records::default();
        let mut list = vec![0; ATTRIBUTE_BYTES_MAX];
        let count = match flistxattr(file, &mut list[..]) {
            Ok(count) => count,
            Err(Errno::OPNOTSUPP) => 0,
            Err(error) => return Err(error.into()),
        };
        let all = list[..count].split(|byte| *byte == 0);
        if all.clone().any(|name| name == CAPABILITY) {
            self.skipped.add(path, "it has capabilities");
        }
        // With `trusted.*`, attributes in `user.overlay.*` are not overlayfs's and must not pass for such.
        if self.format.xattrs == OverlayXattrs::Trusted && all.clone().any(|name| name.starts_with(OVERLAY_ATTRIBUTES))
        {
            self.skipped.add(path, "an attribute of it has a name that is overlayfs's own");
        }
        let mut names: Vec<&[u8]> = all.filter(|name| is_content(name)).collect();
        names.sort_unstable();
        let mut value = vec![0; if names.is_empty() { 0 } else { ATTRIBUTE_BYTES_MAX }];
        for name in names {
            if name.contains(&b'=') {
                self.skipped.add(path, "the name of an attribute of it contains '='");
                continue;
            }
            let count = match fgetxattr(file, name, &mut value[..]) {
                Ok(count) => count,
                Err(Errno::NODATA) => continue,
                Err(error) => return Err(error.into()),
            };
            if records.bytes() + name.len() + count > EXTENSION_BYTES_MAX / 2 {
                self.skipped.add(path, "it has too many attributes");
                break;
            }
            match acl::record_of(name) {
                Some(record) => self.list(record, &value[..count], path, &mut records),
                None => records.add(&[b"SCHILY.xattr.", name].concat(), &value[..count]),
            }
        }
        Ok(records)
    }

    fn list(&mut self, record: &[u8], value: &[u8], path: &[u8], records: &mut Records) {
        match acl::to_text(value, self.format.ids) {
            Some(text) => records.add(record, text.as_bytes()),
            None => self.skipped.add(path, "its access control list is not understood"),
        }
    }

    fn finish(mut self) -> Result<PackedLayer, Error> {
        // Two empty blocks end a tar.
        self.out.write_all(&[0; 2 * pax::BLOCK as usize])?;
        self.out.flush()?;
        let (_, diff_id, bytes) = self.out.finish();
        Ok(PackedLayer { diff_id, bytes, entries: self.entries, skipped: self.skipped })
    }
}

/// Whether an attribute is content.
pub fn is_content(name: &[u8]) -> bool {
    acl::record_of(name).is_some() || name.starts_with(USER_ATTRIBUTES) && !name.starts_with(OVERLAY_ATTRIBUTES)
}

/// The name of a sparse file for readers without sparse support (as with GNU tar).
pub fn sparse_name(path: &[u8]) -> Vec<u8> {
    let split = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    [&path[..split], b"GNUSparseFile.0/", &path[split..]].concat()
}

fn changed(path: &[u8]) -> Error {
    Error::Changed(String::from_utf8_lossy(path).into_owned())
}
