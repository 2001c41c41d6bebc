//! What a stack of layers shows, without mounting it. The layers are free of redirects.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, Stat};

use super::usage::{ENTRY_BYTES_MIN, InodeDedup, taken};
use super::{Marks, entry};

/// A directory as a stack shows it: what it is in each layer that has a part in it, the topmost first.
#[derive(Debug, Default)]
pub struct View {
    /// Those parts.
    pub parts: Vec<OwnedFd>,
}

/// What is shown, in numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    /// Files.
    pub files: i64,
    /// Their bytes.
    pub bytes: i64,
    /// Bytes on the disk that are free when it is shown no longer, at least.
    pub disk: i64,
}

impl Count {
    fn add(&mut self, other: Count) {
        self.files = self.files.saturating_add(other.files);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.disk = self.disk.saturating_add(other.disk);
    }
}

/// Something in a view.
pub struct Shown {
    /// In which part it is.
    pub part: usize,
    /// What it is there.
    pub stat: Stat,
}

impl View {
    /// The roots of layers, the topmost first.
    pub fn of(layers: &[PathBuf]) -> io::Result<Self> {
        Ok(Self { parts: layers.iter().map(|layer| entry::root(layer)).collect::<io::Result<_>>()? })
    }

    /// Whether there is no such directory.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// What is called `name`.
    pub fn find(&self, name: &CStr) -> io::Result<Option<Shown>> {
        for (part, directory) in self.parts.iter().enumerate() {
            if let Some(stat) = entry::look(directory, name)? {
                return Ok((!entry::is_whiteout(&stat)).then_some(Shown { part, stat }));
            }
        }
        Ok(None)
    }

    /// Everything in it.
    pub fn entries(&self) -> io::Result<BTreeMap<CString, Shown>> {
        let mut all: BTreeMap<CString, Shown> = BTreeMap::new();
        for (part, directory) in self.parts.iter().enumerate() {
            for name in entry::names(directory)? {
                if !all.contains_key(&name)
                    && let Some(stat) = entry::look(directory, &name)?
                {
                    all.insert(name, Shown { part, stat });
                }
            }
        }
        all.retain(|_, shown| !entry::is_whiteout(&shown.stat));
        Ok(all)
    }

    /// The directory `name` in it; one that is not there where that is none.
    pub fn inner(&self, name: &CStr, depth: usize, marks: Marks) -> io::Result<View> {
        let mut parts = Vec::new();
        for directory in &self.parts {
            let Some(stat) = entry::look(directory, name)? else { continue };
            if entry::kind(&stat) != FileType::Directory {
                break;
            }
            let part = entry::inner(directory, name, depth)?;
            let is_last = entry::is_opaque(&part, marks)?;
            parts.push(part);
            if is_last {
                break;
            }
        }
        Ok(View { parts })
    }

    /// The directory at this path.
    pub fn at(layers: &[PathBuf], path: &[CString], marks: Marks) -> io::Result<View> {
        let mut view = View::of(layers)?;
        for (depth, name) in path.iter().enumerate() {
            view = view.inner(name, depth, marks)?;
        }
        Ok(view)
    }

    /// What is in it and below it.
    pub fn count(&self, depth: usize, marks: Marks) -> io::Result<Count> {
        let mut count = Count::default();
        for (name, shown) in self.entries()? {
            count.add(self.count_one(&name, &shown.stat, depth, marks)?);
        }
        Ok(count)
    }

    /// The same for one entry.
    pub fn count_one(&self, name: &CStr, stat: &Stat, depth: usize, marks: Marks) -> io::Result<Count> {
        let disk = i64::try_from(taken(stat)).unwrap_or(i64::MAX);
        let (files, bytes) = if entry::kind(stat) == FileType::RegularFile { (1, stat.st_size) } else { (0, 0) };
        let mut count = Count { files, bytes, disk };
        if entry::kind(stat) == FileType::Directory {
            count.add(self.inner(name, depth, marks)?.count(depth + 1, marks)?);
        } else if stat.st_nlink > 1 {
            // Another of its names may be left, and with it all that it takes.
            count.disk = ENTRY_BYTES_MIN as i64;
        }
        Ok(count)
    }

    /// Bytes on the disk of all that is shown, those of files with several names once.
    pub fn usage(&self, once: &mut InodeDedup, depth: usize, marks: Marks) -> io::Result<u64> {
        let mut bytes = 0_u64;
        for (name, shown) in self.entries()? {
            bytes = bytes.saturating_add(once.taken(&shown.stat));
            if entry::kind(&shown.stat) == FileType::Directory {
                bytes = bytes.saturating_add(self.inner(&name, depth, marks)?.usage(once, depth + 1, marks)?);
            }
        }
        Ok(bytes)
    }

    /// Makes `to` have everything that is shown here and not in it already: files by link, directories anew.
    pub fn link_into(&self, to: impl AsFd, depth: usize, marks: Marks) -> io::Result<()> {
        for (name, shown) in self.entries()? {
            let from = &self.parts[shown.part];
            match (entry::kind(&shown.stat), entry::look(&to, &name)?) {
                (FileType::Directory, None) => {
                    let view = self.inner(&name, depth, marks)?;
                    let made = entry::make_directory(&to, &name, depth)?;
                    view.link_into(&made, depth + 1, marks)?;
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
