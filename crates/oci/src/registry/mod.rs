//! A client for registries (OCI distribution specification 1.1; "Token Authentication Specification" of the
//! distribution project).
//! The crate documentation says why it is our own.

mod address_policy;
mod auth;
mod http;
mod pull;
mod push;
mod reference;

use std::time::Duration;

use url::Url;

use crate::Error;
use http::Http;

pub use address_policy::AddressPolicy;
pub use reference::{Reference, TagOrDigest};

/// Options of a registry client.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether to use HTTP without TLS. `None`: only for loopback addresses.
    pub plain_http: Option<bool>,
    /// Timeout for a connection.
    pub connect_timeout: Duration,
    /// Timeout without any data.
    pub idle_timeout: Duration,
    /// Consecutive attempts without progress, at least 1.
    pub tries: u32,
    /// Delay before the second attempt; it doubles, up to 10 seconds.
    pub backoff: Duration,
    /// Bytes per upload request: between 64 KiB and 16 MiB. Held in memory.
    pub chunk_bytes: u64,
    /// Total size of an image's stored layers, in bytes.
    pub bytes_max: u64,
    /// Certificates (PEM) to trust besides the machine's.
    pub certificates: Option<Vec<u8>>,
    /// TagOrDigest addresses may be connected to, redirects included.
    pub address_policy: AddressPolicy,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            plain_http: None,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            tries: 5,
            backoff: Duration::from_millis(250),
            chunk_bytes: 8 << 20,
            bytes_max: 256 << 30,
            certificates: None,
            address_policy: AddressPolicy::Anywhere,
        }
    }
}

/// Called with the progress of a push or pull. A slow callback slows down the transfer.
pub trait Progress: Send + Sync {
    /// `done` of `total` bytes of `what` (a digest, or "manifest") are transferred or existed already. `done`
    /// decreases if a transfer restarts.
    fn progress(&self, what: &str, done: u64, total: u64);
}

impl<F: Fn(&str, u64, u64) + Send + Sync> Progress for F {
    fn progress(&self, what: &str, done: u64, total: u64) {
        self(what, done, total);
    }
}

/// The `what` of manifests.
const MANIFEST_PROGRESS: &str = "manifest";

/// A repository in a registry.
pub struct Registry {
    reference: Reference,
    http: Http,
    options: Options,
    /// `…/v2/REPOSITORY/`.
    base: Url,
}

impl Registry {
    /// A client for the registry of `reference`, with `credentials` (user and password) for challenges. Sends nothing
    /// yet.
    ///
    /// # Errors
    /// [`Error::BadReference`] if it makes no valid URL, or if certificates cannot be read.
    pub fn new(reference: Reference, credentials: Option<(String, String)>, options: Options) -> Result<Self, Error> {
        let plain = options.plain_http.unwrap_or_else(|| reference.is_loopback());
        let scheme = if plain { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{}/v2/{}/", reference.host(), reference.repository()))
            .map_err(|error| Error::BadReference(format!("{reference}: {error}")))?;
        let http = Http::new(base.clone(), credentials, &options)?;
        Ok(Self { reference, http, options, base })
    }

    /// The reference it was created for.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    fn url(&self, path: &str) -> Result<Url, Error> {
        self.base.join(path).map_err(|error| Error::BadReference(format!("{}: {error}", self.reference)))
    }
}
