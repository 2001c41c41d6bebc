//! Images in one file: OCI archives (a tar of an image layout) and what `docker save` writes (a tar with `manifest.json`).

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use serde::Deserialize;
use serde_json::Value;

use crate::compress::decompress;
use crate::digest::Digesting;
use crate::image::{CONFIG, Descriptor, Document, MANIFEST, canonical, choose};
use crate::layer::read::{Found, Kind, Reader};
use crate::layout::{DOCUMENT_BYTES_MAX, Layout, REF_NAME};
use crate::{Bounds, Compression, Digest, Error, gzip};

/// How much documents of one archive may have together, in bytes: they are kept in memory.
const DOCUMENTS_BYTES_MAX: u64 = 16 << 20;
/// How many images, and names of them, one archive may have.
const IMAGES_MAX: usize = 256;
/// How long the name of something in an archive may be that is looked at, in bytes.
const NAME_BYTES_MAX: usize = 512;

/// Writes an image with all its blobs as an OCI archive, under `name`. Of an index, the image for this machine is written.
///
/// # Errors
/// [`Error::Missing`] and [`Error::Damaged`] for blobs that are. What has been written then is no archive.
pub fn export(
    layout: &Layout,
    manifest: &Descriptor,
    name: Option<&str>,
    writer: impl Write,
    progress: &mut dyn FnMut(&Digest, u64, u64),
) -> Result<(), Error> {
    let mut manifest = manifest.clone();
    let (config, layers) = loop {
        match Document::parse(&layout.document(&manifest.digest)?)? {
            Document::Manifest { config, layers, .. } => break (config, layers),
            Document::Index(entries) => manifest = choose(&entries)?.clone(),
        }
    };
    manifest.annotations.remove(REF_NAME);
    manifest.annotations.extend(name.map(|name| (REF_NAME.to_owned(), name.to_owned())));
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": crate::image::INDEX,
        "manifests": [serde_json::to_value(&manifest).map_err(|error| Error::BadImage(error.to_string()))?],
    });
    let mut archive = tar::Builder::new(writer);
    add(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.as_slice(), 30)?;
    let index = canonical(&index);
    add(&mut archive, "index.json", &index[..], index.len() as u64)?;
    let mut done = std::collections::BTreeSet::new();
    for blob in layers.iter().chain([&config, &manifest]).filter(|blob| done.insert(blob.digest)) {
        let content = layout.get(&blob.digest)?;
        let size = content.size();
        if size != blob.size {
            return Err(Error::Damaged { digest: blob.digest });
        }
        let mut passed = 0;
        let told = Told {
            inner: content,
            tell: |bytes| {
                passed += bytes;
                progress(&blob.digest, passed, size);
            },
        };
        add(&mut archive, &format!("blobs/sha256/{}", blob.digest.hex()), told, size)?;
    }
    archive.into_inner()?.flush()?;
    Ok(())
}

fn add(archive: &mut tar::Builder<impl Write>, name: &str, mut content: impl Read, size: u64) -> Result<(), Error> {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    let added = archive.append_data(&mut header, name, (&mut content).take(size));
    added.map_err(Error::from_io)?;
    // The digest is compared when the end is seen, which `take` has kept from us.
    io::copy(&mut content, &mut io::sink()).map_err(Error::from_io)?;
    Ok(())
}

/// Tells how much is read.
struct Told<R, F> {
    inner: R,
    tell: F,
}

impl<R: Read, F: FnMut(u64)> Read for Told<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        (self.tell)(count as u64);
        Ok(count)
    }
}

