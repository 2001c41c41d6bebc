//! HTTP requests to a registry, with TLS, retries, redirects and credentials.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderName, LOCATION, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;
use url::Url;

use super::Options;
use super::address_policy::{PrivateAddress, Resolver};
use super::auth::{self, Challenge, Token};
use crate::Error;

/// The longest delay before a retry.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// The longest delay that a registry may request.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// Faults per blob transfer, even if it progresses in between.
const FAULTS_MAX: u32 = 1000;
/// Redirects per request.
const REDIRECTS_MAX: u32 = 5;
/// Bytes read of an error or token answer.
const ANSWER_BYTES_MAX: u64 = 256 << 10;
/// Characters of a registry's message that are passed on.
const WHY_CHARS_MAX: usize = 300;
/// Minimum upload speed in bytes per second, which extends the timeout.
const UPLOAD_BYTES_PER_SECOND: u64 = 8 << 10;

/// Why a request failed.
pub enum Fault {
    /// A transient fault; a retry may succeed.
    Transient { why: String, after: Option<Duration> },
    /// A permanent error.
    Permanent(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Permanent(error)
    }
}

/// A request.
#[derive(Clone)]
pub struct HttpRequest {
    pub method: Method,
    pub url: Url,
    pub headers: Vec<(HeaderName, String)>,
    pub body: Bytes,
}

impl HttpRequest {
    pub fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: Vec::new(), body: Bytes::new() }
    }

    pub fn header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }
}

/// A client for one registry.
pub struct Http {
    client: Client<HttpsConnector<HttpConnector<Resolver>>, Full<Bytes>>,
    base: Url,
    credentials: Option<(String, String)>,
    /// The credentials that were accepted last.
    authorization: Mutex<Option<String>>,
    options: Options,
}

impl Http {
    pub fn new(base: Url, credentials: Option<(String, String)>, options: &Options) -> Result<Self, Error> {
        let mut roots = rustls::RootCertStore::empty();
        if base.scheme() == "https" {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        for certificate in CertificateDer::pem_slice_iter(options.certificates.as_deref().unwrap_or_default()) {
            let certificate = certificate.map_err(|error| bad_certificate(&error))?;
            roots.add(certificate).map_err(|error| bad_certificate(&error))?;
        }
        // The provider is explicit, so that it does not depend on what the program installed.
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| bad_certificate(&error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut connector = HttpConnector::new_with_resolver(Resolver::new(options.address_policy.clone()));
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(options.connect_timeout));
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(connector);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { client, base, credentials, authorization: Mutex::new(None), options: options.clone() })
    }

    /// A retry budget for this registry.
    pub fn retry_budget(&self) -> RetryBudget {
        let Options { tries, backoff, .. } = self.options;
        RetryBudget { registry: self.origin(), tries: tries.max(1), tried: 0, faults: 0, first: backoff }
    }

    /// Scheme, host and port of the registry.
    pub fn origin(&self) -> String {
        self.base.origin().ascii_serialization()
    }

    /// Sends an idempotent request, with retries.
    pub async fn call(&self, call: &HttpRequest) -> Result<Response<Incoming>, Error> {
        let mut budget = self.retry_budget();
        loop {
            match self.send_once(call).await {
                Ok(response) => return Ok(response),
                Err(fault) => budget.back_off(fault).await?,
            }
        }
    }

