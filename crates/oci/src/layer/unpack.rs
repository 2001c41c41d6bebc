//! Unpacks a layer tar into a layer directory.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::fs::{chmodat, chownat, fchmod, flistxattr, fremovexattr, fsetxattr, futimens, linkat, mknodat};
use rustix::fs::{openat, openat2, removexattr, setxattr, symlinkat, utimensat};
use rustix::io::Errno;

use super::acl;
use super::pack::is_content;
use super::read::{Reader, TarEntry, TarEntryKind};
use super::tree::{DirectoryId, ROOT, Tree, blocked, is_whiteout, look, times};
use super::{ATTRIBUTE_BYTES_MAX, Bounds, Format, OPAQUE, Skipped, UnpackedLayer, WHITEOUT, sparse};
use crate::Error;
use crate::free_space::FreeSpaceGuard;

/// Bytes per read.
const BUFFER_BYTES: usize = 64 << 10;
/// The smallest hole in a file, in bytes: a block of most file systems.
pub const HOLE_BYTES: u64 = 4096;
/// Disk space per entry besides its content, in bytes.
const ENTRY_ON_DISK_BYTES: u64 = 256;
/// AUFS's directory for hard-linked files.
const LINK_TARGETS: &[u8] = b".wh..wh.plnk";

/// Unpacks the uncompressed tar in `reader` into the empty directory `directory`. `progress` is called regularly with
/// the number of bytes read.
///
/// The tar is not trusted: nothing outside the directory is touched, and `bounds` limit what is written. Absolute
/// paths start at the layer's root. A later entry replaces an earlier one. On failure, the directory holds what was
/// unpacked so far. Nothing is flushed.
///
/// # Errors
/// [`Error::BadArchive`] for an invalid or hostile tar (`..`, NUL bytes, links to missing entries),
/// [`Error::Blocked`] if an entry's parent is not a directory, [`Error::TooLarge`] beyond `bounds`.
pub fn unpack(
    reader: impl Read,
    directory: &Path,
    format: &Format,
    bounds: &Bounds,
    progress: &mut dyn FnMut(u64),
) -> Result<UnpackedLayer, Error> {
    let mut unpacker = Unpacker {
        reader: Reader::new(reader, bounds.bytes),
        tree: Tree::begin(directory, *format, bounds.entries)?,
        disk_left: bounds.bytes,
        free_space: FreeSpaceGuard::of(directory),
        has_link_targets: false,
        entries: 0,
        skipped: Skipped::default(),
        buffer: vec![0; BUFFER_BYTES],
        progress,
    };
    while let Some(found) = unpacker.reader.next_entry()? {
        unpacker.tree.charge()?;
        unpacker.free_space.charge(ENTRY_ON_DISK_BYTES)?;
        unpacker.entries += 1;
        unpacker.entry(&found)?;
        (unpacker.progress)(unpacker.reader.bytes());
    }
    if unpacker.has_link_targets {
        unpacker.tree.remove_entry(ROOT, LINK_TARGETS)?;
    }
    let (diff_id, bytes) = unpacker.reader.finish()?;
    let implied = unpacker.tree.finish()?;
    (unpacker.progress)(bytes);
    Ok(UnpackedLayer { diff_id, bytes, entries: unpacker.entries, skipped: unpacker.skipped, implied })
}

struct Unpacker<'a, R: Read> {
    reader: Reader<R>,
    tree: Tree,
    /// Bytes on disk that sparse files may still take.
    disk_left: u64,
    free_space: FreeSpaceGuard,
    /// The directory [`LINK_TARGETS`] exists.
    has_link_targets: bool,
    entries: u64,
    skipped: Skipped,
    buffer: Vec<u8>,
    progress: &'a mut dyn FnMut(u64),
}

