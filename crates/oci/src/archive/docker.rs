//! Imports the archives of `docker save`, whose `manifest.json` lists configs and layers (Docker image specification
//! 1.2, "Combined Image JSON + Filesystem Changeset Format").

use std::io::Read;

use serde::Deserialize;
use serde_json::Value;

use super::import::{Import, NamedImage, count};
use crate::image::{CONFIG, Descriptor, Document, MANIFEST, canonical};
use crate::layout::DOCUMENT_BYTES_MAX;
use crate::{Digest, Error};

/// An image in `manifest.json`.
#[derive(Deserialize)]
struct Saved {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags", default)]
    tags: Option<Vec<String>>,
    #[serde(rename = "Layers", default)]
    layers: Option<Vec<String>>,
}

impl<R: Read + Send> Import<'_, R> {
    /// The images of a `manifest.json`, once per name.
    pub(super) fn docker(mut self, manifest: &[u8]) -> Result<Vec<NamedImage>, Error> {
        let entries: Vec<Saved> = serde_json::from_slice(manifest).map_err(bad)?;
        let mut images = Vec::new();
        for entry in entries {
            let descriptor = self.saved(&entry)?;
            let names = entry.tags.unwrap_or_default();
            count(images.len() + names.len().max(1))?;
            if names.is_empty() {
                images.push((None, descriptor));
            } else {
                images.extend(names.into_iter().map(|name| (Some(name), descriptor.clone())));
            }
        }
        Ok(images)
    }

    fn saved(&mut self, entry: &Saved) -> Result<Descriptor, Error> {
        let config = self.document(&entry.config)?;
        let paths = entry.layers.iter().flatten();
        let layers: Vec<_> = paths.map(|path| self.named_layer(path)).collect::<Result<_, _>>()?;
        let said: Value = serde_json::from_slice(&config).map_err(bad)?;
        let said: Vec<Digest> = match &said["rootfs"]["diff_ids"] {
            // An image without layers.
            Value::Null => Vec::new(),
            list => serde_json::from_value(list.clone()).map_err(bad)?,
        };
        if said.len() != layers.len() {
            return Err(Error::BadImage("manifest and config have different numbers of layers".into()));
        }
        if let Some((digest, _)) = said.iter().zip(&layers).find(|(said, (_, diff_id))| *said != diff_id) {
            return Err(Error::Damaged { digest: *digest });
        }
        self.store(&config, &layers.iter().map(|(layer, _)| layer).collect::<Vec<_>>())
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
}

fn bad(error: serde_json::Error) -> Error {
    Error::BadImage(error.to_string())
}
