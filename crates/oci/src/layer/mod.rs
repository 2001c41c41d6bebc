//! Converts between layer directories and layer tars.
//!
//! A *layer directory* is an upper directory of overlayfs: a whiteout is a character device 0:0, an opaque directory
//! has an extended attribute (Linux, `Documentation/filesystems/overlayfs`). A *layer tar* has `.wh.NAME` and
//! `.wh..wh..opq` instead (OCI image specification, "Image Layer Filesystem Changeset"). Redirects and other features
//! of overlayfs have no tar form and must be resolved before.
//!
//! Memory does not depend on file sizes. It grows with the names in open directories when packing, with the number of
//! directories when unpacking, and with the number of hard links; about 100 bytes each.

pub mod acl;
mod pack;
mod pax;
pub(crate) mod read;
mod sparse;
mod tree;
mod unpack;
mod walk;

use std::path::PathBuf;

/// A tar reader and writer for other crates.
pub mod entries {
    pub use tar::EntryType;

    pub use super::acl;
    pub use super::pack::sparse_name;
    pub use super::pax::{Entry, Records, pad, padding, write_header};
    pub use super::read::{Reader, TarEntry, TarEntryKind};
    pub use super::sparse::{Segment, encode, on_disk, segments};
    pub use super::unpack::{HOLE_BYTES, runs_of_data};
}

use crate::Digest;

pub use pack::pack;
pub use unpack::unpack;

/// The namespace of overlayfs's extended attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverlayXattrs {
    /// `trusted.overlay.*`: mounts by root.
    Trusted,
    /// `user.overlay.*`: mounts in a user namespace (mount option `userxattr`).
    User,
}

impl OverlayXattrs {
    fn opaque(self) -> &'static str {
        match self {
            OverlayXattrs::Trusted => "trusted.overlay.opaque",
            OverlayXattrs::User => "user.overlay.opaque",
        }
    }
}

/// A mapping between ids of the host and of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// The host id of the container's id 0.
    pub base: u32,
    /// The number of ids in the container, from 0.
    pub count: u32,
}

impl Ids {
    /// Ids are equal on the host and in the container.
    pub const UNMAPPED: Ids = Ids { base: 0, count: u32::MAX };
    /// The container id of unmapped host ids.
    const NOBODY: u32 = 65534;

    /// Maps 65535 ids from `base` on.
    pub fn based(base: u32) -> Self {
        Self { base, count: 65535 }
    }

    fn to_container(self, outside: u32) -> u32 {
        outside.checked_sub(self.base).filter(|id| *id < self.count).unwrap_or(Self::NOBODY)
    }

    fn to_host(self, inside: u64) -> u32 {
        let inside = u32::try_from(inside).ok().filter(|id| *id < self.count).unwrap_or(Self::NOBODY);
        self.base.saturating_add(inside)
    }
}

/// How attributes and owners in a layer directory map to a tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// The namespace of overlayfs's attributes.
    pub xattrs: OverlayXattrs,
    /// The id mapping of owners.
    pub ids: Ids,
}

/// Limits for an archive.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of the uncompressed tar (so [`PackedLayer::bytes`] suffices), and bytes on disk of sparse files.
    pub bytes: u64,
    /// Number of entries, including implied directories.
    pub entries: u64,
}

/// Entries that were left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Their number.
    pub count: u64,
    /// Paths and reasons of the first [`Skipped::NAMED_MAX`].
    pub named: Vec<(PathBuf, &'static str)>,
}

impl Skipped {
    /// How many are named.
    pub const NAMED_MAX: usize = 32;

    fn add(&mut self, path: &[u8], why: &'static str) {
        use std::os::unix::ffi::OsStrExt as _;
        self.count += 1;
        if self.named.len() < Self::NAMED_MAX {
            self.named.push((std::ffi::OsStr::from_bytes(path).into(), why));
        }
    }
}

/// Statistics of a packed layer.
#[derive(Clone, Debug)]
pub struct PackedLayer {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Size of the tar in bytes.
    pub bytes: u64,
    /// Number of entries.
    pub entries: u64,
    /// Entries without a tar form.
    pub skipped: Skipped,
}

/// Statistics of an unpacked layer.
#[derive(Clone, Debug)]
pub struct UnpackedLayer {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Size of the tar in bytes.
    pub bytes: u64,
    /// Number of entries.
    pub entries: u64,
    /// Entries that were left out: devices and unknown types.
    pub skipped: Skipped,
    /// Directories that the tar implies but does not describe. They belong to root with mode 0755, and should get the
    /// attributes of the layer below. Parents come first.
    pub implied: Vec<PathBuf>,
}

/// Name prefix of whiteouts.
const WHITEOUT: &[u8] = b".wh.";
/// Name of the entry that makes its directory opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Prefix of overlayfs's attributes, which are not content.
const OVERLAY_ATTRIBUTES: &[u8] = b"user.overlay.";
/// Prefix of the attributes that are packed.
const USER_ATTRIBUTES: &[u8] = b"user.";
/// Longest path in a tar, in bytes. It may exceed what one system call takes.
const PATH_BYTES_MAX: usize = 64 << 10;
/// Size of an attribute value, or of all attribute names, in bytes (Linux, `XATTR_SIZE_MAX`).
const ATTRIBUTE_BYTES_MAX: usize = 64 << 10;
/// Size of an extended header, in bytes.
const EXTENSION_BYTES_MAX: usize = 1 << 20;
