//! Layers: capturing, sealing, comparing and merging them. A layer is an upper directory of overlayfs: a whiteout is
//! a character device 0:0, an opaque directory has an extended attribute.
//!
//! Layers contain what hostile programs wrote. Every entry is opened relative to its directory, no link is followed,
//! and trees deeper than [`DEPTH_MAX`] are refused.

mod adopt;
pub mod capture;
pub mod compare;
mod entry;
pub mod links;
mod merged;
pub mod seal;
pub mod squash;
mod usage;

pub use adopt::adopt;
pub use raworc_oci::OverlayXattrs;
pub use usage::{ENTRY_BYTES_MIN, usage};

/// Maximum depth of directories; each level takes an open descriptor.
pub const DEPTH_MAX: usize = 512;

/// The [`std::io::Error`] payload for deeper trees.
#[derive(Debug, thiserror::Error)]
#[error("directories are more than {DEPTH_MAX} levels deep")]
pub struct TooDeep;
