//! Unpacks a tar into a directory. It never follows a link or leaves the directory, even if the archive is hostile or
//! the directory changes meanwhile.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use raworc_oci::Ids;
use raworc_oci::entries::{TarEntry, TarEntryKind, acl};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::fs::{
    chmodat, chownat, fchmod, fremovexattr, fsetxattr, fstat, futimens, linkat, mknodat, renameat, symlinkat, syncfs,
};
use rustix::fs::{unlinkat, utimensat};
use rustix::io::Errno;

use super::archive::{ArchiveReader, UnpackOptions, bad_path, clean, conflict};
use super::pack::is_kept;
use super::resolve::{
    BELOW, BENEATH, HANDLE, ResolveOptions, check_path, descend, lookup_within, make_directory, open_within, resolve,
};
use super::write::{PLACE_TRIES, Precondition, TemporaryFile, temporary_name};
use super::{ExistingEntry, FileTime, Owner, Workspace};
use crate::error::FileError;
use crate::layers::DEPTH_MAX;

/// Statistics of an unpacked tar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnpackStats {
    /// The directory was created.
    pub is_new: bool,
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of file contents.
    pub bytes: u64,
    /// Entries and attributes left out: devices, unknown types, unsupported attributes.
    pub left_out: u64,
}

impl Workspace {
    /// Unpacks an archive into the directory at `path`, which is created if missing. Existing entries stay unless the
    /// archive has the same name.
    ///
    /// # Errors
    /// If the archive is invalid or conflicts with an existing entry. Earlier entries stay.
    pub fn unpack(
        &self,
        path: &[u8],
        follow: bool,
        archive: impl Read,
        how: &UnpackOptions,
        allows: Precondition<'_>,
    ) -> Result<UnpackStats, FileError> {
        let path = check_path(path)?;
        // Checked before any directory is created.
        let place = match resolve(self.root(), path, ResolveOptions { follow, make: None }) {
            Err(FileError::NotFound) => None,
            outcome => Some(outcome?),
        };
        let node = place.as_ref().and_then(|place| place.node.as_ref());
        if node.is_some_and(|node| node.kind() != FileType::Directory) {
            return Err(FileError::WrongKind("it is no directory, and an archive is unpacked into one"));
        }
        if !allows(place.as_ref().and_then(ExistingEntry::at).as_ref())? {
            return Err(FileError::Stale);
        }
        let place = resolve(self.root(), path, ResolveOptions { follow, make: Some(self.owner) })?;
        let is_new = place.node.is_none();
        let directory = match is_new {
            true => make_directory(place.directory.as_fd(), &place.name, self.owner, BENEATH)?,
            false => place.open_directory()?,
        };
        let unpacked = Unpacker::new(directory.as_fd(), (self.owner, BENEATH), how, is_new).run(archive)?;
        syncfs(&directory)?;
        Ok(unpacked)
    }
}

/// Unpacks an archive into an open directory of this machine, as the calling user. With `is_new`, the directory
/// itself gets the attributes in the archive.
///
/// # Errors
/// As [`Workspace::unpack`].
pub fn unpack_into(
    directory: &OwnedFd,
    is_new: bool,
    archive: impl Read,
    how: &UnpackOptions,
) -> Result<UnpackStats, FileError> {
    Unpacker::new(directory.as_fd(), (Owner(None), BELOW), how, is_new).run(archive)
}

/// A directory that entries may be unpacked into.
struct OpenDirectory {
    path: Vec<u8>,
    /// Device and inode, to recognize the directory on leaving.
    id: (u64, u64),
    /// Attributes to set after everything in it was unpacked.
    described: Option<FinalAttributes>,
}

/// The final attributes of a file or directory.
struct FinalAttributes {
    mode: u32,
    mtime: FileTime,
    /// A directory's default access control list, set last because new entries would inherit it.
    of_children: Option<Vec<u8>>,
}

struct Unpacker<'a> {
    base: BorrowedFd<'a>,
    owner: Owner,
    /// Limits of path resolution.
    reach: ResolveFlags,
    how: &'a UnpackOptions,
    /// Directories from the base down; the last is open.
    inside: Vec<OpenDirectory>,
    current: Option<OwnedFd>,
    /// Final attributes of the base if it is new.
    root: Option<FinalAttributes>,
    done: UnpackStats,
}

