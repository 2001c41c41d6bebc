//! Several layers that lie on one another become one that shows the same.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, fstat, unlinkat};

use super::Marks;
use super::entry::{self, Mark};
use super::view::View;
use crate::steps;

/// Fills the new directory `into` with what `layers` (the topmost first, settled) show together on top of `lower` (also settled).
/// Files are linked to, not copied: layers never change. So a file can have more links than names.
///
/// # Errors
/// Where one cannot be read, or `into` is there already.
pub fn squash(layers: &[PathBuf], lower: &[PathBuf], into: &Path, marks: Marks) -> io::Result<()> {
    std::fs::create_dir(into)?;
    let parts = layers.iter().map(|layer| entry::root(layer)).collect::<io::Result<Vec<_>>>()?;
    merge(&parts, &entry::root(into)?, &View::of(lower)?, 0, marks)
}

/// `below` is what shines through from below this directory.
fn merge(parts: &[OwnedFd], to: &OwnedFd, below: &View, depth: usize, marks: Marks) -> io::Result<()> {
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
                } else if below.find(&name)?.is_some() {
                    // One that hides nothing would be listed like an entry.
                    entry::whiteout(to, &name)?;
                }
                break;
            }
        }
        if let Some(like) = inner.first() {
            let made = entry::make_directory(to, &name, depth)?;
            let under = below.inner(&name, depth, marks)?;
            let (is_covered, under) = if hides { (!under.is_empty(), View::default()) } else { (false, under) };
            merge(&inner, &made, &under, depth + 1, marks)?;
            if is_covered {
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

/// Takes out of a layer what says that names are deleted which `lower` (the topmost first, settled) does not show: where nothing is
/// below, overlayfs lists it like an entry. An archive may say so; overlayfs itself never does.
///
/// # Errors
/// Where the layer cannot be read or changed.
pub fn trim(layer: &Path, lower: &[PathBuf], marks: Marks) -> io::Result<()> {
    trim_directory(&entry::root(layer)?, &View::of(lower)?, 0, marks)
}

fn trim_directory(directory: &OwnedFd, below: &View, depth: usize, marks: Marks) -> io::Result<()> {
    let was = fstat(directory)?;
    let mut is_changed = false;
    for name in entry::names(directory)? {
        let Some(stat) = entry::look(directory, &name)? else { continue };
        if entry::kind(&stat) == FileType::Directory {
            let inner = entry::inner(directory, &name, depth)?;
            let under =
                if entry::is_opaque(&inner, marks)? { View::default() } else { below.inner(&name, depth, marks)? };
            trim_directory(&inner, &under, depth + 1, marks)?;
        } else if entry::is_whiteout(&stat) && below.find(&name)?.is_none() {
            steps::change()?;
            unlinkat(directory, &name, AtFlags::empty())?;
            is_changed = true;
        }
    }
    if is_changed { entry::set_times(directory, &was) } else { Ok(()) }
}
