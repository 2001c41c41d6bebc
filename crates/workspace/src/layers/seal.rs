//! Seals a writable layer, so that it never changes again.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fstat, fsync, openat, syncfs, unlinkat};

use super::OverlayXattrs;
use super::entry::{self, OverlayXattr};
use super::merged::MergedDirectory;
use super::usage::{self, InodeDedup};
use crate::failpoints;

/// Up to this many files and directories are flushed one by one; beyond, the whole file system is.
const FLUSHED_MAX: usize = 256;

/// How a layer changes the tree below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerDelta {
    /// Bytes of files in the layer, hard-linked ones counted once.
    pub changed_bytes: u64,
    /// LayerDelta in the number of files.
    pub files: i64,
    /// LayerDelta in their bytes.
    pub bytes: i64,
    /// Disk usage of the layer, in bytes (see [`super::usage`]).
    pub own_disk: u64,
    /// LayerDelta in disk usage, in bytes, at most: a hidden file may have another name that is still visible.
    pub disk: i64,
    /// Directory entries in the layer.
    pub entries: u64,
}

/// Creates a writable directory, with the attributes of the root below, or owned by `owner`.
///
/// # Errors
/// If it cannot be created.
pub fn prepare(writable: &Path, below: Option<&Path>, owner: Option<(u32, u32)>) -> io::Result<()> {
    failpoints::change()?;
    DirBuilder::new().mode(0o755).create(writable)?;
    let made = entry::root(writable)?;
    match (below, owner) {
        (Some(below), _) => entry::copy_attributes(entry::root(below)?, &made)?,
        (None, Some((user, group))) => {
            chownat(&made, "", Some(Uid::from_raw(user)), Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH)?;
        }
        (None, None) => {}
    }
    Ok(())
}

/// Whether anything was written: an entry exists, or the root differs from the one below. Its modification time
/// counts only if it was set explicitly, because temporary entries change it as well.
///
/// # Errors
/// If it cannot be read.
pub fn is_changed(writable: &Path, below: Option<&Path>) -> io::Result<bool> {
    let own = entry::root(writable)?;
    for found in rustix::fs::Dir::read_from(&own)? {
        if !matches!(found?.file_name().to_bytes(), b"." | b"..") {
            return Ok(true);
        }
    }
    let Some(below) = below else { return Ok(false) };
    let below = entry::root(below)?;
    let (a, b) = (fstat(&own)?, fstat(&below)?);
    let (modified, changed) = ((a.st_mtime, a.st_mtime_nsec), (a.st_ctime, a.st_ctime_nsec));
    let is_set = modified != (b.st_mtime, b.st_mtime_nsec) && modified != changed;
    let is_like = (a.st_mode, a.st_uid, a.st_gid) == (b.st_mode, b.st_uid, b.st_gid) && !is_set;
    Ok(!is_like || entry::attributes(&own)? != entry::attributes(&below)?)
}

/// Copies a layer to the new directory `into` without redirects. The original stays as it is, because the session may
/// go on writing to it if this is interrupted.
///
/// # Errors
/// If the layer cannot be read, or `into` cannot be created.
pub fn copy_without_redirects(layer: &Path, lower: &[PathBuf], into: &Path, xattrs: OverlayXattrs) -> io::Result<()> {
    std::fs::create_dir(into)?;
    copy_layer(&entry::root(layer)?, &entry::root(into)?, 0, xattrs)?;
    resolve_redirects(into, lower, xattrs)
}

fn copy_layer(from: &OwnedFd, to: &OwnedFd, depth: usize, xattrs: OverlayXattrs) -> io::Result<()> {
    for name in entry::names(from)? {
        let Some(stat) = entry::lookup(from, &name)? else { continue };
        if entry::kind(&stat) != FileType::Directory {
            entry::link_or_copy(from, &name, &stat, to)?;
            continue;
        }
        let (inner, made) = (entry::inner(from, &name, depth)?, entry::make_directory(to, &name, depth)?);
        for mark in [OverlayXattr::Opaque, OverlayXattr::Redirect] {
            if let Some(value) = mark.get(&inner, xattrs)? {
                mark.set(&made, xattrs, &value)?;
            }
        }
        copy_layer(&inner, &made, depth + 1, xattrs)?;
    }
    entry::copy_attributes(from, to)
}