impl<'a> Unpacker<'a> {
    fn new(base: BorrowedFd<'a>, (owner, reach): (Owner, ResolveFlags), how: &'a UnpackOptions, is_new: bool) -> Self {
        let done = UnpackStats { is_new, ..UnpackStats::default() };
        Self { base, owner, reach, how, inside: Vec::new(), current: None, root: None, done }
    }

    fn run(mut self, archive: impl Read) -> Result<UnpackStats, FileError> {
        match self.unpack_entries(archive) {
            Ok(()) => Ok(self.done),
            Err(error) => {
                self.restore_default_acls();
                Err(error)
            }
        }
    }

    /// Restores default access control lists that were removed while a directory was filled.
    fn restore_default_acls(&self) {
        for (path, of, described) in self.inside.iter().filter_map(|at| Some((&at.path, at.id, at.described.as_ref()?)))
        {
            let Some(list) = &described.of_children else { continue };
            let directory = descend(self.base, path, self.reach);
            if let Some(directory) = directory.ok().filter(|directory| id(directory).is_ok_and(|id| id == of)) {
                // The error that ended unpacking is reported already.
                let _ = fsetxattr(&directory, acl::LISTS[1].0, list, XattrFlags::empty());
            }
        }
        if let Some(list) = self.root.as_ref().and_then(|root| root.of_children.as_ref()) {
            let _ = fsetxattr(self.base, acl::LISTS[1].0, list, XattrFlags::empty());
        }
    }

    fn unpack_entries(&mut self, archive: impl Read) -> Result<(), FileError> {
        let mut source = ArchiveReader::new(archive, self.how);
        while let Some((found, path)) = source.next()? {
            if matches!(found.kind, TarEntryKind::Device | TarEntryKind::Other) {
                self.done.left_out += 1;
                continue;
            }
            self.done.entries += 1;
            if !path.is_empty() {
                self.entry(&mut source, &found, path)?;
            } else if self.done.is_new {
                // An existing directory keeps its attributes.
                self.root = Some(self.attributes(self.base, &found)?);
            }
        }
        self.leave_all_but(b"")?;
        if let Some(described) = &self.root {
            describe(self.base, described)?;
        }
        Ok(())
    }

    fn entry<R: Read>(
        &mut self,
        source: &mut ArchiveReader<'_, R>,
        found: &TarEntry,
        path: Vec<u8>,
    ) -> Result<(), FileError> {
        let (parent, name) = split(&path);
        let at = self.open_parent(parent)?;
        let here = lookup_within(at.as_fd(), name, self.reach)?.map(|node| node.kind());
        let is_link = here == Some(FileType::Symlink);
        match (found.kind, here) {
            (_, None | Some(FileType::Symlink)) | (TarEntryKind::Directory, Some(FileType::Directory)) => {}
            (TarEntryKind::Directory, _) => {
                return Err(conflict(&path, "is a directory in the archive, and none here"));
            }
            (_, Some(FileType::RegularFile)) => {}
            (_, Some(FileType::Directory)) => {
                return Err(conflict(&path, "is a directory here, and none in the archive"));
            }
            _ => return Err(conflict(&path, "is a pipe, a socket or a device here; delete it first")),
        }
        match found.kind {
            TarEntryKind::Directory => {
                let name = name.to_vec();
                self.directory(&at, &name, path, found, is_link)
            }
            TarEntryKind::File => self.file(source, &at, (name, &path), found, here.is_some()),
            _ => self.special(&at, (name, &path), found, here.is_some()),
        }
    }

    /// Opens an entry's parent directory and creates missing ones.
    fn open_parent(&mut self, path: &[u8]) -> Result<OwnedFd, FileError> {
        self.leave_all_but(path)?;
        let (mut at, mut done) = match (self.inside.last(), &self.current) {
            (Some(last), Some(current)) => (current.try_clone()?, last.path.len()),
            (Some(last), None) => (descend(self.base, &last.path, self.reach)?, last.path.len()),
            (None, _) => (self.base.try_clone_to_owned()?, 0),
        };
        while done < path.len() {
            let start = if done == 0 { 0 } else { done + 1 };
            let end = path[start..].iter().position(|byte| *byte == b'/').map_or(path.len(), |slash| start + slash);
            let name = &path[start..end];
            at = match lookup_within(at.as_fd(), name, self.reach)? {
                None => make_directory(at.as_fd(), name, self.owner, self.reach)?,
                Some(node) if node.kind() == FileType::Directory => node.handle,
                Some(_) => {
                    let why = "is in the way: something is to be beneath it, and no link is followed";
                    return Err(conflict(&path[..end], why));
                }
            };
            done = end;
            self.push(path[..end].to_vec(), &at, None)?;
        }
        self.current = Some(at.try_clone()?);
        Ok(at)
    }

