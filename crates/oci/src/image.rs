//! Image configs and manifests (OCI image specification, "Image Configuration" and "Image Manifest Specification").
//! Docker's image manifest version 2, schema 2, can be read as well.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::Path;

use oci_spec::image::{Arch, ConfigBuilder, HistoryBuilder, ImageConfigurationBuilder, Os, RootFsBuilder};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::compress::is_layer;
use crate::digest::Digesting;
use crate::layout::{Blob, DOCUMENT_BYTES_MAX, Layout};
use crate::{Bounds, Digest, Error, Format, PackedLayer, UnpackedLayer, decompress, gzip, pack, unpack};

/// Media type of an image's manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an index of manifests.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an image's config.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a layer compressed with gzip.
pub(crate) const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Media type of Docker's manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of Docker's manifest list.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Media type of Docker's config.
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Maximum size of our own data in a config, in bytes of JSON.
pub const EXTRA_BYTES_MAX: usize = 3 << 20;
/// The config's key for our own data.
pub const EXTRA: &str = "raworc";
/// Maximum number of layers of an image.
const LAYERS_MAX: usize = 1024;

/// A content descriptor: type, digest and size of a blob (OCI image specification, "Content Descriptors").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The platform it is for, as in the specification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Value>,
    /// Its annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// A descriptor without platform and annotations.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.into(), digest, size, platform: None, annotations: BTreeMap::new() }
    }
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The stored blob.
    pub blob: Descriptor,
    /// The digest of its uncompressed tar.
    pub diff_id: Digest,
    /// The command that created it.
    pub created_by: String,
    /// When it was created (RFC 3339).
    pub created: Option<String>,
}

/// An image without the content of its layers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Image {
    /// Its layers, the lowest first.
    pub layers: Vec<Layer>,
    /// When it was created (RFC 3339).
    pub created: Option<String>,
    /// Labels of the config.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
    /// Environment of its programs, `NAME=VALUE` each.
    pub env: Vec<String>,
    /// The config's key `raworc`: at most 3 MiB of JSON.
    pub extra: Option<Value>,
    /// Operating system and architecture, as in the specification.
    pub platform: Option<(String, String)>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    rootfs: RootFs,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    config: Option<Value>,
    #[serde(default)]
    history: Option<Vec<History>>,
    #[serde(default)]
    raworc: Option<Value>,
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    architecture: Option<String>,
}

#[derive(Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

#[derive(Default, Deserialize)]
struct History {
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    created_by: Option<String>,
    #[serde(default)]
    empty_layer: bool,
}

impl Layer {
    /// Packs a layer directory into a layout, compressed with gzip.
    ///
    /// # Errors
    /// Those of [`pack`] and [`Layout::writer`].
    pub fn pack(directory: &Path, format: &Format, layout: &Layout) -> Result<(Self, PackedLayer), Error> {
        let mut compressor = gzip(std::io::BufWriter::with_capacity(64 << 10, layout.writer()?));
        let packed = pack(directory, format, &mut compressor)?;
        let buffered = compressor.finish()?;
        let mut writer = buffered.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        writer.flush()?;
        let (digest, size) = writer.commit(None)?;
        let blob = Descriptor::new(GZIP_LAYER, digest, size);
        Ok((Self { blob, diff_id: packed.diff_id, created_by: String::new(), created: None }, packed))
    }
}

impl Layer {
    /// Unpacks the layer from a layout into the empty directory `directory` (see [`crate::unpack`]).
    ///
    /// # Errors
    /// Those of [`crate::unpack`]; [`Error::Missing`] and [`Error::Damaged`] for the blob, also if it cannot be
    /// decompressed because it is damaged.
    pub fn unpack(
        &self,
        layout: &Layout,
        directory: &Path,
        format: &Format,
        bounds: &Bounds,
        progress: &mut dyn FnMut(u64),
    ) -> Result<UnpackedLayer, Error> {
        let mut blob = layout.get(&self.blob.digest)?;
        let outcome = decompress(&mut blob)
            .map_err(Error::from_io)
            .and_then(|reader| unpack(reader, directory, format, bounds, progress));
        match outcome {
            Ok(unpacked) if unpacked.diff_id != self.diff_id => Err(Error::Damaged { digest: self.diff_id }),
            Err(Error::Io(_) | Error::BadArchive(_) | Error::Blocked(_)) if is_damaged(&mut blob) => {
                Err(Error::Damaged { digest: self.blob.digest })
            }
            outcome => outcome,
        }
    }
}

