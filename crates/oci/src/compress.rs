//! Compressed layers.

use std::io::{self, Read, Write};

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use flate2::{Compression as Level, GzBuilder};

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// The largest window of zstd that is accepted, as a power of two: 32 MiB, which is what bounds memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 25;

impl Compression {
    /// What the media type of a layer says (OCI image specification, "Media Types", and those of Docker's schema 2).
    /// `None` where it is not one of a layer.
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        match media_type {
            "application/vnd.oci.image.layer.v1.tar" | "application/vnd.oci.image.layer.nondistributable.v1.tar" => {
                Some(Compression::None)
            }
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Some(Compression::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd" => Some(Compression::Zstd),
            _ => None,
        }
    }

    /// The media type of a layer compressed so.
    pub fn media_type(self) -> &'static str {
        match self {
            Compression::None => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    /// What the first bytes say. No tar begins like a compressed file.
    pub fn of_magic(bytes: &[u8]) -> Self {
        if bytes.starts_with(&[0x1f, 0x8b]) {
            Compression::Gzip
        } else if bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Compression::Zstd
        } else {
            Compression::None
        }
    }
}

/// Compresses what is written with gzip, quickly, the same input always to the same bytes. `finish` ends it.
pub fn gzip<W: Write>(writer: W) -> GzEncoder<W> {
    // 255 is "unknown" (RFC 1952, 2.3.1): the header says nothing of the machine or the time.
    GzBuilder::new().mtime(0).operating_system(255).write(writer, Level::new(1))
}

/// Decompresses `reader`, by its media type or, where that is `None`, by its first bytes.
///
/// # Errors
/// Where its first bytes cannot be read.
pub fn decompress<'a, R: Read + Send + 'a>(
    mut reader: R,
    compression: Option<Compression>,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut first = Vec::with_capacity(4);
    let compression = match compression {
        Some(compression) => compression,
        None => {
            reader.by_ref().take(4).read_to_end(&mut first)?;
            Compression::of_magic(&first)
        }
    };
    let whole = io::Cursor::new(first).chain(reader);
    Ok(match compression {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(MultiGzDecoder::new(whole)),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::new(whole)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
    })
}
