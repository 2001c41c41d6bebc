//! Copies attributes to directories that an archive implies but does not describe.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::entry;

/// Gives these directories of a layer the attributes that they have in `below`, if they exist there. Parents come
/// first.
///
/// # Errors
/// If one is not in the layer, or cannot be changed.
pub fn adopt(layer: &Path, directories: &[PathBuf], below: impl AsFd) -> io::Result<()> {
    let (own, below) = (entry::root(layer)?, below.as_fd());
    for path in directories {
        let names = names(path)?;
        // A directory that does not exist below is new.
        if let Ok(old) = walk(below.try_clone_to_owned()?, &names) {
            entry::copy_attributes(&old, walk(own.try_clone()?, &names)?)?;
        }
    }
    Ok(())
}

fn names(path: &Path) -> io::Result<Vec<CString>> {
    path.iter().map(|name| CString::new(name.as_bytes()).map_err(io::Error::other)).collect()
}

fn walk(mut directory: OwnedFd, names: &[CString]) -> io::Result<OwnedFd> {
    for (depth, name) in names.iter().enumerate() {
        directory = entry::inner(&directory, name, depth)?;
    }
    Ok(directory)
}