impl Layer {
    /// Verifies that the blob decompresses to the layer's `diff_id`; reads at most `bytes_max`.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Damaged`], [`Error::TooLarge`], or if it cannot be read or decompressed.
    pub fn verify(&self, layout: &Layout, bytes_max: u64) -> Result<(), Error> {
        let blob = layout.get(&self.blob.digest)?;
        let plain = decompress(blob).map_err(Error::from_io)?;
        let mut plain = Digesting::new(plain.take(bytes_max.saturating_add(1)));
        std::io::copy(&mut plain, &mut std::io::sink()).map_err(Error::from_io)?;
        match plain.finish() {
            (_, _, bytes) if bytes > bytes_max => Err(Error::TooLarge("a layer".into())),
            (_, digest, _) if digest != self.diff_id => Err(Error::Damaged { digest: self.diff_id }),
            _ => Ok(()),
        }
    }
}

/// Reads a blob to its end and returns whether its digest does not match.
fn is_damaged(blob: &mut Blob) -> bool {
    let end = std::io::copy(blob, &mut std::io::sink()).map_err(Error::from_io);
    matches!(end, Err(Error::Damaged { .. }))
}

impl Image {
    /// Stores config and manifest of an image, deterministically. Its layers need not be in the layout, since the
    /// registry may have them.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if `extra` or the whole config is too large.
    pub fn store(&self, layout: &Layout) -> Result<Descriptor, Error> {
        let config = self.config()?;
        let (digest, size) = layout.put(&config[..], DOCUMENT_BYTES_MAX, None)?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(MANIFEST.into()),
            config: Descriptor::new(CONFIG, digest, size),
            layers: self.layers.iter().map(|layer| layer.blob.clone()).collect(),
            annotations: self.annotations.clone(),
        };
        let manifest = canonical(&serde_json::to_value(&manifest).map_err(bad)?);
        let (digest, size) = layout.put(&manifest[..], DOCUMENT_BYTES_MAX, None)?;
        Ok(Descriptor::new(MANIFEST, digest, size))
    }

    fn config(&self) -> Result<Vec<u8>, Error> {
        let rootfs = RootFsBuilder::default()
            .typ("layers")
            .diff_ids(self.layers.iter().map(|layer| layer.diff_id.to_string()).collect::<Vec<_>>())
            .build()
            .map_err(bad)?;
        let mut history = Vec::new();
        for layer in &self.layers {
            let mut step = HistoryBuilder::default().created_by(&layer.created_by);
            if let Some(created) = &layer.created {
                step = step.created(created);
            }
            history.push(step.build().map_err(bad)?);
        }
        let labels: std::collections::HashMap<String, String> = self.labels.clone().into_iter().collect();
        let mut config = ImageConfigurationBuilder::default()
            .os(Os::Linux)
            .architecture(Arch::from(architecture()))
            .config(ConfigBuilder::default().labels(labels).env(self.env.clone()).build().map_err(bad)?)
            .rootfs(rootfs)
            .history(history);
        if let Some(created) = &self.created {
            config = config.created(created);
        }
        let mut config = serde_json::to_value(config.build().map_err(bad)?).map_err(bad)?;
        if let Some(extra) = &self.extra {
            if canonical(extra).len() > EXTRA_BYTES_MAX {
                return Err(Error::TooLarge("what is added to the config".into()));
            }
            config[EXTRA] = extra.clone();
        }
        Ok(canonical(&config))
    }

    /// Loads the image of a manifest; for an index, the image for Linux and this machine.
    ///
    /// # Errors
    /// [`Error::BadImage`] if it is invalid, [`Error::Missing`] and [`Error::Damaged`] for its documents. Layers are
    /// not read.
    pub fn load(layout: &Layout, manifest: &Digest) -> Result<Self, Error> {
        let parsed = match Document::parse(&layout.document(manifest)?)? {
            Document::Manifest { config, layers, annotations } => (config, layers, annotations),
            Document::Index(entries) => {
                let chosen = choose(&entries)?;
                match Document::parse(&layout.document(&chosen.digest)?)? {
                    Document::Manifest { config, layers, annotations } => (config, layers, annotations),
                    Document::Index(_) => return Err(Error::BadImage("an index in an index".into())),
                }
            }
        };
        let (config, layers, annotations) = parsed;
        let config: Config = serde_json::from_slice(&layout.document(&config.digest)?).map_err(bad)?;
        if config.rootfs.diff_ids.len() != layers.len() {
            return Err(Error::BadImage("manifest and config have different numbers of layers".into()));
        }
        let said = |name: &str| config.config.as_ref().and_then(|config| config.get(name)).cloned().unwrap_or_default();
        let (labels, env) = (said("Labels"), said("Env"));
        let mut history = config.history.unwrap_or_default().into_iter().filter(|step| !step.empty_layer);
        let layers = layers.into_iter().zip(config.rootfs.diff_ids).map(|(blob, diff_id)| {
            let step = history.next().unwrap_or_default();
            Layer { blob, diff_id, created_by: step.created_by.unwrap_or_default(), created: step.created }
        });
        Ok(Self {
            layers: layers.collect(),
            created: config.created,
            labels: serde_json::from_value(labels).unwrap_or_default(),
            annotations,
            env: serde_json::from_value(env).unwrap_or_default(),
            extra: config.raworc,
            platform: config.os.zip(config.architecture),
        })
    }

    /// Whether its platform matches this machine. True if it states none.
    pub fn matches_platform(&self) -> bool {
        self.platform.as_ref().is_none_or(|(os, processor)| os == "linux" && processor == architecture())
    }
}

