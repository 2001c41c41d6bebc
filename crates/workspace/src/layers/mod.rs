//! What layers are made of, and how one comes from others. A layer is a directory as overlayfs keeps its upper one: a name
//! deleted from below is a character device 0:0, a directory that hides what is below it has an extended attribute.
//!
//! What is in a layer was written by a hostile program. Everything is opened relative to the directory it was found in and
//! no symbolic link is followed; trees deeper than [`DEPTH_MAX`] are refused.

mod adopt;
pub mod capture;
pub mod compare;
mod entry;
pub mod links;
pub mod seal;
pub mod squash;
mod usage;
mod view;

pub use adopt::adopt;
pub use raworc_oci::Marks;
pub use usage::{ENTRY_BYTES_MIN, usage};

/// Directories inside one another at most: each costs a descriptor while it is looked at.
pub const DEPTH_MAX: usize = 512;

/// What is said, in an [`std::io::Error`], of deeper ones.
#[derive(Debug, thiserror::Error)]
#[error("directories are more than {DEPTH_MAX} levels deep")]
pub struct TooDeep;
