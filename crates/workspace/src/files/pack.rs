//! Packs a directory, file or link into a tar that GNU tar, bsdtar and busybox can read. The tree may change
//! meanwhile.
//!
//! Memory is bounded by [`NAMES_BYTES_MAX`] for names, plus [`LEVEL_BYTES_MIN`] for each of [`DEPTH_MAX`] levels, and
//! by [`LINKS_BYTES_MAX`] for hard links.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use raworc_core::link::AGENT_UID;
use raworc_oci::Ids;
use raworc_oci::entries::{self, EntryType, Records, acl};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fgetxattr, flistxattr, fstat, openat, readlinkat};
use rustix::io::Errno;

use super::list::{NAME_BYTES, names};
use super::resolve::{
    BELOW, BENEATH, EntryHandle, HANDLE, ResolveOptions, check_path, descend, lookup_within, open_within, resolve,
};
use super::{Place, Workspace, modified};
use crate::error::FileError;
use crate::layers::DEPTH_MAX;

/// Size of the output buffer, in bytes.
const BUFFER_BYTES: usize = 64 * 1024;
/// Bytes of names kept in memory for all open directories; further names are read again later.
const NAMES_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Bytes of names that one directory may always keep; a large directory is read once per so many.
const LEVEL_BYTES_MIN: usize = 64 * 1024;
/// Data segments of a sparse file; the rest counts as data. Each takes 48 bytes.
const SEGMENTS_MAX: usize = 8 * 1024;
/// Bytes of paths remembered for hard links; beyond, each name gets a copy of the file.
const LINKS_BYTES_MAX: usize = 6 * 1024 * 1024;
/// Memory per remembered hard link besides its path, in bytes.
const LINK_BYTES: usize = 64;
/// Longest path in a tar, in bytes.
pub(super) const PATH_BYTES_MAX: usize = 64 * 1024;
/// Bytes of holes written as zeros, which every reader understands. Files with larger holes use GNU tar's sparse
/// format.
const HOLES_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Size of one attribute value or of all attribute names, in bytes (Linux: `XATTR_SIZE_MAX`).
const ATTRIBUTE_BYTES_MAX: usize = 64 * 1024;
/// Size of all attributes of a file, in bytes.
const ATTRIBUTES_BYTES_MAX: usize = 512 * 1024;

/// A directory, file or link to be packed.
#[derive(Debug)]
pub struct PackSource {
    place: Place,
    /// The name of a file or link in the tar.
    name: Vec<u8>,
    /// The container's id mapping: every entry is written as the agents'. `None` keeps the real owners.
    ids: Option<Ids>,
    reach: ResolveFlags,
}

/// Statistics of a packed tar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackStats {
    /// Number of entries.
    pub entries: u64,
    /// Bytes of file contents.
    pub bytes: u64,
    /// Entries and attributes left out: sockets, devices, attributes without a tar form, directories that are too
    /// deep.
    pub left_out: u64,
}

impl Workspace {
    /// Opens the entry at `path` for packing. Links are followed within the workspace, the last component only with
    /// `follow`.
    ///
    /// # Errors
    /// If there is none, or it has no tar form.
    pub fn pack_source(&self, path: &[u8], follow: bool) -> Result<PackSource, FileError> {
        let path = check_path(path)?;
        let place = resolve(self.root(), path, ResolveOptions { follow, make: None })?;
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec();
        PackSource::new(place, name, self.owner.ids(), BENEATH)
    }
}

impl PackSource {
    fn new(place: Place, name: Vec<u8>, ids: Option<Ids>, reach: ResolveFlags) -> Result<Self, FileError> {
        match place.node.as_ref().ok_or(FileError::NotFound)?.kind() {
            FileType::Directory | FileType::RegularFile | FileType::Symlink => {}
            _ => return Err(FileError::WrongKind("it is neither a file nor a directory")),
        }
        Ok(Self { place, name, ids, reach })
    }

