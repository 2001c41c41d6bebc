//! From a layer tar to a layer directory.

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
use super::tree::{Node, ROOT, Tree, blocked, is_whiteout, look, times};
use super::{ATTRIBUTE_BYTES_MAX, Bounds, Format, OPAQUE, Skipped, Unpacked, WHITEOUT, sparse};
use crate::Error;
use crate::room::Room;

/// How much is read at once, in bytes.
const BUFFER_BYTES: usize = 64 << 10;
/// The smallest hole in a file, in bytes: a block of most file systems.
pub const HOLE_BYTES: u64 = 4096;
/// What an entry takes of the disk besides its content, in bytes.
const ENTRY_ON_DISK_BYTES: u64 = 256;
/// The directory in which AUFS has files with several names.
const LINK_TARGETS: &[u8] = b".wh..wh.plnk";

/// Unpacks the (uncompressed) tar that `reader` yields into the empty directory `directory`, as a layer directory.
/// `progress` is told now and then how many bytes of the tar have been read.
///
/// The tar may be hostile: nothing outside the directory is touched, and no more is written than `bounds` says. Absolute
/// names mean names from the root of the layer. A later entry replaces an earlier one of the same name. Where it fails, the
/// directory holds what was unpacked so far. Nothing is flushed to disk.
///
/// # Errors
/// [`Error::BadArchive`] for what no honest archive does (`..`, NUL bytes, links to what is not in it),
/// [`Error::Blocked`] for a name beneath something that is no directory, [`Error::TooLarge`] beyond `bounds`.
pub fn unpack(
    reader: impl Read,
    directory: &Path,
    format: &Format,
    bounds: &Bounds,
    progress: &mut dyn FnMut(u64),
) -> Result<Unpacked, Error> {
    let mut unpacker = Unpacker {
        reader: Reader::new(reader, bounds.bytes),
        tree: Tree::begin(directory, *format, bounds.entries)?,
        disk_left: bounds.bytes,
        room: Room::of(directory),
        has_link_targets: false,
        entries: 0,
        skipped: Skipped::default(),
        buffer: vec![0; BUFFER_BYTES],
        progress,
    };
    while let Some(found) = unpacker.reader.next_entry()? {
        unpacker.tree.charge()?;
        unpacker.room.charge(ENTRY_ON_DISK_BYTES)?;
        unpacker.entries += 1;
        unpacker.entry(&found)?;
        (unpacker.progress)(unpacker.reader.bytes());
    }
    if unpacker.has_link_targets {
        unpacker.tree.make_room(ROOT, LINK_TARGETS)?;
    }
    let (diff_id, bytes) = unpacker.reader.finish()?;
    let implied = unpacker.tree.finish()?;
    (unpacker.progress)(bytes);
    Ok(Unpacked { diff_id, bytes, entries: unpacker.entries, skipped: unpacker.skipped, implied })
}