/// Reads an OCI archive or one of `docker save` (compressed or not) into a layout. Each image that is in it comes with the
/// name it has there, and has not been tagged. Of what else is in the archive, nothing is read but its length; what no
/// image needs is left for [`Layout::collect`].
///
/// # Errors
/// [`Error::BadArchive`] where it is neither, [`Error::Damaged`] where content is not what its name says,
/// [`Error::Missing`] where something is not in it (nor was in the layout), [`Error::TooLarge`] beyond `bounds`, which are
/// those of the archive and of the layers in it, uncompressed.
pub fn import(
    reader: impl Read + Send,
    layout: &Layout,
    bounds: &Bounds,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<(Option<String>, Descriptor)>, Error> {
    let mut import = Import {
        reader: Reader::new(decompress(reader, None).map_err(Error::from_io)?, bounds.bytes),
        layout,
        bytes_left: bounds.bytes,
        documents: BTreeMap::new(),
        documents_bytes: 0,
        layers: BTreeMap::new(),
        links: BTreeMap::new(),
    };
    let mut entries = 0;
    while let Some(found) = import.reader.next()? {
        entries += 1;
        if entries > bounds.entries {
            return Err(Error::TooLarge("the number of entries".into()));
        }
        import.entry(&found)?;
        progress(import.reader.bytes());
    }
    import.finish()
}

struct Import<'a, R: Read> {
    reader: Reader<R>,
    layout: &'a Layout,
    /// What layers may still have, uncompressed.
    bytes_left: u64,
    /// JSON by its path in the archive.
    documents: BTreeMap<String, Vec<u8>>,
    documents_bytes: u64,
    /// Layers of `docker save` by their path in the archive.
    layers: BTreeMap<String, (Descriptor, Digest)>,
    /// Links between layers of `docker save`.
    links: BTreeMap<String, String>,
}

