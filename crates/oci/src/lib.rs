//! OCI images: packing and unpacking layers, image layouts, archives, registries.
//!
//! Independent of sessions, servers and databases. File operations block (use `spawn_blocking` in async code);
//! registry operations are async.
//!
//! Layers are packed and unpacked by our own code: existing libraries do not read all sparse formats, do not bound
//! memory for hostile archives, and unpack by path instead of beneath a directory. The registry client is our own as
//! well: `oci-client` resumes neither uploads nor downloads and does not bound memory. It uses hyper instead of
//! `reqwest`, whose TLS backend depends on crate features of the whole program: each client would load the machine's
//! certificates, or panic without a crypto provider.

mod archive;
mod compress;
mod digest;
mod error;
mod free_space;
mod image;
mod layer;
mod layout;
mod registry;

pub use archive::{export, import};
pub use compress::{Gzip, decompress, gzip};
pub use digest::Digest;
pub use error::Error;
pub use free_space::FreeSpaceGuard;
pub use image::{
    DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, EXTRA, EXTRA_BYTES_MAX, INDEX, Image, Layer, MANIFEST, architecture,
};
pub use layer::{Bounds, Format, Ids, OverlayXattrs, PackedLayer, Skipped, UnpackedLayer, entries, pack, unpack};
pub use layout::{Blob, BlobWriter, Collected, DOCUMENT_BYTES_MAX, Layout, REF_NAME};
pub use registry::{AddressPolicy, Options, Progress, Reference, Registry, TagOrDigest};