    /// Opens a path of this machine for packing; a file or link is named `name` in the tar.
    ///
    /// # Errors
    /// As [`Workspace::packing`].
    pub fn local(path: &Path, follow: bool, name: &[u8]) -> Result<Self, FileError> {
        let flags = if follow { HANDLE - OFlags::NOFOLLOW } else { HANDLE };
        let handle = openat(CWD, path, flags, Mode::empty())?;
        let node = EntryHandle { stat: fstat(&handle)?, handle };
        let (directory, inner) = match node.kind() {
            FileType::Directory => (node.handle.try_clone()?, b".".to_vec()),
            _ => {
                use std::os::unix::ffi::OsStrExt as _;
                let path = if follow { path.canonicalize()? } else { path.to_owned() };
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let flags = (HANDLE - OFlags::NOFOLLOW) | OFlags::DIRECTORY;
                let inner = path.file_name().unwrap_or_default().as_bytes().to_vec();
                (openat(CWD, parent, flags, Mode::empty())?, inner)
            }
        };
        Self::new(Place { directory, name: inner, node: Some(node) }, name.to_vec(), None, BELOW)
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.place.node.as_ref().is_some_and(|node| node.kind() == FileType::Directory)
    }

    /// Writes the tar; the content of a directory is below `./`. Entries that change meanwhile may be old, new or
    /// mixed, but the tar is valid.
    ///
    /// # Errors
    /// If reading or writing fails. The output is then incomplete.
    pub fn write(self, out: impl Write) -> Result<PackStats, FileError> {
        let Self { place, name, ids, reach } = self;
        let mut packer = Packer {
            out: BufWriter::with_capacity(BUFFER_BYTES, out),
            ids,
            reach,
            links: HashMap::new(),
            links_bytes: 0,
            names_bytes: 0,
            buffer: vec![0; BUFFER_BYTES],
            list: vec![0; ATTRIBUTE_BYTES_MAX],
            done: PackStats::default(),
        };
        let node = place.node.as_ref().ok_or(FileError::NotFound)?;
        if node.kind() == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            packer.tree(&open_within(place.directory.as_fd(), &place.name, flags, reach)?)?;
        } else {
            packer.leaf(place.directory.as_fd(), &place.name, &name, node)?;
        }
        // Two empty blocks end a tar.
        packer.out.write_all(&[0; 1024])?;
        packer.out.flush()?;
        Ok(packer.done)
    }
}

struct Packer<W: Write> {
    out: BufWriter<W>,
    ids: Option<Ids>,
    reach: ResolveFlags,
    /// Hard-linked files with names still to come, by device and inode.
    links: HashMap<(u64, u64), HardLink>,
    links_bytes: usize,
    names_bytes: usize,
    buffer: Vec<u8>,
    /// Buffer for attribute names.
    list: Vec<u8>,
    done: PackStats,
}

/// The first path of a file, and how many names are still to come.
type HardLink = (Box<[u8]>, u64);

/// An open directory.
struct Level {
    /// Length of its path.
    path_bytes: usize,
    names: std::vec::IntoIter<Vec<u8>>,
    /// Bytes of names kept for it.
    names_bytes: usize,
    last: Option<Vec<u8>>,
    has_more: bool,
}

impl<W: Write> Packer<W> {
    fn tree(&mut self, root: &OwnedFd) -> Result<(), FileError> {
        self.directory(root.as_fd(), b"./", &fstat(root)?)?;
        let (mut path, mut at) = (Vec::new(), root.try_clone()?);
        let mut levels = vec![Level::new(0)];
        while let Some(level) = levels.last_mut() {
            let Some(name) = self.next(level, &at)? else {
                self.names_bytes -= level.names_bytes;
                levels.pop();
                let Some(above) = levels.last_mut() else { break };
                path.truncate(above.path_bytes);
                // Reopened by path: the directory may have been moved, and `..` would then lead elsewhere.
                match descend(root.as_fd(), path.strip_suffix(b"/").unwrap_or(&path), self.reach) {
                    Ok(directory) => at = directory,
                    // The directory is gone; skip its remaining names.
                    Err(_) => above.end(),
                }
                continue;
            };
            let from = path.len();
            path.extend_from_slice(&name);
            if path.len() >= PATH_BYTES_MAX {
                return Err(FileError::TooDeep);
            }
            match self.visit(&at, &name, &mut path, levels.len())? {
                Some(inner) => {
                    levels.push(Level::new(path.len()));
                    at = inner;
                }
                None => path.truncate(from),
            }
        }
        Ok(())
    }

