//! Layer directories and layer tars.
//!
//! A *layer directory* is what overlayfs keeps as its upper directory: a name deleted from below is a character device
//! 0:0, a directory that hides what is below it has an extended attribute (Linux, `Documentation/filesystems/overlayfs`).
//! A *layer tar* says the same with `.wh.NAME` and `.wh..wh..opq` (OCI image specification, "Image Layer Filesystem
//! Changeset"). Redirects and other features of overlayfs have no such form and must have been settled before.
//!
//! Memory is bounded whatever the size of files. It grows with the names of one directory (and those above it) when
//! packing, with the number of directories when unpacking, and with the number of hard-linked files; about 100 bytes each.

pub mod acl;
mod pack;
mod pax;
pub(crate) mod read;
mod sparse;
mod tree;
mod unpack;
mod walk;

use std::path::PathBuf;

/// Tars, entry by entry, for those who make and read them otherwise.
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

/// Where overlayfs keeps its marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// `trusted.overlay.*`: mounts of root.
    Trusted,
    /// `user.overlay.*`: mounts in a user namespace (mount option `userxattr`).
    User,
}

impl Marks {
    fn opaque(self) -> &'static str {
        match self {
            Marks::Trusted => "trusted.overlay.opaque",
            Marks::User => "user.overlay.opaque",
        }
    }
}

/// Which ids outside stand for which inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// The id outside that is 0 inside.
    pub base: u32,
    /// How many ids there are inside, from 0.
    pub count: u32,
}

impl Ids {
    /// Ids are the same outside as inside.
    pub const UNMAPPED: Ids = Ids { base: 0, count: u32::MAX };
    /// Inside, whoever has no id of its own.
    const NOBODY: u32 = 65534;

    /// The 65535 ids from `base` on.
    pub fn based(base: u32) -> Self {
        Self { base, count: 65535 }
    }

    fn inside(self, outside: u32) -> u32 {
        outside.checked_sub(self.base).filter(|id| *id < self.count).unwrap_or(Self::NOBODY)
    }

    fn outside(self, inside: u64) -> u32 {
        let inside = u32::try_from(inside).ok().filter(|id| *id < self.count).unwrap_or(Self::NOBODY);
        self.base.saturating_add(inside)
    }
}

/// How a layer directory says what a tar says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Where overlayfs keeps its marks.
    pub marks: Marks,
    /// Which ids the owners of files are.
    pub ids: Ids,
}

/// How much an archive may hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of the uncompressed tar (so [`Packed::bytes`] is always enough), and bytes on disk of sparse files.
    pub bytes: u64,
    /// Entries, and directories that are only implied by them.
    pub entries: u64,
}

/// What has been left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// How many.
    pub count: u64,
    /// The first [`Skipped::NAMED_MAX`] of them: where, and why.
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

/// A layer directory that has been made a tar.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The digest of the (uncompressed) tar.
    pub diff_id: Digest,
    /// Its length in bytes.
    pub bytes: u64,
    /// How many entries it has.
    pub entries: u64,
    /// What could not be expressed.
    pub skipped: Skipped,
}

/// A tar that has been made a layer directory.
#[derive(Clone, Debug)]
pub struct Unpacked {
    /// The digest of the (uncompressed) tar.
    pub diff_id: Digest,
    /// Its length in bytes.
    pub bytes: u64,
    /// How many entries it has.
    pub entries: u64,
    /// What has been left out: devices, and kinds of entries that mean nothing here.
    pub skipped: Skipped,
    /// Directories that the tar has something in without saying what they are: they are root's and 0755 now, and should
    /// become what they are in the layer below. Parents come before what is in them.
    pub implied: Vec<PathBuf>,
}

/// The names of `.wh.` entries begin with this.
const WHITEOUT: &[u8] = b".wh.";
/// What hides all that is below a directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Attributes of overlayfs, which are never content.
const OVERLAY_ATTRIBUTES: &[u8] = b"user.overlay.";
/// The only attributes that go into a tar.
const USER_ATTRIBUTES: &[u8] = b"user.";
/// How long a path in a tar may be, in bytes. Deep trees have longer paths than system calls take.
const PATH_BYTES_MAX: usize = 64 << 10;
/// The most a value of an attribute may have, in bytes (Linux, `XATTR_SIZE_MAX`), and all their names together.
const ATTRIBUTE_BYTES_MAX: usize = 64 << 10;
/// The most an extended header may have, in bytes.
const EXTENSION_BYTES_MAX: usize = 1 << 20;
