//! Imports image archives. Each file is read once, in order, because the archive may come from a pipe.

use std::collections::BTreeMap;
use std::io::{self, Read};

use crate::compress::{Compression, MAGIC_BYTES, decompress};
use crate::digest::Digesting;
use crate::image::{Descriptor, Document, choose};
use crate::layer::read::{Reader, TarEntry, TarEntryKind, is_tar_header};
use crate::layout::{DOCUMENT_BYTES_MAX, Layout, REF_NAME};
use crate::{Bounds, Digest, Error, gzip};

/// Bytes of JSON documents in one archive; they are kept in memory.
const DOCUMENTS_BYTES_MAX: u64 = 16 << 20;
/// Images, and names of images, in one archive.
const IMAGES_MAX: usize = 256;
/// Longest file name in an archive that is considered, in bytes.
const NAME_BYTES_MAX: usize = 512;
/// Length of a chain of links to a layer in `docker save` archives.
const LINKS_MAX: usize = 8;
/// The full name of an image, which containerd writes beside the tag in [`REF_NAME`].
const IMAGE_NAME: &str = "io.containerd.image.name";

/// An image of an archive with its name, if it has one.
pub type NamedImage = (Option<String>, Descriptor);

/// Imports an OCI or `docker save` archive (compressed or not) into a layout. Returns its images with their names in
/// the archive; nothing is tagged. Unused blobs are left for [`Layout::collect`].
///
/// In `docker save` archives, `manifest.json` names the files. Tools choose different names (crane, ko, kaniko and
/// Jib write `HEX.tar.gz`, and configs without `.json`).
///
/// # Errors
/// [`Error::BadArchive`] if it is neither format, [`Error::Damaged`] if content does not match its digest,
/// [`Error::Missing`] if a blob is in neither the archive nor the layout, [`Error::TooLarge`] beyond `bounds`, which
/// apply to the archive and to its uncompressed layers.
pub fn import(
    reader: impl Read + Send,
    layout: &Layout,
    bounds: &Bounds,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<NamedImage>, Error> {
    let mut import = Import {
        reader: Reader::new(decompress(reader).map_err(Error::from_io)?, bounds.bytes),
        layout,
        bytes_left: bounds.bytes,
        files: BTreeMap::new(),
        files_bytes: 0,
    };
    let mut entries = 0;
    while let Some(found) = import.reader.next_entry()? {
        entries += 1;
        if entries > bounds.entries {
            return Err(Error::TooLarge("the number of entries".into()));
        }
        import.entry(&found)?;
        progress(import.reader.bytes());
    }
    import.finish()
}

/// A file of an archive that an image may refer to.
enum File {
    Document(Vec<u8>),
    /// A layer outside of `blobs/`, and the digest of its uncompressed tar.
    Layer(Descriptor, Digest),
    /// A file that starts like a layer but is invalid, with the reason. Only an error if an image refers to it.
    NoLayer(String),
    /// A link to this path.
    Link(String),
}

/// The state of an import.
pub(super) struct Import<'a, R: Read> {
    reader: Reader<R>,
    pub layout: &'a Layout,
    /// Bytes that uncompressed layers may still have.
    bytes_left: u64,
    /// Files by path; those in `blobs/` are in the layout.
    files: BTreeMap<String, File>,
    /// Memory used by them, in bytes.
    files_bytes: u64,
}