    /// Writes one entry. Returns the directory if it is one, with a slash at the end of `path`. Directories that are
    /// too deep are left out.
    fn visit(
        &mut self,
        at: &OwnedFd,
        name: &[u8],
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<Option<OwnedFd>, FileError> {
        let Some(node) = lookup_within(at.as_fd(), name, self.reach)? else { return Ok(None) };
        if node.kind() != FileType::Directory {
            self.leaf(at.as_fd(), name, path, &node)?;
            return Ok(None);
        }
        if depth > DEPTH_MAX {
            self.done.left_out += 1;
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        match open_within(at.as_fd(), name, flags, self.reach) {
            Ok(inner) => {
                path.push(b'/');
                self.directory(inner.as_fd(), path, &fstat(&inner)?)?;
                Ok(Some(inner))
            }
            Err(error) if is_gone(error) => Ok(None),
            Err(error) => Err(named(path, error)),
        }
    }

    fn next(&mut self, level: &mut Level, directory: &OwnedFd) -> Result<Option<Vec<u8>>, FileError> {
        if level.names.len() == 0 && level.has_more {
            self.names_bytes -= level.names_bytes;
            // Half of the rest, so that directories further down have some as well.
            let bytes_max = (NAMES_BYTES_MAX.saturating_sub(self.names_bytes) / 2).max(LEVEL_BYTES_MIN);
            let (found, has_more) = names(directory, level.last.as_deref(), usize::MAX, bytes_max)?;
            level.names_bytes = found.iter().map(|name| name.len() + NAME_BYTES).sum();
            self.names_bytes += level.names_bytes;
            (level.last, level.has_more) = (found.last().cloned(), has_more);
            level.names = found.into_iter();
        }
        Ok(level.names.next())
    }

    fn directory(&mut self, directory: BorrowedFd<'_>, path: &[u8], stat: &Stat) -> Result<(), FileError> {
        let mut stat = *stat;
        let records = self.attributes(directory, &mut stat);
        self.entry(EntryType::Directory, path, b"", &stat, 0, records)
    }

    /// Writes an entry that is no directory. What has no tar form is counted.
    fn leaf(&mut self, at: BorrowedFd<'_>, name: &[u8], path: &[u8], node: &EntryHandle) -> Result<(), FileError> {
        let stat = &node.stat;
        if let Some(first) = self.known(stat) {
            return self.entry(EntryType::Link, path, &first, stat, 0, Records::default());
        }
        match node.kind() {
            FileType::Symlink => {
                let target = readlinkat(&node.handle, "", Vec::new())?;
                self.entry(EntryType::Symlink, path, target.as_bytes(), stat, 0, Records::default())?;
            }
            FileType::Fifo => self.entry(EntryType::Fifo, path, b"", stat, 0, Records::default())?,
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
                let file = match open_within(at, name, flags, self.reach) {
                    Ok(file) => File::from(file),
                    Err(error) if is_gone(error) => return Ok(()),
                    Err(error) => return Err(named(path, error)),
                };
                let now = fstat(&file)?;
                if !FileType::from_raw_mode(now.st_mode).is_file() {
                    return Ok(());
                }
                self.file(file, path, &now)?;
                self.remember(&now, path);
                return Ok(());
            }
            _ => {
                self.done.left_out += 1;
                return Ok(());
            }
        }
        self.remember(stat, path);
        Ok(())
    }

    /// The first path of a file that was already written.
    fn known(&mut self, stat: &Stat) -> Option<Box<[u8]>> {
        let id = (stat.st_dev, stat.st_ino);
        let (first, left) = self.links.get_mut(&id)?;
        let first = first.clone();
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.links.remove(&id);
            self.links_bytes -= first.len() + LINK_BYTES;
        }
        Some(first)
    }

    fn remember(&mut self, stat: &Stat, path: &[u8]) {
        let bytes = path.len() + LINK_BYTES;
        if stat.st_nlink > 1 && self.links_bytes + bytes <= LINKS_BYTES_MAX {
            #[allow(clippy::useless_conversion, reason = "it is another type on other machines")]
            let left = u64::from(stat.st_nlink) - 1;
            self.links.insert((stat.st_dev, stat.st_ino), (path.into(), left));
            self.links_bytes += bytes;
        }
    }