impl<R: Read> Unpacker<'_, R> {
    fn entry(&mut self, found: &TarEntry) -> Result<(), Error> {
        if found.kind == TarEntryKind::Other {
            self.skipped.add(&found.path, "it is of a kind that means nothing in a layer");
            return Ok(());
        }
        let path = clean(&found.path)?;
        let Some((parent, name)) = split(&path) else {
            return self.root(found);
        };
        if path.split(|byte| *byte == b'/').any(is_foreign_mark) {
            return self.foreign_mark(&path, parent, name, found);
        }
        if parent.split(|byte| *byte == b'/').any(|name| name.starts_with(WHITEOUT)) {
            return Err(Error::BadArchive("something is in a directory that xattrs a deleted name".into()));
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.mark(parent, name, hidden);
        }
        if found.kind == TarEntryKind::Device {
            self.skipped.add(&path, "it is a device");
            return Ok(());
        }
        let parent_node = self.tree.make_directories(parent)?;
        match found.kind {
            TarEntryKind::Directory => self.directory(parent_node, name, found),
            TarEntryKind::Link => self.link(parent_node, &path, name, found),
            TarEntryKind::Symlink => self.symlink(parent_node, name, found),
            TarEntryKind::Fifo => self.fifo(parent_node, name, found),
            _ => self.file(parent_node, name, found),
        }
    }

    fn root(&mut self, found: &TarEntry) -> Result<(), Error> {
        if found.kind != TarEntryKind::Directory {
            return Err(Error::BadArchive("something without a name".into()));
        }
        self.describe(ROOT, found)
    }

    /// Handles AUFS's own entries. Only files in `.wh..wh.plnk` matter: hard links of the same tar may point to them,
    /// so they are kept until its end (as in Docker and containerd).
    fn foreign_mark(&mut self, path: &[u8], parent: &[u8], name: &[u8], found: &TarEntry) -> Result<(), Error> {
        if parent == LINK_TARGETS && found.kind == TarEntryKind::File {
            self.has_link_targets = true;
            let node = self.tree.make_directories(parent)?;
            return self.file(node, name, found);
        }
        if path != LINK_TARGETS || found.kind != TarEntryKind::Directory {
            self.skipped.add(path, "it is a mark of another union file system");
        }
        Ok(())
    }

    /// Handles `.wh.HIDDEN`, which hides a name of lower layers, never an entry of the same tar.
    fn mark(&mut self, parent: &[u8], name: &[u8], hidden: &[u8]) -> Result<(), Error> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Error::BadArchive("a mark that hides nothing that could have a name".into()));
        }
        let node = self.tree.make_directories(parent)?;
        if name == OPAQUE {
            return self.tree.make_opaque(node);
        }
        if let Some(inside) = self.tree.child(node, hidden) {
            return self.tree.make_opaque(inside);
        }
        let directory = self.tree.open(node)?;
        if look(&directory, hidden)?.is_none() {
            mknodat(&directory, hidden, FileType::CharacterDevice, Mode::empty(), 0)?;
        }
        Ok(())
    }

    fn directory(&mut self, parent: DirectoryId, name: &[u8], found: &TarEntry) -> Result<(), Error> {
        let node = match self.tree.child(parent, name) {
            Some(node) => node,
            None => {
                let directory = self.tree.open(parent)?;
                // A whiteout is left for `make_directory`, which makes the directory opaque.
                if look(&directory, name)?.is_some_and(|stat| !is_whiteout(&stat)) {
                    self.tree.remove_entry(parent, name)?;
                }
                self.tree.make_directory(parent, name)?
            }
        };
        self.describe(node, found)
    }

    fn describe(&mut self, node: DirectoryId, found: &TarEntry) -> Result<(), Error> {
        let directory = self.tree.open(node)?;
        remove_attributes(directory.as_fd())?;
        self.attributes(directory.as_fd(), found)?;
        self.tree.own(directory.as_fd(), found.uid, found.gid)?;
        let (mode, of_children) = self.lists(found, &way_to(&*directory))?;
        fchmod(&directory, Mode::from_raw_mode(mode))?;
        self.tree.set_final_attributes(node, found.mtime, of_children);
        Ok(())
    }

    fn link(&mut self, parent: DirectoryId, path: &[u8], name: &[u8], found: &TarEntry) -> Result<(), Error> {
        let target = clean(&found.link)?;
        let gone =
            || Error::BadArchive(format!("a hard link to {:?}, which is not in it", String::from_utf8_lossy(&target)));
        let (above, target_name) = split(&target).ok_or_else(gone)?;
        if target == path {
            return Err(Error::BadArchive("a hard link to itself".into()));
        }
        let node = self.tree.find(above).ok_or_else(gone)?;
        self.tree.remove_entry(parent, name)?;
        let from = self.tree.open(node)?;
        let stat = look(&from, target_name)?.ok_or_else(gone)?;
        // Neither directories nor whiteouts.
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::Symlink | FileType::Fifo => {}
            _ => return Err(gone()),
        }
        let to = self.tree.open(parent)?;
        Ok(linkat(&from, target_name, &to, name, AtFlags::empty())?)
    }

    fn symlink(&mut self, parent: DirectoryId, name: &[u8], found: &TarEntry) -> Result<(), Error> {
        if found.link.is_empty() || found.link.contains(&0) {
            return Err(Error::BadArchive("a symbolic link that leads nowhere".into()));
        }
        self.tree.remove_entry(parent, name)?;
        let directory = self.tree.open(parent)?;
        symlinkat(&found.link[..], &directory, name)?;
        self.own_by_name(&directory, name, found)
    }

    fn fifo(&mut self, parent: DirectoryId, name: &[u8], found: &TarEntry) -> Result<(), Error> {
        self.tree.remove_entry(parent, name)?;
        let directory = self.tree.open(parent)?;
        mknodat(&directory, name, FileType::Fifo, Mode::RUSR, 0)?;
        self.own_by_name(&directory, name, found)?;
        let pipe = openat(&directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let (mode, _) = self.lists(found, &way_to(&pipe))?;
        chmodat(&directory, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
        Ok(utimensat(&directory, name, &times(found.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn own_by_name(&self, directory: &OwnedFd, name: &[u8], found: &TarEntry) -> Result<(), Error> {
        let (uid, gid) = self.tree.owner(found.uid, found.gid);
        chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(utimensat(directory, name, &times(found.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn file(&mut self, parent: DirectoryId, name: &[u8], found: &TarEntry) -> Result<(), Error> {
        if let Some(segments) = &found.segments {
            let left = self.disk_left.checked_sub(sparse::on_disk(segments));
            self.disk_left = left.ok_or_else(|| Error::TooLarge("what sparse files hold".into()))?;
        }
        self.tree.remove_entry(parent, name)?;
        let directory = self.tree.open(parent)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let file = File::from(openat2(&*directory, name, flags, Mode::RUSR | Mode::WUSR, resolve)?);
        self.attributes(file.as_fd(), found)?;
        match &found.segments {
            None => self.copy(&file, 0, found.size)?,
            Some(segments) => {
                for (start, length) in segments {
                    self.copy(&file, *start, *length)?;
                }
            }
        }
        // The end of the file may be a hole.
        file.set_len(found.size).map_err(|error| match error.kind() {
            ErrorKind::FileTooLarge | ErrorKind::InvalidInput => Error::TooLarge("a sparse file".into()),
            _ => error.into(),
        })?;
        // Changing the owner clears the setuid bit, so the mode comes after.
        self.tree.own(file.as_fd(), found.uid, found.gid)?;
        let (mode, _) = self.lists(found, &way_to(&file))?;
        fchmod(&file, Mode::from_raw_mode(mode))?;
        Ok(futimens(&file, &times(found.mtime))?)
    }

    /// Writes `size` bytes of the archive at offset `at`. Blocks of zeros become holes, so disk usage stays within
    /// limits.
    fn copy(&mut self, file: &File, mut at: u64, size: u64) -> Result<(), Error> {
        let end = at.saturating_add(size);
        while at < end {
            // Ends at a block boundary, so that every inner block is examined whole.
            let room = self.buffer.len() as u64 - at % HOLE_BYTES;
            let wanted = usize::try_from((end - at).min(room)).unwrap_or(self.buffer.len());
            let mut filled = 0;
            while filled < wanted {
                let count = self.reader.read_data(&mut self.buffer[filled..wanted])?;
                if count == 0 {
                    return Err(Error::BadArchive("it ends in the middle of a file".into()));
                }
                filled += count;
            }
            let first = (HOLE_BYTES - at % HOLE_BYTES) as usize;
            for (offset, data) in runs_of_data(&self.buffer[..wanted], first) {
                self.free_space.charge(data.len() as u64)?;
                file.write_all_at(data, at + offset as u64)?;
            }
            at += wanted as u64;
            (self.progress)(self.reader.bytes());
        }
        Ok(())
    }

    /// Sets the access control list of a file, given by descriptor path, and returns its mode and its default list.
    /// If a list is invalid or cannot be set, group bits are cleared from the mode, because they mean the list's
    /// mask. The default list is set later, because new entries would inherit it.
    fn lists(&mut self, found: &TarEntry, path: &str) -> Result<(u32, Option<Vec<u8>>), Error> {
        let (mut mode, mut of_children) = (found.mode, None);
        for (name, value) in acl::lists(found, self.tree.ids()) {
            let is_kept = match &value {
                Some(value) => is_list(setxattr(path, name, value, XattrFlags::empty()))?,
                None => false,
            };
            if !is_kept {
                self.skipped.add(&found.path, "its access control list cannot be kept");
                mode &= !acl::GROUP_BITS;
            } else if name == acl::LISTS[1].0 {
                removexattr(path, name)?;
                of_children = value;
            }
        }
        Ok((mode, of_children))
    }

    fn attributes(&mut self, file: BorrowedFd<'_>, found: &TarEntry) -> Result<(), Error> {
        for (name, value) in
            found.attributes.iter().filter(|(name, _)| is_content(name) && acl::record_of(name).is_none())
        {
            match fsetxattr(file, &name[..], value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP) => self.skipped.add(&found.path, "an attribute of it cannot be kept here"),
                Err(Errno::INVAL | Errno::RANGE | Errno::TOOBIG) => {
                    return Err(Error::BadArchive("an extended attribute that cannot be one".into()));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// The parts of `bytes` to write, with their offsets; blocks of zeros are left out. The first block ends at `first`.
pub fn runs_of_data(bytes: &[u8], first: usize) -> Vec<(usize, &[u8])> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let (mut start, mut end) = (0, first.min(bytes.len()));
    while start < end {
        let is_hole = (end - start) as u64 == HOLE_BYTES && bytes[start..end].iter().all(|byte| *byte == 0);
        match runs.last_mut() {
            Some((_, last)) if !is_hole && *last == start => *last = end,
            _ if !is_hole => runs.push((start, end)),
            _ => {}
        }
        (start, end) = (end, (end + HOLE_BYTES as usize).min(bytes.len()));
    }
    runs.into_iter().map(|(start, end)| (start, &bytes[start..end])).collect()
}

/// Whether a name is one of AUFS's own. `.wh..wh..opq` is used in layers, too.
fn is_foreign_mark(name: &[u8]) -> bool {
    name != OPAQUE && name.strip_prefix(WHITEOUT).is_some_and(|hidden| hidden.starts_with(WHITEOUT))
}

/// Whether the kernel accepted an access control list; false if it is invalid or unsupported.
fn is_list(outcome: Result<(), Errno>) -> Result<bool, Error> {
    match outcome {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::ACCESS | Errno::OPNOTSUPP | Errno::RANGE | Errno::NOSPC) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A path to an open file, even if it is only a handle.
fn way_to(file: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Removes the attributes that an earlier entry gave a directory.
fn remove_attributes(file: BorrowedFd<'_>) -> Result<(), Error> {
    let mut list = vec![0; ATTRIBUTE_BYTES_MAX];
    let count = match flistxattr(file, &mut list[..]) {
        Ok(count) => count,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for name in list[..count].split(|byte| *byte == 0).filter(|name| is_content(name)) {
        fremovexattr(file, name)?;
    }
    Ok(())
}

/// Normalizes a path, so that each has one spelling. Empty for the root.
fn clean(path: &[u8]) -> Result<Vec<u8>, Error> {
    if path.is_empty() || path.contains(&0) {
        return Err(Error::BadArchive("a name that is empty or has a NUL byte".into()));
    }
    let mut clean = Vec::with_capacity(path.len());
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => continue,
            b".." => return Err(Error::BadArchive(format!("{:?} leads upwards", String::from_utf8_lossy(path)))),
            // A whiteout is longer than the name it hides.
            _ if name.strip_prefix(WHITEOUT).unwrap_or(name).len() > NAME_BYTES_MAX => {
                return Err(blocked(&path[..NAME_BYTES_MAX]));
            }
            _ => {}
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(name);
    }
    Ok(clean)
}

/// Longest file name, in bytes (Linux, `NAME_MAX`).
const NAME_BYTES_MAX: usize = 255;

/// Splits a normalized path into parent and name. `None` for the root.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None if path.is_empty() => None,
        None => Some((b"", path)),
    }
}
