//! Registries (OCI distribution specification 1.1; tokens as Docker's registries hand them out, "Token Authentication
//! Specification" of the distribution project).
//! Why the client is our own is said at the top of the crate.

mod auth;
mod http;
mod pull;
mod push;
mod reach;
mod reference;

use std::time::Duration;

use url::Url;

use crate::Error;
use http::Http;

pub use reach::Reach;
pub use reference::{Reference, Which};

/// How a registry is spoken to.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether to speak without TLS. `None`: only to registries on this machine.
    pub plain_http: Option<bool>,
    /// How long to wait for a connection.
    pub connect_timeout: Duration,
    /// How long to wait while nothing comes.
    pub idle_timeout: Duration,
    /// How often something is tried in a row without getting on, at least once.
    pub tries: u32,
    /// How long to wait before the second try; each further wait is twice as long, at most 10 seconds.
    pub backoff: Duration,
    /// How much is uploaded at once, in bytes: between 64 KiB and 16 MiB. As much is kept in memory.
    pub chunk_bytes: u64,
    /// Bytes that the layers of an image may have together, as they are stored.
    pub bytes_max: u64,
    /// Certificates (PEM) to trust besides the machine's own.
    pub certificates: Option<Vec<u8>>,
    /// Where requests may go, those that the registry leads to included.
    pub reach: Reach,
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
            reach: Reach::Anywhere,
        }
    }
}

/// Is told how a push or pull gets on. What holds up here holds up the transfer.
pub trait Progress: Send + Sync {
    /// Of `what` (a digest, or "manifest"), `done` of `total` bytes have been transferred or were there already. It may
    /// go back where a transfer had to begin again.
    fn progress(&self, what: &str, done: u64, total: u64);
}

impl<F: Fn(&str, u64, u64) + Send + Sync> Progress for F {
    fn progress(&self, what: &str, done: u64, total: u64) {
        self(what, done, total);
    }
}

/// What `what` is called where a manifest is transferred.
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
    /// Prepares to speak to the registry of `reference`, as `credentials` (user and password) where it asks. Nothing is
    /// sent yet.
    ///
    /// # Errors
    /// [`Error::BadReference`] where it makes no address; where certificates cannot be read.
    pub fn new(reference: Reference, credentials: Option<(String, String)>, options: Options) -> Result<Self, Error> {
        let plain = options.plain_http.unwrap_or_else(|| reference.is_loopback());
        let scheme = if plain { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{}/v2/{}/", reference.host(), reference.repository()))
            .map_err(|error| Error::BadReference(format!("{reference}: {error}")))?;
        let http = Http::new(base.clone(), credentials, &options)?;
        Ok(Self { reference, http, options, base })
    }

    /// What it was made for.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    fn url(&self, path: &str) -> Result<Url, Error> {
        self.base.join(path).map_err(|error| Error::BadReference(format!("{}: {error}", self.reference)))
    }
}
