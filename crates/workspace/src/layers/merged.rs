//! Reads the merged tree of several layers without mounting them. The layers have no redirects.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, Stat};

use super::usage::{ENTRY_BYTES_MIN, InodeDedup, disk_bytes};
use super::{OverlayXattrs, entry};

/// A directory of the merged tree: the directories of all layers that contribute to it, the topmost first.
#[derive(Debug, Default)]
pub struct MergedDirectory {
    /// The contributing directories.
    pub parts: Vec<OwnedFd>,
}

/// Totals of a merged tree.
#[derive(Clone, Copy, Debug, Default)]
pub struct TreeTotals {
    /// Number of files.
    pub files: i64,
    /// Bytes of files.
    pub bytes: i64,
    /// Disk usage in bytes that is freed if the tree is removed, at least.
    pub disk: i64,
}

impl TreeTotals {
    fn add(&mut self, other: TreeTotals) {
        self.files = self.files.saturating_add(other.files);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.disk = self.disk.saturating_add(other.disk);
    }
}

/// An entry of a merged directory.
pub struct MergedEntry {
    /// Index of the contributing directory.
    pub part: usize,
    /// Its status there.
    pub stat: Stat,
}

impl MergedDirectory {
    /// The merged root of layers, the topmost first.
    pub fn of(layers: &[PathBuf]) -> io::Result<Self> {
        Ok(Self { parts: layers.iter().map(|layer| entry::root(layer)).collect::<io::Result<_>>()? })
    }

    /// Whether no layer has this directory.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The visible entry `name`.
    pub fn find(&self, name: &CStr) -> io::Result<Option<MergedEntry>> {
        for (part, directory) in self.parts.iter().enumerate() {
            if let Some(stat) = entry::lookup(directory, name)? {
                return Ok((!entry::is_whiteout(&stat)).then_some(MergedEntry { part, stat }));
            }
        }
        Ok(None)
    }

    /// All visible entries.
    pub fn entries(&self) -> io::Result<BTreeMap<CString, MergedEntry>> {
        let mut all: BTreeMap<CString, MergedEntry> = BTreeMap::new();
        for (part, directory) in self.parts.iter().enumerate() {
            for name in entry::names(directory)? {
                if !all.contains_key(&name)
                    && let Some(stat) = entry::lookup(directory, &name)?
                {
                    all.insert(name, MergedEntry { part, stat });
                }
            }
        }
        all.retain(|_, shown| !entry::is_whiteout(&shown.stat));
        Ok(all)
    }

    /// The subdirectory `name`; empty if there is none.
    pub fn inner(&self, name: &CStr, depth: usize, xattrs: OverlayXattrs) -> io::Result<MergedDirectory> {
        let mut parts = Vec::new();
        for directory in &self.parts {
            let Some(stat) = entry::lookup(directory, name)? else { continue };
            if entry::kind(&stat) != FileType::Directory {
                break;
            }
            let part = entry::inner(directory, name, depth)?;
            let is_last = entry::is_opaque(&part, xattrs)?;
            parts.push(part);
            if is_last {
                break;
            }
        }
        Ok(MergedDirectory { parts })
    }

    /// The merged directory at a path.
    pub fn at(layers: &[PathBuf], path: &[CString], xattrs: OverlayXattrs) -> io::Result<MergedDirectory> {
        let mut view = MergedDirectory::of(layers)?;
        for (depth, name) in path.iter().enumerate() {
            view = view.inner(name, depth, xattrs)?;
        }
        Ok(view)
    }

    /// Totals of this directory tree.
    pub fn count(&self, depth: usize, xattrs: OverlayXattrs) -> io::Result<TreeTotals> {
        let mut count = TreeTotals::default();
        for (name, shown) in self.entries()? {
            count.add(self.count_one(&name, &shown.stat, depth, xattrs)?);
        }
        Ok(count)
    }

    /// Totals of one entry.
    pub fn count_one(&self, name: &CStr, stat: &Stat, depth: usize, xattrs: OverlayXattrs) -> io::Result<TreeTotals> {
        let disk = i64::try_from(disk_bytes(stat)).unwrap_or(i64::MAX);
        let (files, bytes) = if entry::kind(stat) == FileType::RegularFile { (1, stat.st_size) } else { (0, 0) };
        let mut count = TreeTotals { files, bytes, disk };
        if entry::kind(stat) == FileType::Directory {
            count.add(self.inner(name, depth, xattrs)?.count(depth + 1, xattrs)?);
        } else if stat.st_nlink > 1 {
            // Another name of the file may keep its data.
            count.disk = ENTRY_BYTES_MIN as i64;
        }
        Ok(count)
    }

    /// Disk usage of the visible tree in bytes; hard-linked files count once.
    pub fn usage(&self, once: &mut InodeDedup, depth: usize, xattrs: OverlayXattrs) -> io::Result<u64> {
        let mut bytes = 0_u64;
        for (name, shown) in self.entries()? {
            bytes = bytes.saturating_add(once.disk_bytes(&shown.stat));
            if entry::kind(&shown.stat) == FileType::Directory {
                bytes = bytes.saturating_add(self.inner(&name, depth, xattrs)?.usage(once, depth + 1, xattrs)?);
            }
        }
        Ok(bytes)
    }

    /// Links every visible entry that `to` does not have into it; directories are created.
    pub fn link_into(&self, to: impl AsFd, depth: usize, xattrs: OverlayXattrs) -> io::Result<()> {
        for (name, shown) in self.entries()? {
            let from = &self.parts[shown.part];
            match (entry::kind(&shown.stat), entry::lookup(&to, &name)?) {
                (FileType::Directory, None) => {
                    let view = self.inner(&name, depth, xattrs)?;
                    let made = entry::make_directory(&to, &name, depth)?;
                    view.link_into(&made, depth + 1, xattrs)?;
                    if let Some(like) = view.parts.first() {
                        entry::copy_attributes(like, &made)?;
                    }
                }
                (_, None) => entry::link_or_copy(from, &name, &shown.stat, &to)?,
                (_, Some(_)) => {}
            }
        }
        Ok(())
    }
}