impl<R: Read + Send> Import<'_, R> {
    fn entry(&mut self, found: &Found) -> Result<(), Error> {
        let Ok(path) = std::str::from_utf8(&found.path) else { return Ok(()) };
        let path = path.trim_start_matches("./");
        if path.len() > NAME_BYTES_MAX || found.link.len() > NAME_BYTES_MAX {
            return Ok(());
        }
        let is_tar = path.ends_with(".tar");
        if is_tar && matches!(found.kind, Kind::Symlink | Kind::Link) {
            let target = String::from_utf8_lossy(&found.link);
            let target = if found.kind == Kind::Link { target.into_owned() } else { resolve(path, &target) };
            self.remember(path.len() + target.len())?;
            self.links.insert(path.to_owned(), target);
            return Ok(());
        }
        if found.kind != Kind::File || found.segments.is_some() {
            return Ok(());
        }
        if let Some(hex) = path.strip_prefix("blobs/sha256/") {
            let Ok(digest) = format!("sha256:{hex}").parse::<Digest>() else { return Ok(()) };
            self.layout.put(Data(&mut self.reader), found.size, Some(&digest))?;
        } else if is_tar {
            let layer = self.layer()?;
            self.remember(path.len())?;
            self.layers.insert(path.to_owned(), layer);
        } else if path.ends_with(".json") {
            if found.size > DOCUMENT_BYTES_MAX {
                return Err(Error::TooLarge(path.to_owned()));
            }
            self.remember(path.len() + usize::try_from(found.size).unwrap_or(usize::MAX))?;
            let mut bytes = Vec::new();
            Data(&mut self.reader).read_to_end(&mut bytes).map_err(Error::from_io)?;
            self.documents.insert(path.to_owned(), bytes);
        }
        Ok(())
    }

    fn remember(&mut self, bytes: usize) -> Result<(), Error> {
        self.documents_bytes = self.documents_bytes.saturating_add(bytes as u64);
        if self.documents_bytes > DOCUMENTS_BYTES_MAX {
            return Err(Error::TooLarge("what the archive says of its images".into()));
        }
        Ok(())
    }

    /// Stores a layer of `docker save`, which mostly is not compressed, compressed.
    fn layer(&mut self) -> Result<(Descriptor, Digest), Error> {
        let plain = decompress(Data(&mut self.reader), None).map_err(Error::from_io)?;
        let mut plain = Digesting::new(plain.take(self.bytes_left.saturating_add(1)));
        let mut compressor = gzip(self.layout.writer()?);
        io::copy(&mut plain, &mut compressor).map_err(Error::from_io)?;
        let (_, diff_id, bytes) = plain.finish();
        self.bytes_left = self
            .bytes_left
            .checked_sub(bytes)
            .ok_or_else(|| Error::TooLarge("what layers hold, uncompressed,".into()))?;
        let (digest, size) = compressor.finish()?.commit(None)?;
        Ok((Descriptor::new(Compression::Gzip.media_type(), digest, size), diff_id))
    }

    fn finish(mut self) -> Result<Vec<(Option<String>, Descriptor)>, Error> {
        // What Docker writes today is both; the newer says all that the older does.
        if let Some(index) = self.documents.remove("index.json") {
            return self.oci(&index);
        }
        match self.documents.remove("manifest.json") {
            Some(manifest) => self.docker(&manifest),
            None => Err(Error::BadArchive("it is neither an OCI archive nor one of 'docker save'".into())),
        }
    }

    fn oci(&self, index: &[u8]) -> Result<Vec<(Option<String>, Descriptor)>, Error> {
        let index = match Document::parse(index)? {
            Document::Index(entries) => entries,
            Document::Manifest { .. } => return Err(Error::BadArchive("its index.json is no index".into())),
        };
        let mut images = Vec::new();
        count(index.len())?;
        for mut entry in index {
            self.check(&entry, true)?;
            let name = entry.annotations.remove(REF_NAME);
            images.push((name, entry));
        }
        Ok(images)
    }

    /// Whether all that an image needs is there. Other machines' images of an index may be left out.
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

    fn docker(&self, manifest: &[u8]) -> Result<Vec<(Option<String>, Descriptor)>, Error> {
        let entries: Vec<Saved> =
            serde_json::from_slice(manifest).map_err(|error| Error::BadImage(error.to_string()))?;
        let mut images = Vec::new();
        for entry in entries {
            let config = self.documents.get(&entry.config).ok_or_else(|| lacks(&entry.config))?;
            let layers: Vec<_> = entry.layers.iter().map(|path| self.find(path)).collect::<Result<_, _>>()?;
            let said: Value = serde_json::from_slice(config).map_err(|error| Error::BadImage(error.to_string()))?;
            let said: Vec<Digest> = serde_json::from_value(said["rootfs"]["diff_ids"].clone())
                .map_err(|error| Error::BadImage(error.to_string()))?;
            if said.len() != layers.len() {
                return Err(Error::BadImage("manifest and config have different numbers of layers".into()));
            }
            if let Some((digest, _)) = said.iter().zip(&layers).find(|(said, (_, diff_id))| *said != diff_id) {
                return Err(Error::Damaged { digest: *digest });
            }
            let blobs: Vec<&Descriptor> = layers.iter().map(|(blob, _)| blob).collect();
            let descriptor = self.store(config, &blobs)?;
            let names = entry.tags.unwrap_or_default();
            if names.is_empty() {
                images.push((None, descriptor.clone()));
            }
            count(images.len() + names.len())?;
            images.extend(names.into_iter().map(|name| (Some(name), descriptor.clone())));
        }
        Ok(images)
    }

    fn store(&self, config: &[u8], layers: &[&Descriptor]) -> Result<Descriptor, Error> {
        let (digest, size) = self.layout.put(config, DOCUMENT_BYTES_MAX, None)?;
        let manifest = canonical(&serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": Descriptor::new(CONFIG, digest, size),
            "layers": layers,
        }));
        Document::parse(&manifest)?;
        let (digest, size) = self.layout.put(&manifest[..], DOCUMENT_BYTES_MAX, None)?;
        Ok(Descriptor::new(MANIFEST, digest, size))
    }

    /// A layer by its path, through at most one link.
    fn find(&self, path: &str) -> Result<&(Descriptor, Digest), Error> {
        let linked = || self.links.get(path).and_then(|target| self.layers.get(target));
        self.layers.get(path).or_else(linked).ok_or_else(|| lacks(path))
    }
}

fn count(images: usize) -> Result<(), Error> {
    if images > IMAGES_MAX { Err(Error::TooLarge("the number of its images".into())) } else { Ok(()) }
}

/// An image in `manifest.json`.
#[derive(Deserialize)]
struct Saved {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags", default)]
    tags: Option<Vec<String>>,
    #[serde(rename = "Layers")]
    layers: Vec<String>,
}

/// The data of the entry that has just been found.
struct Data<'a, R: Read>(&'a mut Reader<R>);

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_data(buffer).map_err(Error::into_io)
    }
}

/// Where a link at `path` leads, as a name in the archive: only ever compared with other names there.
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