struct Unpacker<'a, R: Read> {
    reader: Reader<R>,
    tree: Tree,
    /// What sparse files may still take on disk, in bytes.
    disk_left: u64,
    room: Room,
    /// There is a directory [`LINK_TARGETS`].
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
            return Err(Error::BadArchive("something is in a directory that marks a deleted name".into()));
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

    /// What AUFS keeps beside files. Of all of it only the files in `.wh..wh.plnk` mean something: hard links of the same tar may
    /// lead to them, so they are kept until its end (Docker and containerd read old images like this).
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

    /// `.wh.HIDDEN`, which says something about what is below, never about what is in the same tar.
    fn mark(&mut self, parent: &[u8], name: &[u8], hidden: &[u8]) -> Result<(), Error> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Error::BadArchive("a mark that hides nothing that could have a name".into()));
        }
        let node = self.tree.make_directories(parent)?;
        if name == OPAQUE {
            return self.tree.make_opaque(node);
        }
        if let Some(inside) = self.tree.inside(node, hidden) {
            return self.tree.make_opaque(inside);
        }
        let directory = self.tree.open(node)?;
        if look(&directory, hidden)?.is_none() {
            mknodat(&directory, hidden, FileType::CharacterDevice, Mode::empty(), 0)?;
        }
        Ok(())
    }

    fn directory(&mut self, parent: Node, name: &[u8], found: &TarEntry) -> Result<(), Error> {
        let node = match self.tree.inside(parent, name) {
            Some(node) => node,
            None => {
                let directory = self.tree.open(parent)?;
                // A whiteout is left to make_directory, which remembers it.
                if look(&directory, name)?.is_some_and(|stat| !is_whiteout(&stat)) {
                    self.tree.make_room(parent, name)?;
                }
                self.tree.make_directory(parent, name)?
            }
        };
        self.describe(node, found)
    }

    fn describe(&mut self, node: Node, found: &TarEntry) -> Result<(), Error> {
        let directory = self.tree.open(node)?;
        remove_attributes(directory.as_fd())?;
        self.attributes(directory.as_fd(), found)?;
        self.tree.own(directory.as_fd(), found.uid, found.gid)?;
        let (mode, of_children) = self.lists(found, &way_to(&*directory))?;
        fchmod(&directory, Mode::from_raw_mode(mode))?;
        self.tree.described(node, found.mtime, of_children);
        Ok(())
    }

    fn link(&mut self, parent: Node, path: &[u8], name: &[u8], found: &TarEntry) -> Result<(), Error> {
        let target = clean(&found.link)?;
        let gone =
            || Error::BadArchive(format!("a hard link to {:?}, which is not in it", String::from_utf8_lossy(&target)));
        let (above, target_name) = split(&target).ok_or_else(gone)?;
        if target == path {
            return Err(Error::BadArchive("a hard link to itself".into()));
        }
        let node = self.tree.find(above).ok_or_else(gone)?;
        self.tree.make_room(parent, name)?;
        let from = self.tree.open(node)?;
        let stat = look(&from, target_name)?.ok_or_else(gone)?;
        // Not directories, and not the devices that are marks.
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::Symlink | FileType::Fifo => {}
            _ => return Err(gone()),
        }
        let to = self.tree.open(parent)?;
        Ok(linkat(&from, target_name, &to, name, AtFlags::empty())?)
    }

    fn symlink(&mut self, parent: Node, name: &[u8], found: &TarEntry) -> Result<(), Error> {
        if found.link.is_empty() || found.link.contains(&0) {
            return Err(Error::BadArchive("a symbolic link that leads nowhere".into()));
        }
        self.tree.make_room(parent, name)?;
        let directory = self.tree.open(parent)?;
        symlinkat(&found.link[..], &directory, name)?;
        self.own_by_name(&directory, name, found)
    }

    fn fifo(&mut self, parent: Node, name: &[u8], found: &TarEntry) -> Result<(), Error> {
        self.tree.make_room(parent, name)?;
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

    fn file(&mut self, parent: Node, name: &[u8], found: &TarEntry) -> Result<(), Error> {
        if let Some(segments) = &found.segments {
            let left = self.disk_left.checked_sub(sparse::on_disk(segments));
            self.disk_left = left.ok_or_else(|| Error::TooLarge("what sparse files hold".into()))?;
        }
        self.tree.make_room(parent, name)?;
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
        // Whatever is at the end may have been a hole.
        file.set_len(found.size).map_err(|error| match error.kind() {
            ErrorKind::FileTooLarge | ErrorKind::InvalidInput => Error::TooLarge("a sparse file".into()),
            _ => error.into(),
        })?;
        // Giving a file away takes its setuid bit, so that comes after.
        self.tree.own(file.as_fd(), found.uid, found.gid)?;
        let (mode, _) = self.lists(found, &way_to(&file))?;
        fchmod(&file, Mode::from_raw_mode(mode))?;
        Ok(futimens(&file, &times(found.mtime))?)
    }

    /// Writes `size` bytes of the archive at `at`; what is zeros there becomes a hole, so that nothing takes more of the disk than
    /// it says.
    fn copy(&mut self, file: &File, mut at: u64, size: u64) -> Result<(), Error> {
        let end = at.saturating_add(size);
        while at < end {
            // Up to a boundary of a block, so that all blocks but the first and the last are looked at whole.
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
                self.room.charge(data.len() as u64)?;
                file.write_all_at(data, at + offset as u64)?;
            }
            at += wanted as u64;
            (self.progress)(self.reader.bytes());
        }
        Ok(())
    }

    /// Gives a file (by its descriptor, or a way to it) its access control lists, and says its mode then. Where one is not understood, or cannot
    /// be kept, the mode gives its group nothing: those bits are of all that the list speaks of. The list for what is made in a directory is
    /// returned, since it would be inherited by all that comes.
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

/// The parts of `bytes` that have to be written, and where they begin. The first block ends at `first`.
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

/// Whether a name is one that AUFS keeps its own things under. `.wh..wh..opq` is one that layers have, too.
fn is_foreign_mark(name: &[u8]) -> bool {
    name != OPAQUE && name.strip_prefix(WHITEOUT).is_some_and(|hidden| hidden.starts_with(WHITEOUT))
}

/// Whether the kernel has taken an access control list, or says that it is none or that there are none here.
fn is_list(outcome: Result<(), Errno>) -> Result<bool, Error> {
    match outcome {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::ACCESS | Errno::OPNOTSUPP | Errno::RANGE | Errno::NOSPC) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A path that leads to what is open, also where it is only a handle.
fn way_to(file: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Takes the attributes that an earlier entry gave a directory.
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

/// A path without empty names and `.`, so that each place has one spelling. Empty for the root.
fn clean(path: &[u8]) -> Result<Vec<u8>, Error> {
    if path.is_empty() || path.contains(&0) {
        return Err(Error::BadArchive("a name that is empty or has a NUL byte".into()));
    }
    let mut clean = Vec::with_capacity(path.len());
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => continue,
            b".." => return Err(Error::BadArchive(format!("{:?} leads upwards", String::from_utf8_lossy(path)))),
            // What hides a name is longer than the name.
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

/// Linux, `NAME_MAX`.
const NAME_BYTES_MAX: usize = 255;

/// The directory that a clean path is in, and its name there. `None` for the root.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None if path.is_empty() => None,
        None => Some((b"", path)),
    }
}
