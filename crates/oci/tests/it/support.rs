//! Helpers: comparing trees, running tools.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

pub use crate::daemon::run;

use raworc_oci::{Bounds, Digest, Format, Ids, OverlayXattrs, PackedLayer, UnpackedLayer, pack, unpack};

/// Unmapped ids, and root's attribute namespace.
pub const PLAIN: Format = Format { xattrs: OverlayXattrs::Trusted, ids: Ids::UNMAPPED };
/// Limits that no honest test reaches.
pub const AMPLE: Bounds = Bounds { bytes: 4 << 30, entries: 1_000_000 };

/// All visible properties of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub kind: String,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub size: u64,
    pub content: Option<Digest>,
    pub target: Vec<u8>,
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path of the same inode.
    pub first: Option<Vec<u8>>,
    /// Bytes on disk.
    pub blocks: u64,
}

/// All entries of a directory and itself, by path.
pub fn look(root: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut seen = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        if kind.is_dir() {
            left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let whiteout = kind.is_char_device() && metadata.rdev() == 0;
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        let shared = !kind.is_dir() && metadata.nlink() > 1 && !whiteout;
        let first = shared.then(|| inodes.entry(metadata.ino()).or_insert_with(Vec::new));
        if let Some(first) = first {
            first.push(name.clone());
        }
        let here = Seen {
            kind: if whiteout { "whiteout".into() } else { format!("{kind:?}") },
            mode: if whiteout { 0 } else { metadata.mode() & 0o7777 },
            owner: if whiteout { (0, 0) } else { (metadata.uid(), metadata.gid()) },
            mtime: if whiteout { (0, 0) } else { (metadata.mtime(), metadata.mtime_nsec()) },
            size: if kind.is_file() { metadata.len() } else { 0 },
            content: kind.is_file().then(|| Digest::of(&std::fs::read(&path).unwrap())),
            target: if kind.is_symlink() {
                std::fs::read_link(&path).unwrap().as_os_str().as_bytes().into()
            } else {
                vec![]
            },
            attributes: if kind.is_file() || kind.is_dir() { attributes(&path) } else { BTreeMap::new() },
            first: None,
            blocks: if kind.is_file() { metadata.blocks() * 512 } else { 0 },
        };
        seen.insert(name, here);
    }
    for names in inodes.values() {
        let first = names.iter().min().unwrap();
        names.iter().for_each(|name| seen.get_mut(name).unwrap().first = Some(first.clone()));
    }
    seen
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 1 << 16];
    let count = rustix::fs::listxattr(path, &mut list[..]).unwrap();
    let names = list[..count].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let count = rustix::fs::getxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..count].to_vec())
        })
        .collect()
}

/// Reports differences.
pub fn assert_same(left: &BTreeMap<Vec<u8>, Seen>, right: &BTreeMap<Vec<u8>, Seen>) {
    for (name, seen) in left {
        let path = String::from_utf8_lossy(name);
        let mut other = right.get(name).unwrap_or_else(|| panic!("{path:?} is missing")).clone();
        // How a file is laid out on disk is looked at where it matters.
        other.blocks = seen.blocks;
        assert_eq!(*seen, other, "{path:?}");
    }
    assert_eq!(left.len(), right.len(), "there is more than there was");
}

/// Packs to memory.
pub fn packed(directory: &Path, format: &Format) -> (Vec<u8>, PackedLayer) {
    let mut bytes = Vec::new();
    let packed = pack(directory, format, &mut bytes).unwrap();
    assert_eq!(packed.bytes, bytes.len() as u64);
    assert_eq!(packed.diff_id, Digest::of(&bytes));
    (bytes, packed)
}

/// Unpacks from memory.
pub fn unpacked(tar: &[u8], directory: &Path, format: &Format) -> UnpackedLayer {
    let unpacked = unpack(tar, directory, format, &AMPLE, &mut |_| {}).unwrap();
    assert_eq!(unpacked.diff_id, Digest::of(tar));
    assert_eq!(unpacked.bytes, tar.len() as u64);
    unpacked
}

/// Whether a test can run; prints SKIPPED and the reason otherwise.
pub fn able(tools: &[&str]) -> bool {
    if !rustix::process::geteuid().is_root() {
        return skipped("layer directories have owners and devices: root is needed");
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    for tool in tools {
        if !std::env::split_paths(&path).any(|directory| directory.join(tool).is_file()) {
            return skipped(&format!("{tool} is not installed"));
        }
    }
    true
}

fn skipped(why: &str) -> bool {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
    false
}
