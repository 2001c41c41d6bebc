//! OCI images: layers from directories and back, layouts, archives, registries.
//!
//! This crate knows nothing of sessions, servers or databases. What it does to files blocks (callers in async code use
//! `spawn_blocking`); what it says to registries is async.

mod compress;
mod digest;
mod error;
mod layer;

pub use compress::{Compression, decompress, gzip};
pub use digest::Digest;
pub use error::Error;
pub use layer::{Bounds, Format, Ids, Marks, Packed, Skipped, Unpacked, pack, unpack};
