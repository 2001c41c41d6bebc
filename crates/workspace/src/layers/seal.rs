//! What a session wrote becomes a layer that never changes.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fstat, fsync, openat, syncfs, unlinkat};

use super::Marks;
use super::entry::{self, Mark};
use super::usage::{self, InodeDedup};
use super::view::View;
use crate::steps;

/// Files and directories of a layer up to which each is flushed by itself; beyond, the whole file system is.
const FLUSHED_MAX: usize = 256;

/// What a layer changes in what lies below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Bytes of the files in the layer, those with several names once.
    pub changed_bytes: u64,
    /// How many files more are shown.
    pub files: i64,
    /// How many bytes more they have.
    pub bytes: i64,
    /// Bytes on the disk of what is in the layer, counted as by [`super::usage`].
    pub own_disk: u64,
    /// How many bytes on the disk more is shown, at most: another name of what is hidden may be left.
    pub disk: i64,
    /// Entries of directories in the layer.
    pub entries: u64,
}

/// Makes the directory that a session is to write to, like the root of the layer below, or as `owner`'s.
///
/// # Errors
/// Where it cannot be made.
pub fn prepare(writable: &Path, below: Option<&Path>, owner: Option<(u32, u32)>) -> io::Result<()> {
    steps::change()?;
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

/// Whether anything was written: whether there is any entry, or the root is not like the one below. Its time of modification counts where
/// somebody has set it: something that came and went changes it, too, together with the time of change.
///
/// # Errors
/// Where it cannot be read.
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

/// Makes the new directory `into` the same as a layer, settled. The layer stays as it is: where this is cut off, a session may go on
/// writing to it, and what it wrote would end up in the files of others that settling links to.
///
/// # Errors
/// Where the layer cannot be read, or `into` not be made.
pub fn copy_without_redirects(layer: &Path, lower: &[PathBuf], into: &Path, marks: Marks) -> io::Result<()> {
    std::fs::create_dir(into)?;
    twin(&entry::root(layer)?, &entry::root(into)?, 0, marks)?;
    resolve_redirects(into, lower, marks)
}

fn twin(from: &OwnedFd, to: &OwnedFd, depth: usize, marks: Marks) -> io::Result<()> {
    for name in entry::names(from)? {
        let Some(stat) = entry::look(from, &name)? else { continue };
        if entry::kind(&stat) != FileType::Directory {
            entry::link_or_copy(from, &name, &stat, to)?;
            continue;
        }
        let (inner, made) = (entry::inner(from, &name, depth)?, entry::make_directory(to, &name, depth)?);
        for mark in [Mark::Opaque, Mark::Redirect] {
            if let Some(value) = mark.get(&inner, marks)? {
                mark.set(&made, marks, &value)?;
            }
        }
        twin(&inner, &made, depth + 1, marks)?;
    }
    entry::copy_attributes(from, to)
}

/// Makes a layer show by itself what it shows on top of `lower` (the topmost first, settled): a directory that was renamed
/// refers to its old place, where the rest of what is in it is found (mount option `redirect_dir`). It becomes one that
/// hides what is below and has everything itself, files by link. A layer that this was cut off in is to be thrown away, and nobody
/// may write to one.
///
/// # Errors
/// Where the layer cannot be read or changed.
pub fn resolve_redirects(layer: &Path, lower: &[PathBuf], marks: Marks) -> io::Result<()> {
    let resolve_redirects = RedirectResolver { lower, marks };
    resolve_redirects.directory(&entry::root(layer)?, Some(&[]), 0)
}

struct RedirectResolver<'s> {
    lower: &'s [PathBuf],
    marks: Marks,
}

impl RedirectResolver<'_> {
    /// `below` is where the rest of the directory is found, if anywhere.
    fn directory(&self, directory: &OwnedFd, below: Option<&[CString]>, depth: usize) -> io::Result<()> {
        for name in entry::names(directory)? {
            let Some(stat) = entry::look(directory, &name)? else { continue };
            if entry::kind(&stat) != FileType::Directory {
                continue;
            }
            let inner = entry::inner(directory, &name, depth)?;
            match Mark::Redirect.get(&inner, self.marks)? {
                Some(target) => {
                    let target = place(&target, below)?;
                    let view = View::at(self.lower, &target, self.marks)?;
                    self.fill(&inner, &view, depth + 1)?;
                    self.directory(&inner, Some(&target), depth + 1)?;
                    Mark::Opaque.set(&inner, self.marks, b"y")?;
                    Mark::Redirect.remove(&inner, self.marks)?;
                    // What was put into it has changed its time.
                    entry::set_times(&inner, &stat)?;
                }
                None if entry::is_opaque(&inner, self.marks)? => self.directory(&inner, None, depth + 1)?,
                None => {
                    let place: Option<Vec<CString>> = below.map(|below| [below, std::slice::from_ref(&name)].concat());
                    self.directory(&inner, place.as_deref(), depth + 1)?;
                }
            }
        }
        Ok(())
    }

    /// Puts into a directory that was renamed what is still in its old place.
    fn fill(&self, directory: &OwnedFd, view: &View, depth: usize) -> io::Result<()> {
        for name in entry::names(directory)? {
            let Some(stat) = entry::look(directory, &name)? else { continue };
            if entry::kind(&stat) == FileType::Directory {
                let inner = entry::inner(directory, &name, depth)?;
                let is_whole =
                    entry::is_opaque(&inner, self.marks)? || Mark::Redirect.get(&inner, self.marks)?.is_some();
                if !is_whole {
                    self.fill(&inner, &view.inner(&name, depth, self.marks)?, depth + 1)?;
                    entry::set_times(&inner, &stat)?;
                }
            }
        }
        // What is linked into it belongs to the quotas of other layers.
        raworc_quota::leave(directory)?;
        view.link_into(directory, depth, self.marks)?;
        // With nothing below, a whiteout would be listed like an entry.
        for name in entry::names(directory)? {
            if entry::look(directory, &name)?.is_some_and(|stat| entry::is_whiteout(&stat)) {
                steps::change()?;
                unlinkat(directory, &name, AtFlags::empty())?;
            }
        }
        Ok(())
    }
}

