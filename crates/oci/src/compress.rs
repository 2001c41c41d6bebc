//! Compresses and decompresses layers.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bzip2::read::MultiBzDecoder;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use flate2::{Compression as Level, GzBuilder};
use lzma_rust2::XzReader;

use crate::Error;
use crate::layer::read::is_tar_header;

/// A compression format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    /// Uncompressed.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// The .xz file format, version 1.2. OCI has no media type for it, but `docker save` archives use it.
    Xz,
    /// bzip2 1.0. OCI has no media type for it, but old archives use it.
    Bzip2,
}

/// The largest zstd window, as a power of two: 32 MiB. It bounds memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 25;
/// Memory limit of the xz decoder in KiB: what `xz -9` needs (65 MiB), and a reserve.
const XZ_MEMORY_KIB_MAX: u32 = 80 << 10;
/// Bytes needed to detect the compression: a tar block, so that a tar is not mistaken for something else.
pub(crate) const MAGIC_BYTES: usize = 512;

impl Compression {
    /// The media type of a layer; `None` if OCI has none for this format.
    pub fn media_type(self) -> Option<&'static str> {
        match self {
            Compression::None => Some("application/vnd.oci.image.layer.v1.tar"),
            Compression::Gzip => Some("application/vnd.oci.image.layer.v1.tar+gzip"),
            Compression::Zstd => Some("application/vnd.oci.image.layer.v1.tar+zstd"),
            Compression::Xz | Compression::Bzip2 => None,
        }
    }

    /// Detects the format from the first [`MAGIC_BYTES`]. A tar is recognized even if its first name looks like
    /// compressed data.
    pub(crate) fn of_magic(bytes: &[u8]) -> Self {
        const MAGIC: [(&[u8], Compression); 4] = [
            (&[0x1f, 0x8b], Compression::Gzip),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
            (b"BZh", Compression::Bzip2),
        ];
        let found = MAGIC.into_iter().find(|(magic, _)| bytes.starts_with(magic));
        found.filter(|_| !is_tar_header(bytes)).map_or(Compression::None, |(_, compression)| compression)
    }
}

/// Whether a media type is that of a layer in any compression (OCI image specification, "Media Types", Docker's
/// schema 2, and suffixes of containerd and skopeo). Readers detect the compression by content, as `docker load`
/// does, because some tools state the wrong one.
pub(crate) fn is_layer(media_type: &str) -> bool {
    const LAYERS: [&str; 4] = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    let suffixes = ["", "+gzip", "+zstd", ".gzip", ".zstd"];
    LAYERS.iter().any(|layer| media_type.strip_prefix(layer).is_some_and(|suffix| suffixes.contains(&suffix)))
}

/// Bytes compressed as one gzip member (RFC 1952, 2.2).
const MEMBER_BYTES: usize = 1 << 20;
/// Bytes of a member that are compressed as a sample.
const SAMPLE_BYTES: usize = 32 << 10;

/// Compresses with gzip, fast and deterministically. Call [`Gzip::finish`] at the end.
///
/// Data that does not compress (archives, media, models) is stored, because trying takes three times as long as all
/// the rest.
pub fn gzip<W: Write>(writer: W) -> Gzip<W> {
    Gzip { writer, member: Vec::with_capacity(MEMBER_BYTES), is_empty: true }
}

/// A gzip writer; see [`gzip`].
pub struct Gzip<W: Write> {
    writer: W,
    /// Written but not compressed yet.
    member: Vec<u8>,
    is_empty: bool,
}

impl<W: Write> Gzip<W> {
    /// Writes the rest and returns the inner writer.
    ///
    /// # Errors
    /// If writing fails.
    pub fn finish(mut self) -> io::Result<W> {
        if self.is_empty || !self.member.is_empty() {
            self.end_member()?;
        }
        Ok(self.writer)
    }

    fn end_member(&mut self) -> io::Result<()> {
        let level = if is_dense(&self.member)? { Level::none() } else { Level::fast() };
        let mut encoder = encoder(&mut self.writer, level);
        encoder.write_all(&self.member)?;
        encoder.finish()?;
        self.member.clear();
        self.is_empty = false;
        Ok(())
    }
}

impl<W: Write> Write for Gzip<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(MEMBER_BYTES - self.member.len());
        self.member.extend_from_slice(&bytes[..taken]);
        if self.member.len() == MEMBER_BYTES {
            self.end_member()?;
        }
        Ok(taken)
    }

    /// Does nothing: a flush would change where members end.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn encoder<W: Write>(writer: W, level: Level) -> GzEncoder<W> {
    // 255 is "unknown" (RFC 1952, 2.3.1), so that the header does not depend on machine or time.
    GzBuilder::new().mtime(0).operating_system(255).write(writer, level)
}