/// Makes a layer independent of redirects (mount option `redirect_dir`), in place. A renamed directory, whose
/// remaining content is found at its old path in `lower`, becomes opaque and gets all of it by hard link. `lower` has
/// the topmost first, without redirects. If this fails, discard the layer. Nobody may write to it meanwhile.
///
/// # Errors
/// If the layer cannot be read or changed.
pub fn resolve_redirects(layer: &Path, lower: &[PathBuf], xattrs: OverlayXattrs) -> io::Result<()> {
    let resolve_redirects = RedirectResolver { lower, xattrs };
    resolve_redirects.directory(&entry::root(layer)?, Some(&[]), 0)
}

struct RedirectResolver<'s> {
    lower: &'s [PathBuf],
    xattrs: OverlayXattrs,
}

impl RedirectResolver<'_> {
    /// `below` is the path of the directory's lower part, if it has one.
    fn directory(&self, directory: &OwnedFd, below: Option<&[CString]>, depth: usize) -> io::Result<()> {
        for name in entry::names(directory)? {
            let Some(stat) = entry::lookup(directory, &name)? else { continue };
            if entry::kind(&stat) != FileType::Directory {
                continue;
            }
            let inner = entry::inner(directory, &name, depth)?;
            match OverlayXattr::Redirect.get(&inner, self.xattrs)? {
                Some(target) => {
                    let target = redirect_target(&target, below)?;
                    let view = MergedDirectory::at(self.lower, &target, self.xattrs)?;
                    self.fill(&inner, &view, depth + 1)?;
                    self.directory(&inner, Some(&target), depth + 1)?;
                    OverlayXattr::Opaque.set(&inner, self.xattrs, b"y")?;
                    OverlayXattr::Redirect.remove(&inner, self.xattrs)?;
                    // Filling it has changed its times.
                    entry::set_times(&inner, &stat)?;
                }
                None if entry::is_opaque(&inner, self.xattrs)? => self.directory(&inner, None, depth + 1)?,
                None => {
                    let place: Option<Vec<CString>> = below.map(|below| [below, std::slice::from_ref(&name)].concat());
                    self.directory(&inner, place.as_deref(), depth + 1)?;
                }
            }
        }
        Ok(())
    }

    /// Links what is left at the old path into a renamed directory.
    fn fill(&self, directory: &OwnedFd, view: &MergedDirectory, depth: usize) -> io::Result<()> {
        for name in entry::names(directory)? {
            let Some(stat) = entry::lookup(directory, &name)? else { continue };
            if entry::kind(&stat) == FileType::Directory {
                let inner = entry::inner(directory, &name, depth)?;
                let is_whole = entry::is_opaque(&inner, self.xattrs)?
                    || OverlayXattr::Redirect.get(&inner, self.xattrs)?.is_some();
                if !is_whole {
                    self.fill(&inner, &view.inner(&name, depth, self.xattrs)?, depth + 1)?;
                    entry::set_times(&inner, &stat)?;
                }
            }
        }
        // Linked files belong to the quotas of other layers.
        raworc_quota::leave(directory)?;
        view.link_into(directory, depth, self.xattrs)?;
        // With nothing below, a whiteout would be listed as an entry.
        for name in entry::names(directory)? {
            if entry::lookup(directory, &name)?.is_some_and(|stat| entry::is_whiteout(&stat)) {
                failpoints::change()?;
                unlinkat(directory, &name, AtFlags::empty())?;
            }
        }
        Ok(())
    }
}

/// The target of a redirect in the layers below: an absolute path, or a name beside the directory.
pub fn redirect_target(target: &[u8], below: Option<&[CString]>) -> io::Result<Vec<CString>> {
    let names = |path: &[u8]| {
        let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
        names.map(|name| CString::new(name).map_err(io::Error::other)).collect::<io::Result<Vec<_>>>()
    };
    match target.strip_prefix(b"/") {
        Some(path) => names(path),
        None => Ok([below.unwrap_or_default(), &names(target)?].concat()),
    }
}

/// Measures how a layer changes the tree of `lower` (the topmost first). None has redirects.
///
/// # Errors
/// If one cannot be read.
pub fn measure(layer: &Path, lower: &[PathBuf], xattrs: OverlayXattrs) -> io::Result<LayerDelta> {
    let mut measure =
        Measure { xattrs, seen: BTreeSet::new(), once: InodeDedup::default(), change: LayerDelta::default() };
    measure.directory(&entry::root(layer)?, &MergedDirectory::of(lower)?, 0)?;
    Ok(measure.change)
}

