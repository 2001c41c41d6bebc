//! A typed client with one method per call.
//!
//! An `id` may also be a name, where the server accepts names. HTTP only: use a TLS proxy at both ends of an
//! untrusted network.

use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

mod accounts;
mod agents;
mod checkpoints;
mod error;
mod events;
mod files;
mod images;
mod model_calls;
mod path;
mod providers;
mod secrets;
mod sessions;
mod streams;

pub use error::ClientError;
pub use events::Follow;
pub use files::{ARCHIVE, Content, FileBody};
pub use streams::{Received, Receiver, Sender};

use crate::disk::{DiskUsage, Prune, Pruned};
use crate::health::{Health, LoopList, Version};
use path::Path;

/// Timeout for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout for an answer, in addition to the time that the call asks the server to wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Characters shown of an answer that is not a problem document.
const SHOWN_CHARACTERS_MAX: usize = 200;

/// The result of a call.
pub type Result<T> = std::result::Result<T, ClientError>;

/// A server and a token. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    /// Ends in `/api/v0/`.
    base: Url,
    authorization: Option<HeaderValue>,
}

impl Client {
    /// A client for the server at `url`, such as `http://127.0.0.1:9000`. Does not connect yet.
    pub fn new(url: &str, token: &str) -> Result<Self> {
        let mut client = Self::anonymous(url)?;
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| ClientError::Input("the token contains characters that no token has".into()))?;
        value.set_sensitive(true);
        client.authorization = Some(value);
        Ok(client)
    }

    /// A client without a token, which suffices for [`health`](Self::health) and [`version`](Self::version).
    pub fn anonymous(url: &str) -> Result<Self> {
        let base = base(url)?;
        let mut builder = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
        if is_loopback(&base) {
            // A proxy would look for the server on its own machine.
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| ClientError::Protocol(error::chain(&error)))?;
        Ok(Self { http, base, authorization: None })
    }

    /// `GET /health`. Also succeeds for a degraded server.
    pub async fn health(&self) -> Result<Health> {
        let response = self.send(self.get(Path::new("health"))?.timeout(ANSWER_TIMEOUT)).await?;
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            let text = response.text().await.map_err(|error| self.broken(&error))?;
            return serde_json::from_str(&text).map_err(|_| error::refusal(StatusCode::SERVICE_UNAVAILABLE, &text));
        }
        self.document(response).await
    }

    /// `GET /version`.
    pub async fn version(&self) -> Result<Version> {
        self.fetch(Path::new("version"), &()).await
    }

    /// `GET /system/disk`.
    pub async fn disk_usage(&self) -> Result<DiskUsage> {
        self.fetch(Path::new("system").then("disk"), &()).await
    }

    /// `GET /system/loops`.
    pub async fn loops(&self) -> Result<LoopList> {
        self.fetch(Path::new("system").then("loops"), &()).await
    }

    /// `POST /system/prune`, without a timeout.
    pub async fn prune(&self, body: &Prune) -> Result<Pruned> {
        let request = self.request(Method::POST, Path::new("system").then("prune"))?.json(body);
        let response = self.send(request).await?;
        self.document(response).await
    }

    fn request(&self, method: Method, path: Path) -> Result<RequestBuilder> {
        let url = self.base.join(&path.finish()?).map_err(|error| ClientError::Input(error.to_string()))?;
        let request = self.http.request(method, url);
        Ok(match &self.authorization {
            Some(value) => request.header(AUTHORIZATION, value.clone()),
            None => request,
        })
    }

    fn get(&self, path: Path) -> Result<RequestBuilder> {
        Ok(self.request(Method::GET, path)?.header(ACCEPT, "application/json"))
    }

    /// Sends a request and returns any answer.
    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        request.send().await.map_err(|error| self.broken(&error))
    }

    /// Sends a request and turns an error answer into its problem.
    async fn accepted(&self, request: RequestBuilder) -> Result<Response> {
        let response = self.send(request).await?;
        if response.status().is_success() { Ok(response) } else { Err(self.refused(response).await) }
    }

    async fn refused(&self, response: Response) -> ClientError {
        let status = response.status();
        match response.text().await {
            Ok(text) => error::refusal(status, &text),
            Err(error) => self.broken(&error),
        }
    }

    async fn document<T: DeserializeOwned>(&self, response: Response) -> Result<T> {
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        let bytes = response.bytes().await.map_err(|error| self.broken(&error))?;
        serde_json::from_slice(&bytes)
            .map_err(|error| ClientError::Protocol(format!("the answer is not what was expected: {error}")))
    }

    async fn call<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T> {
        let response = self.send(request.timeout(ANSWER_TIMEOUT)).await?;
        self.document(response).await
    }

    /// Sends a request whose answer has no information.
    async fn done(&self, request: RequestBuilder) -> Result<()> {
        self.accepted(request.timeout(ANSWER_TIMEOUT)).await.map(|_| ())
    }

    async fn fetch<T: DeserializeOwned>(&self, path: Path, query: &impl Serialize) -> Result<T> {
        self.call(self.get(path)?.query(query)).await
    }

    async fn post<T: DeserializeOwned>(&self, path: Path, body: &impl Serialize) -> Result<T> {
        self.call(self.request(Method::POST, path)?.json(body)).await
    }

    async fn put<T: DeserializeOwned>(&self, path: Path, body: &impl Serialize) -> Result<T> {
        self.call(self.request(Method::PUT, path)?.json(body)).await
    }

    fn broken(&self, error: &reqwest::Error) -> ClientError {
        if error.is_connect() || error.is_timeout() || error.is_request() || error.is_body() {
            let mut url = self.base.clone();
            url.set_path("");
            return ClientError::Unreachable {
                url: url.as_str().trim_end_matches('/').into(),
                reason: error::chain(error),
            };
        }
        ClientError::Protocol(error::chain(error))
    }
}