/// Whether data does not compress: a sample shrinks by less than a sixteenth.
fn is_dense(member: &[u8]) -> io::Result<bool> {
    let sample = &member[..member.len().min(SAMPLE_BYTES)];
    let mut encoder = encoder(Vec::with_capacity(SAMPLE_BYTES), Level::fast());
    encoder.write_all(sample)?;
    Ok(encoder.finish()?.len() > sample.len() - sample.len() / 16)
}

/// Decompresses `reader`, detecting the format. Invalid data gives an error that wraps [`Error::BadArchive`]; errors
/// of `reader` are passed on.
///
/// # Errors
/// If the first bytes cannot be read.
pub fn decompress<'a, R: Read + Send + 'a>(mut reader: R) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut first = Vec::with_capacity(MAGIC_BYTES);
    reader.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut first)?;
    let compression = Compression::of_magic(&first);
    let has_failed = Arc::new(AtomicBool::new(false));
    let whole = SourceMonitor { inner: io::Cursor::new(first).chain(reader), has_failed: Arc::clone(&has_failed) };
    Ok(match compression {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(Decoder { inner: MultiGzDecoder::new(whole), has_failed }),
        Compression::Bzip2 => Box::new(Decoder { inner: MultiBzDecoder::new(whole), has_failed }),
        Compression::Xz => {
            let inner = XzReader::new_mem_limit(whole, true, XZ_MEMORY_KIB_MAX);
            Box::new(Decoder { inner, has_failed })
        }
        Compression::Zstd => {
            let mut inner = zstd::Decoder::new(whole)?;
            inner.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(Decoder { inner, has_failed })
        }
    })
}

/// Records whether the source failed.
struct SourceMonitor<R> {
    inner: R,
    has_failed: Arc<AtomicBool>,
}

impl<R: Read> Read for SourceMonitor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.inner.read(buffer);
        let is_failure = result.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::Interrupted);
        self.has_failed.fetch_or(is_failure, Ordering::Relaxed);
        result
    }
}

/// Distinguishes invalid data from a failing source.
struct Decoder<D> {
    inner: D,
    has_failed: Arc<AtomicBool>,
}

impl<D: Read> Read for Decoder<D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            _ if self.has_failed.load(Ordering::Relaxed) => error,
            _ => Error::BadArchive(format!("it cannot be decompressed: {error}")).into_io(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

    use super::*;

    /// Incompressible bytes from a linear congruential generator (Knuth's MMIX).
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn what_was_compressed_comes_back_whoever_writes_it_how() {
        let noise = noise(MEMBER_BYTES + 4321);
        for plain in [&b""[..], b"short", &noise, &[noise.as_slice(), &vec![7; 3 * MEMBER_BYTES]].concat()] {
            let whole = |step: usize| {
                let mut compressor = gzip(Vec::new());
                for part in plain.chunks(step) {
                    compressor.write_all(part).unwrap();
                    compressor.flush().unwrap();
                }
                compressor.finish().unwrap()
            };
            let compressed = whole(70_000);
            assert_eq!(compressed, whole(4096), "the same bytes whatever the steps");
            let mut again = Vec::new();
            decompress(compressed.as_slice()).unwrap().read_to_end(&mut again).unwrap();
            assert!(again == plain);
        }
    }

    #[test]
    fn damage_is_told_from_what_cannot_be_read() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        for magic in [&[0x28, 0xb5, 0x2f, 0xfd][..], &[0x1f, 0x8b, 8, 0], &[0xfd, b'7', b'z', b'X', b'Z', 0], b"BZh9"] {
            let fails = |rest: &mut (dyn Read + Send)| {
                let read = decompress(magic.chain(rest)).and_then(|mut plain| plain.read_to_end(&mut Vec::new()));
                Error::from_io(read.unwrap_err())
            };
            assert!(matches!(fails(&mut noise(100).as_slice()), Error::BadArchive(_)));
            assert!(matches!(fails(&mut io::empty()), Error::BadArchive(_)));
            assert!(matches!(fails(&mut Broken), Error::Io(error) if error.kind() == io::ErrorKind::BrokenPipe));
        }
    }

    #[test]
    fn what_cannot_be_made_smaller_hardly_grows_and_the_rest_gets_small() {
        let compressed = |plain: &[u8]| {
            let mut compressor = gzip(Vec::new());
            compressor.write_all(plain).unwrap();
            compressor.finish().unwrap().len()
        };
        let noise = noise(2 * MEMBER_BYTES);
        assert!(compressed(&noise) < noise.len() + noise.len() / 1000);
        assert!(compressed(&vec![7; 2 * MEMBER_BYTES]) < MEMBER_BYTES / 50);
    }
}
