//! OCI images: layers from directories and back, layouts, archives, registries.
//!
//! This crate knows nothing of sessions, servers or databases. What it does to files blocks (callers in async code use
//! `spawn_blocking`); what it says to registries is async.
//!
//! Layers are read and written by our own code: the libraries there are neither read all kinds of sparse files nor bound
//! what a hostile archive makes them keep in memory, and unpack by path instead of beneath a directory. So is the client for
//! registries: `oci-client` does not continue an upload where it was, nor a download, and keeps no bound on memory. It is over
//! hyper and not over `reqwest`, whose TLS is a matter of features, which are the same for all crates of a program: each
//! client in it would load the machine's certificates, or panic where nobody has chosen a crypto provider.

mod archive;
mod compress;
mod digest;
mod error;
mod image;
mod layer;
mod layout;
mod registry;
mod room;

pub use archive::{export, import};
pub use compress::{Gzip, decompress, gzip};
pub use digest::Digest;
pub use error::Error;
pub use image::{
    DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, EXTRA, EXTRA_BYTES_MAX, INDEX, Image, Layer, MANIFEST, architecture,
};
pub use layer::{Bounds, Format, Ids, Marks, Packed, Skipped, Unpacked, entries, pack, unpack};
pub use layout::{Blob, BlobWriter, Collected, DOCUMENT_BYTES_MAX, Layout, REF_NAME};
pub use registry::{Options, Progress, Reach, Reference, Registry, Which};
pub use room::Room;