fn base(url: &str) -> Result<Url> {
    let wrong = |why: &str| ClientError::Input(format!("{url:?} is not the URL of a server: {why}"));
    let mut parsed = Url::parse(url).map_err(|_| wrong("write it like http://127.0.0.1:9000"))?;
    match parsed.scheme() {
        "http" => {}
        "https" => {
            return Err(wrong("this client speaks plain http only; use a proxy for TLS"));
        }
        _ => return Err(wrong("write it like http://127.0.0.1:9000")),
    }
    if parsed.query().is_some() || parsed.fragment().is_some() || !parsed.username().is_empty() {
        return Err(wrong("only scheme, host, port and path belong into it"));
    }
    let path = format!("{}{}/", parsed.path().trim_end_matches('/'), crate::PREFIX);
    parsed.set_path(&path);
    Ok(parsed)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_servers() {
        for (url, expected) in [
            ("http://127.0.0.1:9000", Some("http://127.0.0.1:9000/api/v0/")),
            ("http://127.0.0.1:9000/", Some("http://127.0.0.1:9000/api/v0/")),
            ("http://example.test/raworc/", Some("http://example.test/raworc/api/v0/")),
            ("https://example.test", None),
            ("127.0.0.1:9000", None),
            ("localhost:9000", None),
            ("http://x.test/?a=b", None),
            ("http://me@x.test/", None),
            ("", None),
        ] {
            assert_eq!(base(url).ok().as_ref().map(Url::as_str), expected, "{url}");
        }
    }

    #[test]
    fn loopback_hosts() {
        for (url, expected) in [
            ("http://127.0.0.1:1", true),
            ("http://[::1]:1", true),
            ("http://localhost", true),
            ("http://10.0.0.1", false),
            ("http://localhost.test", false),
        ] {
            assert_eq!(is_loopback(&Url::parse(url).unwrap()), expected, "{url}");
        }
    }
}
