//! Workspaces: the persistent directories of sessions. Each is a stack of sealed layers with a writable one on top.
//!
//! A workspace contains what hostile programs wrote. So every path is opened beneath it with `openat2`: no `..`,
//! symbolic link or mount leads out, even if the tree changes meanwhile. Calls block.

mod error;
pub mod failpoints;
mod files;
mod layer_store;
pub mod layers;
mod mount;
mod trash;

pub use error::{FileError, LayerMissing};
pub use files::{ArchiveSize, PackSource, PackStats, UnpackOptions, UnpackStats, measure, unpack_into};
pub use files::{
    Entries, Entry, EntryKind, ExistingEntry, FileTime, OpenEntry, Precondition, Version, Workspace, WriteOptions,
    WriteResult, list,
};
pub use layer_store::{LayerStore, Space, has_limits, layers_in};
pub use mount::{LayerStack, Mounter};
pub use trash::Trash;