impl<R: Read + Send> Import<'_, R> {
    fn entry(&mut self, found: &TarEntry) -> Result<(), Error> {
        let Ok(path) = std::str::from_utf8(&found.path) else { return Ok(()) };
        let path = clean(path);
        if path.len() > NAME_BYTES_MAX || found.link.len() > NAME_BYTES_MAX {
            return Ok(());
        }
        if matches!(found.kind, TarEntryKind::Symlink | TarEntryKind::Link) {
            let target = String::from_utf8_lossy(&found.link);
            let target =
                if found.kind == TarEntryKind::Link { clean(&target).to_owned() } else { resolve(path, &target) };
            return self.remember(path, target.len(), File::Link(target));
        }
        if found.kind != TarEntryKind::File || found.segments.is_some() {
            return Ok(());
        }
        match blob(path) {
            Some(digest) => self.layout.put(Data(&mut self.reader), found.size, Some(&digest)).map(drop),
            None => self.file(path, found.size),
        }
    }

    /// Reads a file and detects by its content whether it is a layer or a document.
    fn file(&mut self, path: &str, size: u64) -> Result<(), Error> {
        let mut first = Vec::with_capacity(MAGIC_BYTES);
        Data(&mut self.reader).take(MAGIC_BYTES as u64).read_to_end(&mut first).map_err(Error::from_io)?;
        let is_plain_tar = is_tar_header(&first) || (path.ends_with(".tar") || is_empty_tar(&first));
        let is_layer = is_plain_tar || Compression::of_magic(&first) != Compression::None;
        if is_layer {
            let layer = match self.layer(first) {
                Ok((layer, diff_id)) => File::Layer(layer, diff_id),
                Err(Error::BadArchive(why)) => File::NoLayer(why),
                Err(error) => return Err(error),
            };
            return self.remember(path, 0, layer);
        }
        let is_json = matches!(first.trim_ascii_start().first(), Some(b'{' | b'['));
        if !is_json && !path.ends_with(".json") {
            return Ok(());
        }
        if size > DOCUMENT_BYTES_MAX {
            return Err(Error::TooLarge(path.to_owned()));
        }
        Data(&mut self.reader).read_to_end(&mut first).map_err(Error::from_io)?;
        self.remember(path, first.len(), File::Document(first))
    }

    fn remember(&mut self, path: &str, bytes: usize, file: File) -> Result<(), Error> {
        self.files_bytes = self.files_bytes.saturating_add((path.len() + bytes) as u64);
        if self.files_bytes > DOCUMENTS_BYTES_MAX {
            return Err(Error::TooLarge("what the archive says of its images".into()));
        }
        self.files.insert(path.to_owned(), file);
        Ok(())
    }

    /// Stores a layer whose first bytes have been read.
    fn layer(&mut self, first: Vec<u8>) -> Result<(Descriptor, Digest), Error> {
        let data = io::Cursor::new(first).chain(Data(&mut self.reader));
        store(data, self.layout, &mut self.bytes_left)
    }

    fn finish(mut self) -> Result<Vec<NamedImage>, Error> {
        // Docker writes both formats today; the OCI index has everything.
        if let Some(File::Document(index)) = self.files.remove("index.json") {
            return self.oci(&index);
        }
        match self.files.remove("manifest.json") {
            Some(File::Document(manifest)) => self.docker(&manifest),
            _ => Err(Error::BadArchive("it is neither an OCI archive nor one of 'docker save'".into())),
        }
    }

    fn oci(&self, index: &[u8]) -> Result<Vec<NamedImage>, Error> {
        let index = match Document::parse(index)? {
            Document::Index(entries) => entries,
            Document::Manifest { .. } => return Err(Error::BadArchive("its index.json is no index".into())),
        };
        let mut images = Vec::new();
        count(index.len())?;
        for mut entry in index {
            self.check(&entry, true)?;
            let tag = entry.annotations.remove(REF_NAME);
            images.push((entry.annotations.remove(IMAGE_NAME).or(tag), entry));
        }
        Ok(images)
    }

    /// Checks that all blobs of an image exist. An index may lack the images of other machines.
    fn check(&self, manifest: &Descriptor, may_be_index: bool) -> Result<(), Error> {
        match Document::parse(&self.layout.document(&manifest.digest)?)? {
            Document::Manifest { config, layers, .. } => {
                layers.iter().chain([&config]).try_for_each(|blob| match self.layout.size(&blob.digest)? {
                    None => Err(Error::Missing { digest: blob.digest }),
                    Some(size) if size != blob.size => Err(Error::Damaged { digest: blob.digest }),
                    Some(_) => Ok(()),
                })
            }
            Document::Index(entries) if may_be_index => self.check(choose(&entries)?, false),
            Document::Index(_) => Err(Error::BadImage("an index in an index".into())),
        }
    }

    /// The document that `manifest.json` refers to.
    pub fn document(&self, path: &str) -> Result<Vec<u8>, Error> {
        match (self.find(path), blob(self.target(path))) {
            (Some(File::Document(bytes)), _) => Ok(bytes.clone()),
            (None, Some(digest)) => self.layout.document(&digest),
            _ => Err(lacks(path)),
        }
    }

    /// The layer that `manifest.json` refers to, and the digest of its uncompressed tar.
    pub fn named_layer(&mut self, path: &str) -> Result<(Descriptor, Digest), Error> {
        match (self.find(path), blob(self.target(path))) {
            (Some(File::Layer(layer, diff_id)), _) => Ok((layer.clone(), *diff_id)),
            (Some(File::NoLayer(why)), _) => Err(Error::BadArchive(format!("{path:?}: {why}"))),
            (None, Some(digest)) => {
                let content = self.layout.get(&digest)?;
                store(content, self.layout, &mut self.bytes_left)
            }
            _ => Err(lacks(path)),
        }
    }

    fn find(&self, path: &str) -> Option<&File> {
        self.files.get(self.target(path))
    }

    /// Follows links between names in the archive; nothing is opened.
    fn target<'a>(&'a self, path: &'a str) -> &'a str {
        let mut path = clean(path);
        for _ in 0..LINKS_MAX {
            match self.files.get(path) {
                Some(File::Link(target)) => path = target,
                _ => break,
            }
        }
        path
    }
}