    /// Sends a request once, authenticates if challenged, and follows redirects of reads.
    pub async fn send_once(&self, call: &HttpRequest) -> Result<Response<Incoming>, Fault> {
        let mut url = call.url.clone();
        let mut redirects = 0;
        let mut asked = false;
        loop {
            let response = self.send(call, &url).await?;
            let status = response.status();
            let is_reading = matches!(call.method, Method::GET | Method::HEAD);
            if is_reading && status.is_redirection() && response.headers().contains_key(LOCATION) {
                redirects += 1;
                if redirects > REDIRECTS_MAX {
                    return Err(refused(status, "it redirects without end").into());
                }
                url = self.location(&url, &response)?;
            } else if status == StatusCode::UNAUTHORIZED && !asked && self.is_ours(&url) {
                asked = true;
                self.authorize(&response).await?;
            } else if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                return Err(Error::Unauthorized(self.error_message(response).await).into());
            } else if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
                let after = retry_after(&response);
                let why = format!("status {}: {}", status.as_u16(), self.error_message(response).await);
                return Err(Fault::Transient { why, after });
            } else {
                return Ok(response);
            }
        }
    }

    /// The URL in an answer's `Location`.
    pub fn location(&self, from: &Url, response: &Response<Incoming>) -> Result<Url, Error> {
        let said = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = said.and_then(|said| from.join(said).ok());
        let location = location.ok_or_else(|| refused(response.status(), "it does not say where to go on"))?;
        let is_downgrade = from.scheme() == "https" && location.scheme() != "https";
        if is_downgrade || !matches!(location.scheme(), "http" | "https") {
            return Err(refused(response.status(), "it redirects to where there is no TLS"));
        }
        Ok(location)
    }

    /// The error for an unexpected answer.
    pub async fn unexpected(&self, response: Response<Incoming>, what: &str) -> Error {
        let status = response.status();
        if status == StatusCode::NOT_FOUND {
            return Error::NotFound(what.to_owned());
        }
        let why = self.error_message(response).await;
        Error::Refused { status: status.as_u16(), why: format!("{what}: {why}") }
    }

    /// The next chunk of an answer, or `None` at its end.
    pub async fn chunk(&self, body: &mut Incoming) -> Result<Option<Bytes>, Fault> {
        loop {
            let frame = self.in_time(self.options.idle_timeout, body.frame()).await?;
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) => return Err(transient(&error)),
            }
        }
    }

    /// The whole answer; `None` if it is larger than `bytes_max`.
    pub async fn read_all(&self, body: &mut Incoming, bytes_max: u64) -> Result<Option<Vec<u8>>, Fault> {
        let mut whole = Vec::new();
        while let Some(piece) = self.chunk(body).await? {
            if (whole.len() + piece.len()) as u64 > bytes_max {
                return Ok(None);
            }
            whole.extend_from_slice(&piece);
        }
        Ok(Some(whole))
    }

    async fn send(&self, call: &HttpRequest, url: &Url) -> Result<Response<Incoming>, Fault> {
        let shown = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Credentials go to the registry only, not to where it redirects.
        let shown = shown.filter(|_| self.is_ours(url));
        self.send_as(call, url, shown).await
    }

    async fn send_as(&self, call: &HttpRequest, url: &Url, shown: Option<String>) -> Result<Response<Incoming>, Fault> {
        self.options.address_policy.check(url)?;
        let mut request = Request::builder().method(&call.method).uri(url.as_str());
        request = request.header(USER_AGENT, concat!("raworc/", env!("CARGO_PKG_VERSION")));
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        if let Some(shown) = shown {
            request = request.header(AUTHORIZATION, shown);
        }
        let bytes = call.body.len() as u64;
        let request = request.body(Full::new(call.body.clone()));
        let request = request.map_err(|error| Error::BadReference(format!("{url}: {error}")))?;
        let time = self.options.idle_timeout + Duration::from_secs(bytes / UPLOAD_BYTES_PER_SECOND);
        self.in_time(time, self.client.request(request)).await?.map_err(|error| forbidden(&error, url))
    }

    fn is_ours(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    /// Answers the challenge of a registry, for the next request.
    async fn authorize(&self, response: &Response<Incoming>) -> Result<(), Fault> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let header = match auth::challenge(headers) {
            Some(Challenge::Basic) => self.credentials.as_ref().map(auth::basic),
            Some(Challenge::Bearer { realm, service, scope }) => Some(self.token(&realm, service, scope).await?),
            None => None,
        };
        let header = header.ok_or_else(|| Error::Unauthorized("it asks for a user and a password".into()))?;
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(header);
        Ok(())
    }

    async fn token(&self, realm: &str, service: Option<String>, scope: Option<String>) -> Result<String, Fault> {
        let denied = |why: &str| Fault::Permanent(Error::Unauthorized(why.to_owned()));
        let mut url = Url::parse(realm).map_err(|_| denied("it does not say where to get a token"))?;
        // The token server gets the password, so it must use TLS if the registry does.
        if url.scheme() != "https" && url.scheme() != self.base.scheme() {
            return Err(denied("it asks to get a token from where there is no TLS"));
        }
        for (key, value) in [("service", service), ("scope", scope)] {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(key, &value);
            }
        }
        let shown = self.credentials.as_ref().map(auth::basic);
        let mut response = self.send_as(&HttpRequest::new(Method::GET, url.clone()), &url, shown).await?;
        let status = response.status();
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            let why = format!("the server of tokens says status {}", status.as_u16());
            return Err(Fault::Transient { why, after: retry_after(&response) });
        }
        if !status.is_success() {
            return Err(Error::Unauthorized(self.error_message(response).await).into());
        }
        let bytes = self.read_all(response.body_mut(), ANSWER_BYTES_MAX).await?.unwrap_or_default();
        let token = serde_json::from_slice::<Token>(&bytes).ok().and_then(Token::header);
        token.ok_or_else(|| denied("the server of tokens sent none"))
    }

    /// The message of an error answer, shortened to one line.
    async fn error_message(&self, mut response: Response<Incoming>) -> String {
        let status = response.status();
        let bytes = match self.read_all(response.body_mut(), ANSWER_BYTES_MAX).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) | Err(_) => Vec::new(),
        };
        let said: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let first = &said["errors"][0];
        let texts: Vec<&str> = ["code", "message"].iter().filter_map(|key| first[*key].as_str()).collect();
        let text =
            if texts.is_empty() { status.canonical_reason().unwrap_or("no reason").into() } else { texts.join(": ") };
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(WHY_CHARS_MAX).collect()
    }

    async fn in_time<T>(&self, time: Duration, work: impl Future<Output = T>) -> Result<T, Fault> {
        tokio::time::timeout(time, work)
            .await
            .map_err(|_| Fault::Transient { why: "nothing came in time".into(), after: None })
    }
}

