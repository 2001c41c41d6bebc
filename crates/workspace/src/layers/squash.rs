//! Several layers that lie on one another become one that shows the same.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::Marks;
use super::entry::{self, Mark};

/// Fills the new directory `into` with what `layers` (the topmost first, settled) show together; `is_bottom` where nothing
/// lies below them. Files are linked to, not copied: layers never change. So a file can have more links than names.
///
/// # Errors
/// Where one cannot be read, or `into` is there already.
pub fn squash(layers: &[PathBuf], is_bottom: bool, into: &Path, marks: Marks) -> io::Result<()> {
    std::fs::create_dir(into)?;
    let parts = layers.iter().map(|layer| entry::root(layer)).collect::<io::Result<Vec<_>>>()?;
    merge(&parts, &entry::root(into)?, is_bottom, 0, marks)
}

/// `is_bottom` where nothing shines through from below this directory.
fn merge(parts: &[OwnedFd], to: &OwnedFd, is_bottom: bool, depth: usize, marks: Marks) -> io::Result<()> {
    let mut names: Vec<CString> = Vec::new();
    for part in parts {
        names.extend(entry::names(part)?);
    }
    names.sort_unstable();
    names.dedup();
    for name in names {
        let mut inner: Vec<OwnedFd> = Vec::new();
        let mut hides = false;
        for part in parts {
            let Some(stat) = entry::look(part, &name)? else { continue };
            if entry::kind(&stat) == FileType::Directory {
                let directory = entry::inner(part, &name, depth)?;
                hides = entry::is_opaque(&directory, marks)?;
                inner.push(directory);
                if hides {
                    break;
                }
            } else if !inner.is_empty() {
                // A directory took the place of what was here, or of nothing.
                hides = true;
                break;
            } else {
                if !entry::is_whiteout(&stat) {
                    entry::link_or_copy(part, &name, &stat, to)?;
                } else if !is_bottom {
                    entry::whiteout(to, &name)?;
                }
                break;
            }
        }
        if let Some(like) = inner.first() {
            let made = entry::make_directory(to, &name, depth)?;
            merge(&inner, &made, is_bottom || hides, depth + 1, marks)?;
            if hides && !is_bottom {
                Mark::Opaque.set(&made, marks, b"y")?;
            }
            entry::copy_attributes(like, &made)?;
        }
    }
    match parts.first() {
        Some(like) if depth == 0 => entry::copy_attributes(like, to),
        _ => Ok(()),
    }
}