/// Stores a layer. Its compression is kept if OCI has a media type for it; otherwise it is recompressed with gzip.
/// Its uncompressed size is subtracted from `bytes_left`.
fn store(reader: impl Read + Send, layout: &Layout, bytes_left: &mut u64) -> Result<(Descriptor, Digest), Error> {
    let mut reader = reader;
    let mut first = Vec::with_capacity(MAGIC_BYTES);
    reader.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut first).map_err(Error::from_io)?;
    let compression = Compression::of_magic(&first);
    let whole = io::Cursor::new(first).chain(reader);
    let (stored, diff_id, bytes) = match compression.media_type().filter(|_| compression != Compression::None) {
        Some(media_type) => {
            let mut copied = Tee { inner: whole, copy: layout.writer()? };
            let (diff_id, bytes) = measure(decompress(&mut copied).map_err(Error::from_io)?, *bytes_left)?;
            // Data may follow that the decoder does not need.
            io::copy(&mut copied, &mut io::sink()).map_err(Error::from_io)?;
            let (digest, size) = copied.copy.commit(None)?;
            (Descriptor::new(media_type, digest, size), diff_id, bytes)
        }
        None => {
            let plain = decompress(whole).map_err(Error::from_io)?;
            let mut plain = Digesting::new(plain.take(bytes_left.saturating_add(1)));
            let mut compressor = gzip(layout.writer()?);
            io::copy(&mut plain, &mut compressor).map_err(Error::from_io)?;
            let (_, diff_id, bytes) = plain.finish();
            if bytes > *bytes_left {
                return Err(too_large());
            }
            let (digest, size) = compressor.finish()?.commit(None)?;
            (Descriptor::new(crate::image::GZIP_LAYER, digest, size), diff_id, bytes)
        }
    };
    *bytes_left -= bytes;
    Ok((stored, diff_id))
}

/// The digest and length of a reader's data, at most `bytes_max`.
fn measure(reader: impl Read, bytes_max: u64) -> Result<(Digest, u64), Error> {
    let mut reader = Digesting::new(reader.take(bytes_max.saturating_add(1)));
    io::copy(&mut reader, &mut io::sink()).map_err(Error::from_io)?;
    let (_, digest, bytes) = reader.finish();
    if bytes > bytes_max { Err(too_large()) } else { Ok((digest, bytes)) }
}

fn too_large() -> Error {
    Error::TooLarge("what layers hold, uncompressed,".into())
}

/// Copies everything that is read to a writer.
struct Tee<R, W> {
    inner: R,
    copy: W,
}

impl<R: Read, W: io::Write> Read for Tee<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.copy.write_all(&buffer[..count])?;
        Ok(count)
    }
}

pub(super) fn count(images: usize) -> Result<(), Error> {
    if images > IMAGES_MAX { Err(Error::TooLarge("the number of its images".into())) } else { Ok(()) }
}

/// The data of the current entry.
struct Data<'a, R: Read>(&'a mut Reader<R>);

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_data(buffer).map_err(Error::into_io)
    }
}

fn is_empty_tar(first: &[u8]) -> bool {
    first.len() == MAGIC_BYTES && first.iter().all(|byte| *byte == 0)
}

/// The digest that a path in `blobs/` stands for.
fn blob(path: &str) -> Option<Digest> {
    path.strip_prefix("blobs/sha256/").and_then(|hex| format!("sha256:{hex}").parse().ok())
}

/// Strips the `./` that some tools write before each path.
fn clean(path: &str) -> &str {
    path.trim_start_matches("./")
}

/// The target of a link at `path`, as a name in the archive.
fn resolve(path: &str, target: &str) -> String {
    let mut names: Vec<&str> = path.split('/').collect();
    names.pop();
    for name in target.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            _ => names.push(name),
        }
    }
    names.join("/")
}

fn lacks(name: &str) -> Error {
    Error::BadArchive(format!("it lacks {name:?}"))
}
