//! Merges adjacent layers into one that shows the same.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, fstat, unlinkat};

use super::OverlayXattrs;
use super::entry::{self, OverlayXattr};
use super::merged::MergedDirectory;
use crate::failpoints;

/// Fills the new directory `into` with what `layers` show on top of `lower` (both the topmost first, without
/// redirects). Files are hard-linked, so link counts may exceed the number of names.
///
/// # Errors
/// If one cannot be read, or `into` exists.
pub fn squash(layers: &[PathBuf], lower: &[PathBuf], into: &Path, xattrs: OverlayXattrs) -> io::Result<()> {
    std::fs::create_dir(into)?;
    let parts = layers.iter().map(|layer| entry::root(layer)).collect::<io::Result<Vec<_>>>()?;
    merge(&parts, &entry::root(into)?, &MergedDirectory::of(lower)?, 0, xattrs)
}

/// `below` is the directory in the layers below.
fn merge(
    parts: &[OwnedFd],
    to: &OwnedFd,
    below: &MergedDirectory,
    depth: usize,
    xattrs: OverlayXattrs,
) -> io::Result<()> {
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
            let Some(stat) = entry::lookup(part, &name)? else { continue };
            if entry::kind(&stat) == FileType::Directory {
                let directory = entry::inner(part, &name, depth)?;
                hides = entry::is_opaque(&directory, xattrs)?;
                inner.push(directory);
                if hides {
                    break;
                }
            } else if !inner.is_empty() {
                // A directory replaced an entry, or nothing.
                hides = true;
                break;
            } else {
                if !entry::is_whiteout(&stat) {
                    entry::link_or_copy(part, &name, &stat, to)?;
                } else if below.find(&name)?.is_some() {
                    // A whiteout that hides nothing would be listed as an entry.
                    entry::whiteout(to, &name)?;
                }
                break;
            }
        }
        if let Some(like) = inner.first() {
            let made = entry::make_directory(to, &name, depth)?;
            let under = below.inner(&name, depth, xattrs)?;
            let (is_covered, under) =
                if hides { (!under.is_empty(), MergedDirectory::default()) } else { (false, under) };
            merge(&inner, &made, &under, depth + 1, xattrs)?;
            if is_covered {
                OverlayXattr::Opaque.set(&made, xattrs, b"y")?;
            }
            entry::copy_attributes(like, &made)?;
        }
    }
    match parts.first() {
        Some(like) if depth == 0 => entry::copy_attributes(like, to),
        _ => Ok(()),
    }
}

/// Removes whiteouts that hide nothing in `lower` (the topmost first), because overlayfs would list them as entries.
/// Only archives contain such whiteouts.
///
/// # Errors
/// If the layer cannot be read or changed.
pub fn trim(layer: &Path, lower: &[PathBuf], xattrs: OverlayXattrs) -> io::Result<()> {
    trim_directory(&entry::root(layer)?, &MergedDirectory::of(lower)?, 0, xattrs)
}

fn trim_directory(directory: &OwnedFd, below: &MergedDirectory, depth: usize, xattrs: OverlayXattrs) -> io::Result<()> {
    let was = fstat(directory)?;
    let mut is_changed = false;
    for name in entry::names(directory)? {
        let Some(stat) = entry::lookup(directory, &name)? else { continue };
        if entry::kind(&stat) == FileType::Directory {
            let inner = entry::inner(directory, &name, depth)?;
            let under = if entry::is_opaque(&inner, xattrs)? {
                MergedDirectory::default()
            } else {
                below.inner(&name, depth, xattrs)?
            };
            trim_directory(&inner, &under, depth + 1, xattrs)?;
        } else if entry::is_whiteout(&stat) && below.find(&name)?.is_none() {
            failpoints::change()?;
            unlinkat(directory, &name, AtFlags::empty())?;
            is_changed = true;
        }
    }
    if is_changed { entry::set_times(directory, &was) } else { Ok(()) }
}
