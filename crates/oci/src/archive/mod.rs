//! Images in one file: OCI archives (a tar of an image layout) and `docker save` archives (a tar with
//! `manifest.json`).

mod docker;
mod import;

use std::io::{self, Read, Write};

use crate::image::{Descriptor, Document, canonical, choose};
use crate::layout::{Layout, REF_NAME};
use crate::{Digest, Error};

pub use import::import;

/// Exports an image with all its blobs as an OCI archive, under `name`. For an index, only the image for this
/// machine.
///
/// # Errors
/// [`Error::Missing`] and [`Error::Damaged`] for blobs. The output is then incomplete.
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
        let told = ProgressReader {
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
    // `take` hides the end, where the digest is verified.
    io::copy(&mut content, &mut io::sink()).map_err(Error::from_io)?;
    Ok(())
}

/// Reports how much is read.
struct ProgressReader<R, F> {
    inner: R,
    tell: F,
}

impl<R: Read, F: FnMut(u64)> Read for ProgressReader<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        (self.tell)(count as u64);
        Ok(count)
    }
}