/// Where a redirect leads, in the layers below the one it is in: from the root of the stack, or, as a single name, beside where the directory would be found.
pub fn place(target: &[u8], below: Option<&[CString]>) -> io::Result<Vec<CString>> {
    let names = |path: &[u8]| {
        let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
        names.map(|name| CString::new(name).map_err(io::Error::other)).collect::<io::Result<Vec<_>>>()
    };
    match target.strip_prefix(b"/") {
        Some(path) => names(path),
        None => Ok([below.unwrap_or_default(), &names(target)?].concat()),
    }
}

/// What a layer changes in what `lower` (the topmost first) shows. All of them are settled.
///
/// # Errors
/// Where one cannot be read.
pub fn measure(layer: &Path, lower: &[PathBuf], marks: Marks) -> io::Result<Change> {
    let mut measure = Measure { marks, seen: BTreeSet::new(), once: InodeDedup::default(), change: Change::default() };
    measure.directory(&entry::root(layer)?, &View::of(lower)?, 0)?;
    Ok(measure.change)
}

/// Bytes on the disk of what layers (the topmost first, settled) show together, counted exactly: each file once.
///
/// # Errors
/// Where one cannot be read.
pub fn shown_usage(layers: &[PathBuf], marks: Marks) -> io::Result<u64> {
    View::of(layers)?.usage(&mut InodeDedup::default(), 0, marks)
}

struct Measure {
    marks: Marks,
    /// Files with several names.
    seen: BTreeSet<u64>,
    once: InodeDedup,
    change: Change,
}

impl Measure {
    fn directory(&mut self, directory: &OwnedFd, below: &View, depth: usize) -> io::Result<()> {
        for name in entry::names(directory)? {
            let Some(stat) = entry::look(directory, &name)? else { continue };
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
            let taken = self.once.taken(&stat);
            self.change.own_disk = self.change.own_disk.saturating_add(taken);
            let inner = if is_directory { Some(entry::inner(directory, &name, depth)?) } else { None };
            let merged_with = match &inner {
                Some(inner) if !entry::is_opaque(inner, self.marks)? => self.directory_in(below, &name)?,
                _ => None,
            };
            let is_merged = merged_with.is_some();
            if !entry::is_whiteout(&stat) {
                self.change.disk = self.change.disk.saturating_add_unsigned(taken);
            }
            match merged_with {
                // It is shown in place of that one, with what is in both.
                Some(hidden) => self.change.disk = self.change.disk.saturating_sub_unsigned(usage::taken(&hidden)),
                None => self.subtract(below, &name, depth)?,
            }
            if let Some(inner) = inner {
                let view = if is_merged { below.inner(&name, depth, self.marks)? } else { View::default() };
                self.directory(&inner, &view, depth + 1)?;
            }
        }
        Ok(())
    }

    fn directory_in(&self, below: &View, name: &CStr) -> io::Result<Option<Stat>> {
        let found = below.find(name)?.map(|shown| shown.stat);
        Ok(found.filter(|stat| entry::kind(stat) == FileType::Directory))
    }

    /// What the layer hides is shown no longer.
    fn subtract(&mut self, below: &View, name: &CStr, depth: usize) -> io::Result<()> {
        if let Some(hidden) = below.find(name)? {
            let hidden = below.count_one(name, &hidden.stat, depth, self.marks)?;
            self.change.files -= hidden.files;
            self.change.bytes = self.change.bytes.saturating_sub(hidden.bytes);
            self.change.disk = self.change.disk.saturating_sub(hidden.disk);
        }
        Ok(())
    }
}

/// Brings a layer to the disk.
///
/// # Errors
/// Where the disk fails.
pub fn sync(layer: &Path) -> io::Result<()> {
    steps::change()?;
    let root = entry::root(layer)?;
    let mut left = FLUSHED_MAX;
    if !flush(&root, 0, &mut left)? {
        syncfs(&root)?;
    }
    fsync(&root)?;
    // Its name, and that of the directory it is in.
    for above in layer.ancestors().skip(1).take(2) {
        fsync(entry::root(above)?)?;
    }
    steps::flushed(layer)
}

/// False where there is more than `left`.
fn flush(directory: &OwnedFd, depth: usize, left: &mut usize) -> io::Result<bool> {
    for name in entry::names(directory)? {
        let Some(stat) = entry::look(directory, &name)? else { continue };
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