    fn push(
        &mut self,
        path: Vec<u8>,
        directory: &OwnedFd,
        described: Option<FinalAttributes>,
    ) -> Result<(), FileError> {
        if self.inside.len() >= DEPTH_MAX {
            return Err(FileError::TooDeep);
        }
        self.inside.push(OpenDirectory { path, id: id(directory)?, described });
        Ok(())
    }

    /// Sets permissions and times of directories that are complete.
    fn leave_all_but(&mut self, path: &[u8]) -> Result<(), FileError> {
        while let Some(last) = self.inside.pop_if(|last| !is_in(path, &last.path)) {
            self.current = None;
            let Some(described) = last.described else { continue };
            // If the directory was moved and another took its place, that one is left alone.
            match descend(self.base, &last.path, self.reach) {
                Ok(directory) if id(&directory)? == last.id => describe(directory.as_fd(), &described)?,
                Ok(_) | Err(FileError::NotFound | FileError::WrongKind(_) | FileError::Outside) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn directory(
        &mut self,
        at: &OwnedFd,
        name: &[u8],
        path: Vec<u8>,
        found: &TarEntry,
        is_link: bool,
    ) -> Result<(), FileError> {
        if self.inside.len() >= DEPTH_MAX {
            return Err(FileError::TooDeep);
        }
        if is_link {
            unlinkat(at, name, AtFlags::empty())?;
        }
        let directory = make_directory(at.as_fd(), name, self.owner, self.reach)?;
        let described = self.attributes(directory.as_fd(), found)?;
        self.push(path, &directory, Some(described))?;
        self.current = Some(directory);
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        source: &mut ArchiveReader<'_, R>,
        at: &OwnedFd,
        (name, path): (&[u8], &[u8]),
        found: &TarEntry,
        mut replaces: bool,
    ) -> Result<(), FileError> {
        // Some file systems cannot create files through an `O_PATH` handle.
        let at = open_within(at.as_fd(), b".", OFlags::RDONLY | OFlags::DIRECTORY, self.reach)?;
        let mut new = TemporaryFile::create(at.as_fd())?;
        source.content(found, |data, offset| Ok(new.file.write_all_at(data, offset)?))?;
        set_length(&new.file, found.size)?;
        self.owner.set_owner(&new.file)?;
        let described = self.attributes(new.file.as_fd(), found)?;
        describe(new.file.as_fd(), &described)?;
        self.done.bytes = self.done.bytes.saturating_add(found.size);
        for _ in 0..PLACE_TRIES {
            match new.link_into(at.as_fd(), name, replaces) {
                // A process in the container has just created this name.
                Err(FileError::Io(error)) if error.kind() == io::ErrorKind::AlreadyExists => replaces = true,
                outcome => return outcome,
            }
        }
        Err(conflict(path, "is what a process keeps changing"))
    }

    /// Creates a link or pipe under a temporary name and renames it into place.
    fn special(
        &mut self,
        at: &OwnedFd,
        (name, path): (&[u8], &[u8]),
        found: &TarEntry,
        replaces: bool,
    ) -> Result<(), FileError> {
        if !replaces {
            match self.make(at, name, found) {
                Err(FileError::Io(error)) if error.kind() == io::ErrorKind::AlreadyExists => {}
                outcome => return outcome,
            }
        }
        if found.kind == TarEntryKind::Link && clean(&found.link)? == path {
            return Ok(());
        }
        let temporary = temporary_name();
        let outcome =
            self.make(at, temporary.as_bytes(), found).and_then(|()| Ok(renameat(at, temporary.as_bytes(), at, name)?));
        // Renaming one hard link over another of the same file leaves both.
        let _ = unlinkat(at, temporary.as_bytes(), AtFlags::empty());
        outcome
    }

    fn make(&self, at: &OwnedFd, name: &[u8], found: &TarEntry) -> Result<(), FileError> {
        let mode = Mode::from_raw_mode(found.mode & self.how.mode_mask);
        match found.kind {
            TarEntryKind::Link => return self.link(at, name, found),
            TarEntryKind::Symlink => symlinkat(&found.link[..], at, name)?,
            _ => mknodat(at, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?,
        }
        if let Some(owner) = self.owner.0 {
            let (user, group) = (Uid::from_raw(owner), Gid::from_raw(owner));
            chownat(at, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if found.kind != TarEntryKind::Symlink {
            // Through a handle, because the name may be a link by now.
            let pipe = open_within(at.as_fd(), name, HANDLE, self.reach)?;
            if FileType::from_raw_mode(fstat(&pipe)?.st_mode) == FileType::Fifo {
                let itself = format!("/proc/self/fd/{}", pipe.as_raw_fd());
                chmodat(CWD, itself.as_str(), mode, AtFlags::empty())?;
            }
        }
        Ok(utimensat(at, name, &times(found.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn link(&self, at: &OwnedFd, name: &[u8], found: &TarEntry) -> Result<(), FileError> {
        let target = clean(&found.link)?;
        let gone = || bad_path(&found.link, "is what a hard link leads to, and is no file there");
        let (parent, target_name) = split(&target);
        let from = match parent {
            b"" => self.base.try_clone_to_owned()?,
            parent => descend(self.base, parent, self.reach).map_err(|_| gone())?,
        };
        let node = lookup_within(from.as_fd(), target_name, self.reach)?
            .filter(|_| !target_name.is_empty())
            .ok_or_else(gone)?;
        match node.kind() {
            FileType::RegularFile | FileType::Symlink | FileType::Fifo => {}
            _ => return Err(gone()),
        }
        Ok(linkat(&from, target_name, at, name, AtFlags::empty())?)
    }

    /// Sets a file's attributes and access control list, and returns the rest. If a list cannot be set, group bits
    /// are cleared from the mode, because they mean the list's mask.
    fn attributes(&mut self, file: BorrowedFd<'_>, found: &TarEntry) -> Result<FinalAttributes, FileError> {
        let is_list = |name: &[u8]| acl::record_of(name).is_some();
        for (name, value) in found.attributes.iter().filter(|(name, _)| is_kept(name) && !is_list(name)) {
            match fsetxattr(file, &name[..], value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::IO)) => return Err(error.into()),
                Err(_) => self.done.left_out += 1,
            }
        }
        let mut described =
            FinalAttributes { mode: found.mode & self.how.mode_mask, mtime: found.mtime, of_children: None };
        // Ids of the container have no meaning elsewhere.
        let ids = self.owner.ids();
        for (name, value) in acl::lists(found, ids.unwrap_or(Ids::UNMAPPED)) {
            let value = value.filter(|_| ids.is_some());
            let is_kept = value.as_ref().is_some_and(|value| fsetxattr(file, name, value, XattrFlags::empty()).is_ok());
            if !is_kept {
                described.mode &= !acl::GROUP_BITS;
                self.done.left_out += 1;
            } else if name == acl::LISTS[1].0 {
                fremovexattr(file, name)?;
                described.of_children = value;
            }
        }
        Ok(described)
    }
}

fn describe(file: BorrowedFd<'_>, described: &FinalAttributes) -> Result<(), FileError> {
    if let Some(list) = &described.of_children {
        fsetxattr(file, acl::LISTS[1].0, list, XattrFlags::empty())?;
    }
    fchmod(file, Mode::from_raw_mode(described.mode))?;
    Ok(futimens(file, &times(described.mtime))?)
}

/// Sets the length, because the end of the file may be a hole.
fn set_length(file: &File, size: u64) -> Result<(), FileError> {
    file.set_len(size).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge | io::ErrorKind::InvalidInput => FileError::TooLarge,
        _ => error.into(),
    })
}

fn id(directory: &OwnedFd) -> Result<(u64, u64), FileError> {
    let stat = fstat(directory)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn is_in(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

fn times((seconds, nanoseconds): FileTime) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Splits a normalized path into parent and name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}
