//! What a stack of layers shows, without mounting it. The layers are free of redirects.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, Stat};

use super::{Marks, entry};

/// A directory as a stack shows it: what it is in each layer that has a part in it, the topmost first.
#[derive(Debug, Default)]
pub struct View {
    /// Those parts.
    pub parts: Vec<OwnedFd>,
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

    /// Files in it and below it, and their bytes.
    pub fn count(&self, depth: usize, marks: Marks) -> io::Result<(i64, i64)> {
        let (mut files, mut bytes) = (0, 0);
        for (name, shown) in self.entries()? {
            let (more, more_bytes) = self.count_one(&name, &shown.stat, depth, marks)?;
            files += more;
            bytes += more_bytes;
        }
        Ok((files, bytes))
    }

    /// The same for one entry.
    pub fn count_one(&self, name: &CStr, stat: &Stat, depth: usize, marks: Marks) -> io::Result<(i64, i64)> {
        match entry::kind(stat) {
            FileType::RegularFile => Ok((1, stat.st_size)),
            FileType::Directory => self.inner(name, depth, marks)?.count(depth + 1, marks),
            _ => Ok((0, 0)),
        }
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