    fn file(&mut self, mut file: File, path: &[u8], stat: &Stat) -> Result<(), FileError> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.done.bytes += size;
        let mut stat = *stat;
        let mut records = self.attributes(file.as_fd(), &mut stat);
        let stat = &stat;
        let on_disk = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        let is_sparse = size.saturating_sub(on_disk) > HOLES_BYTES_MAX;
        let segments = match is_sparse {
            true => entries::segments(&file, size, SEGMENTS_MAX).map_err(io::Error::other)?,
            false => None,
        };
        let Some(segments) = segments else {
            self.entry(EntryType::Regular, path, b"", stat, size, records)?;
            self.copy(&mut file, size)?;
            return Ok(entries::pad(&mut self.out, size)?);
        };
        let mut map = entries::encode(&segments);
        map.resize(map.len() + usize::try_from(entries::padding(map.len() as u64)).unwrap_or(0), 0);
        let data = map.len() as u64 + segments.iter().map(|(_, length)| length).sum::<u64>();
        for (key, value) in [("major", "1"), ("minor", "0"), ("realsize", &size.to_string())] {
            records.add(format!("GNU.sparse.{key}").as_bytes(), value.as_bytes());
        }
        records.add(b"GNU.sparse.name", path);
        self.entry(EntryType::Regular, &entries::sparse_name(path), b"", stat, data, records)?;
        self.out.write_all(&map)?;
        for (start, length) in segments {
            file.seek(SeekFrom::Start(start))?;
            self.copy(&mut file, length)?;
        }
        Ok(entries::pad(&mut self.out, data)?)
    }

    /// Writes exactly `size` bytes: a file that became shorter is padded with zeros.
    fn copy(&mut self, file: &mut File, size: u64) -> Result<(), FileError> {
        let mut left = size;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let mut count = match file.read(&mut self.buffer[..wanted]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                outcome => outcome?,
            };
            if count == 0 {
                self.buffer[..wanted].fill(0);
                count = wanted;
            }
            self.out.write_all(&self.buffer[..count])?;
            left -= count as u64;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        kind: EntryType,
        path: &[u8],
        link: &[u8],
        stat: &Stat,
        size: u64,
        records: Records,
    ) -> Result<(), FileError> {
        self.done.entries += 1;
        let (uid, gid) = self.ids.map_or((stat.st_uid, stat.st_gid), |_| (AGENT_UID, AGENT_UID));
        let (mode, mtime) = (stat.st_mode & 0o7777, modified(stat));
        let entry = entries::Entry { kind, path, link, mode, uid, gid, mtime, size, records };
        Ok(entries::write_header(&mut self.out, entry)?)
    }

    /// Collects readable user attributes and access control lists. If a list is left out, group bits are cleared from
    /// the mode, because they mean the list's mask.
    fn attributes(&mut self, file: BorrowedFd<'_>, stat: &mut Stat) -> Records {
        let mut records = Records::default();
        let count = flistxattr(file, &mut self.list[..]).unwrap_or(0);
        let mut names: Vec<&[u8]> = self.list[..count].split(|byte| *byte == 0).filter(|name| is_kept(name)).collect();
        names.sort_unstable();
        let mut value = vec![0; if names.is_empty() { 0 } else { ATTRIBUTE_BYTES_MAX }];
        for name in names {
            if let Some(record) = acl::record_of(name) {
                let count = fgetxattr(file, name, &mut value[..]).unwrap_or(0);
                match self.ids.and_then(|ids| acl::to_text(&value[..count], ids)) {
                    Some(text) => records.add(record, text.as_bytes()),
                    None => {
                        stat.st_mode &= !acl::GROUP_BITS;
                        self.done.left_out += 1;
                    }
                }
                continue;
            }
            match fgetxattr(file, name, &mut value[..]) {
                // A name with an equals sign has no tar form.
                Ok(count) if !name.contains(&b'=') && records.bytes() + name.len() + count < ATTRIBUTES_BYTES_MAX => {
                    records.add(&[b"SCHILY.xattr.", name].concat(), &value[..count]);
                }
                Err(Errno::NODATA) => {}
                _ => self.done.left_out += 1,
            }
        }
        records
    }
}

impl Level {
    fn new(path_bytes: usize) -> Self {
        Self { path_bytes, names: Vec::new().into_iter(), names_bytes: 0, last: None, has_more: true }
    }

    fn end(&mut self) {
        (self.names, self.has_more) = (Vec::new().into_iter(), false);
    }
}

/// Whether the entry was removed or replaced since it was listed.
fn is_gone(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::NOTDIR)
}

fn named(path: &[u8], error: Errno) -> FileError {
    let error = io::Error::from(error);
    let text = format!("{:?}: {error}", String::from_utf8_lossy(path));
    FileError::Io(io::Error::new(error.kind(), text))
}

/// Whether an attribute is packed.
pub(super) fn is_kept(name: &[u8]) -> bool {
    acl::record_of(name).is_some() || name.starts_with(b"user.") && !name.starts_with(b"user.overlay.")
}