/// A manifest or an index.
pub(crate) enum Document {
    Manifest { config: Descriptor, layers: Vec<Descriptor>, annotations: BTreeMap<String, String> },
    Index(Vec<Descriptor>),
}

impl Document {
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let value: Value = serde_json::from_slice(bytes).map_err(bad)?;
        if value["schemaVersion"] != 2 {
            return Err(Error::BadImage("a manifest of a version other than 2".into()));
        }
        let said = value["mediaType"].as_str().unwrap_or_default();
        // A document that is both could be read differently elsewhere.
        let is_index = value.get("manifests").is_some();
        if is_index == value.get("layers").is_some() {
            return Err(Error::BadImage("neither a manifest nor an index".into()));
        }
        let expected = if is_index { ["", INDEX, DOCKER_INDEX] } else { ["", MANIFEST, DOCKER_MANIFEST] };
        if !expected.contains(&said) {
            return Err(Error::BadImage(format!("a manifest of the kind {said:?}")));
        }
        if is_index {
            let index: Index = serde_json::from_value(value).map_err(bad)?;
            return Ok(Document::Index(index.manifests));
        }
        let manifest: Manifest = serde_json::from_value(value).map_err(bad)?;
        if ![CONFIG, DOCKER_CONFIG].contains(&&*manifest.config.media_type) {
            return Err(Error::BadImage(format!("its config is of the kind {:?}", manifest.config.media_type)));
        }
        let strange = manifest.layers.iter().find(|layer| !is_layer(&layer.media_type));
        if let Some(layer) = strange {
            return Err(Error::BadImage(format!("a layer of the kind {:?}", layer.media_type)));
        }
        if manifest.layers.len() > LAYERS_MAX {
            return Err(Error::TooLarge("the number of layers".into()));
        }
        Ok(Document::Manifest { config: manifest.config, layers: manifest.layers, annotations: manifest.annotations })
    }

    /// The media type of a manifest that does not state it.
    pub fn media_type(bytes: &[u8]) -> String {
        let value: Value = serde_json::from_slice(bytes).unwrap_or_default();
        let default = if value.get("manifests").is_some() { INDEX } else { MANIFEST };
        value["mediaType"].as_str().unwrap_or(default).to_owned()
    }
}

/// The entry of an index for Linux on this machine.
pub(crate) fn choose(entries: &[Descriptor]) -> Result<&Descriptor, Error> {
    let fits = |entry: &&Descriptor| {
        let platform = entry.platform.as_ref();
        platform.is_some_and(|platform| platform["os"] == "linux" && platform["architecture"] == architecture())
    };
    // An entry without a platform may state it in its config (containerd reads it there).
    let unnamed = || entries.iter().find(|entry| entry.platform.is_none());
    entries
        .iter()
        .find(fits)
        .or_else(unnamed)
        .ok_or_else(|| Error::BadImage(format!("there is none for linux and {}", architecture())))
}

/// The architecture of this machine, as in images.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        other => other,
    }
}

/// JSON with sorted keys, so that equal content has an equal digest.
pub(crate) fn canonical(value: &Value) -> Vec<u8> {
    fn sorted(value: &Value) -> Value {
        match value {
            Value::Object(map) => {
                let ordered: BTreeMap<&String, Value> = map.iter().map(|(key, value)| (key, sorted(value))).collect();
                Value::Object(ordered.into_iter().map(|(key, value)| (key.clone(), value)).collect())
            }
            Value::Array(values) => Value::Array(values.iter().map(sorted).collect()),
            other => other.clone(),
        }
    }
    sorted(value).to_string().into_bytes()
}

fn bad(error: impl std::fmt::Display) -> Error {
    Error::BadImage(error.to_string())
}