/// A retry budget.
pub struct RetryBudget {
    registry: String,
    tries: u32,
    tried: u32,
    /// All faults, even if there was progress between them.
    faults: u32,
    first: Duration,
}

impl RetryBudget {
    /// Resets the consecutive failures after progress.
    pub fn reset(&mut self) {
        self.tried = 0;
    }

    /// Waits before the next attempt, or returns the error if the budget is used up.
    pub async fn back_off(&mut self, fault: Fault) -> Result<(), Error> {
        let (why, after) = match fault {
            Fault::Transient { why, after } => (why, after),
            Fault::Permanent(error) => return Err(error),
        };
        self.tried += 1;
        self.faults += 1;
        if self.tried >= self.tries || self.faults >= FAULTS_MAX {
            let registry = std::mem::take(&mut self.registry);
            return Err(Error::Unreachable { registry, tries: self.faults, why });
        }
        let wait = self.first.saturating_mul(1 << (self.tried - 1).min(16)).min(BACKOFF_MAX);
        // Jitter: clients that failed together should not retry together.
        let wait = wait.mul_f64(rand::random_range(0.5..1.5)).max(after.unwrap_or_default());
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// The fault of a failed connection; permanent if the address is not allowed.
fn forbidden(error: &hyper_util::client::legacy::Error, url: &Url) -> Fault {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if inner.is::<PrivateAddress>() {
            return Fault::Permanent(Error::Private(url.host_str().unwrap_or_default().to_owned()));
        }
        cause = inner.source();
    }
    transient(error)
}

pub fn refused(status: StatusCode, why: &str) -> Error {
    Error::Refused { status: status.as_u16(), why: why.to_owned() }
}

fn retry_after(response: &Response<Incoming>) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// A transient fault, with the messages of all causes.
pub fn transient(error: &dyn std::error::Error) -> Fault {
    let mut why = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        why = format!("{why}: {inner}");
        cause = inner.source();
    }
    Fault::Transient { why, after: None }
}

fn bad_certificate(error: &dyn std::fmt::Display) -> Error {
    Error::BadReference(format!("the certificates to trust cannot be used: {error}"))
}
