//! A minimal HTTP/1.1 client with one persistent connection.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// Timeout of any answer.
const TIMEOUT: Duration = Duration::from_secs(120);

/// One connection.
pub struct Http {
    sender: SendRequest<Full<Bytes>>,
    authorization: String,
}

impl Http {
    /// Connects to the server at `address`.
    pub async fn connect(address: &str, token: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, authorization: format!("Bearer {token}") })
    }

    async fn request(
        &mut self,
        method: Method,
        path: &str,
        accept: &str,
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v0{path}"))
            .header("host", "localhost")
            .header("authorization", &self.authorization)
            .header("content-type", "application/json")
            .header("accept", accept)
            .body(Full::new(body))?;
        self.sender.ready().await?;
        tokio::time::timeout(TIMEOUT, self.sender.send_request(request)).await.context("no answer")?.map_err(Into::into)
    }

    /// A call that must succeed; returns the answer's bytes.
    pub async fn call(&mut self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Bytes> {
        let response = self.request(method.clone(), path, "application/json", body).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{method} {path}: {status}: {}", String::from_utf8_lossy(&bytes));
        Ok(bytes)
    }

    /// A call that must succeed; returns the answer as JSON.
    pub async fn json(&mut self, method: Method, path: &str, body: &Value) -> anyhow::Result<Value> {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        Ok(serde_json::from_slice(&self.call(method, path, body).await?)?)
    }

    /// `GET`.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<Value> {
        self.json(Method::GET, path, &Value::Null).await
    }

    /// `POST`.
    pub async fn post(&mut self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.json(Method::POST, path, body).await
    }

    /// Reads a session's event stream until an event contains `wanted`. The connection cannot be used again.
    pub async fn until_event(mut self, session: &str, after: u64, wanted: &str) -> anyhow::Result<()> {
        let path = format!("/sessions/{session}/events?after={after}");
        let response = self.request(Method::GET, &path, "text/event-stream", Bytes::new()).await?;
        ensure!(response.status().is_success(), "GET {path}: {}", response.status());
        let mut body = response.into_body();
        let mut text = Vec::new();
        let come = async {
            while let Some(frame) = body.frame().await {
                if let Some(data) = frame?.data_ref() {
                    text.extend_from_slice(data);
                }
                if String::from_utf8_lossy(&text).contains(wanted) {
                    return Ok(());
                }
            }
            bail!("the events of {session} ended before {wanted} came")
        };
        tokio::time::timeout(TIMEOUT, come).await.with_context(|| format!("{wanted} did not come"))?
    }
}
