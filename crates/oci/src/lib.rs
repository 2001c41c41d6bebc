//! OCI images: layers from directories and back, layouts, archives, registries.
//!
//! This crate knows nothing of sessions, servers or databases. What it does to files blocks (callers in async code use
//! `spawn_blocking`); what it says to registries is async.

mod archive;
mod compress;
mod digest;
mod error;
mod image;
mod layer;
mod layout;
mod registry;

pub use archive::{export, import};
pub use compress::{Compression, decompress, gzip};
pub use digest::Digest;
pub use error::Error;
pub use image::{DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, EXTRA, EXTRA_BYTES_MAX, INDEX, Image, Layer, MANIFEST};
pub use layer::{Bounds, Format, Ids, Marks, Packed, Skipped, Unpacked, pack, unpack};
pub use layout::{Blob, BlobWriter, Collected, DOCUMENT_BYTES_MAX, Layout, REF_NAME};
pub use registry::{Options, Progress, Reference, Registry, Which};