/// Exact disk usage, in bytes, of the tree that `layers` (the topmost first) show; each file counts once.
///
/// # Errors
/// If one cannot be read.
pub fn shown_usage(layers: &[PathBuf], xattrs: OverlayXattrs) -> io::Result<u64> {
    MergedDirectory::of(layers)?.usage(&mut InodeDedup::default(), 0, xattrs)
}

struct Measure {
    xattrs: OverlayXattrs,
    /// Hard-linked files that were counted.
    seen: BTreeSet<u64>,
    once: InodeDedup,
    change: LayerDelta,
}

impl Measure {
    fn directory(&mut self, directory: &OwnedFd, below: &MergedDirectory, depth: usize) -> io::Result<()> {
        for name in entry::names(directory)? {
            let Some(stat) = entry::lookup(directory, &name)? else { continue };
            let is_directory = entry::kind(&stat) == FileType::Directory;
            self.change.entries += 1;
            if entry::kind(&stat) == FileType::RegularFile {
                let size = stat.st_size;
                self.change.files += 1;
                self.change.bytes = self.change.bytes.saturating_add(size);
                if stat.st_nlink == 1 || self.seen.insert(stat.st_ino) {
                    let changed = &mut self.change.changed_bytes;
                    *changed = changed.saturating_add(u64::try_from(size).unwrap_or(0));
                }
            }
            let taken = self.once.disk_bytes(&stat);
            self.change.own_disk = self.change.own_disk.saturating_add(taken);
            let inner = if is_directory { Some(entry::inner(directory, &name, depth)?) } else { None };
            let merged_with = match &inner {
                Some(inner) if !entry::is_opaque(inner, self.xattrs)? => self.directory_in(below, &name)?,
                _ => None,
            };
            let is_merged = merged_with.is_some();
            if !entry::is_whiteout(&stat) {
                self.change.disk = self.change.disk.saturating_add_unsigned(taken);
            }
            match merged_with {
                // The entry replaces the hidden one; a directory shows both contents.
                Some(hidden) => self.change.disk = self.change.disk.saturating_sub_unsigned(usage::disk_bytes(&hidden)),
                None => self.subtract(below, &name, depth)?,
            }
            if let Some(inner) = inner {
                let view = if is_merged { below.inner(&name, depth, self.xattrs)? } else { MergedDirectory::default() };
                self.directory(&inner, &view, depth + 1)?;
            }
        }
        Ok(())
    }

    fn directory_in(&self, below: &MergedDirectory, name: &CStr) -> io::Result<Option<Stat>> {
        let found = below.find(name)?.map(|shown| shown.stat);
        Ok(found.filter(|stat| entry::kind(stat) == FileType::Directory))
    }

    /// Subtracts an entry that the layer hides.
    fn subtract(&mut self, below: &MergedDirectory, name: &CStr, depth: usize) -> io::Result<()> {
        if let Some(hidden) = below.find(name)? {
            let hidden = below.count_one(name, &hidden.stat, depth, self.xattrs)?;
            self.change.files -= hidden.files;
            self.change.bytes = self.change.bytes.saturating_sub(hidden.bytes);
            self.change.disk = self.change.disk.saturating_sub(hidden.disk);
        }
        Ok(())
    }
}

/// Flushes a layer to the disk.
///
/// # Errors
/// If the disk fails.
pub fn sync(layer: &Path) -> io::Result<()> {
    failpoints::change()?;
    let root = entry::root(layer)?;
    let mut left = FLUSHED_MAX;
    if !flush(&root, 0, &mut left)? {
        syncfs(&root)?;
    }
    fsync(&root)?;
    // Flushes its name and that of its parent.
    for above in layer.ancestors().skip(1).take(2) {
        fsync(entry::root(above)?)?;
    }
    failpoints::flushed(layer)
}

/// Returns false if there are more than `left` entries.
fn flush(directory: &OwnedFd, depth: usize, left: &mut usize) -> io::Result<bool> {
    for name in entry::names(directory)? {
        let Some(stat) = entry::lookup(directory, &name)? else { continue };
        let Some(fewer) = left.checked_sub(1) else { return Ok(false) };
        *left = fewer;
        match entry::kind(&stat) {
            FileType::Directory => {
                let inner = entry::inner(directory, &name, depth)?;
                if !flush(&inner, depth + 1, left)? {
                    return Ok(false);
                }
                fsync(&inner)?;
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                fsync(openat(directory, &name, flags, Mode::empty())?)?;
            }
            _ => {}
        }
    }
    Ok(true)
}
