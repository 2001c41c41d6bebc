//! Calls about images, and about pushing and exporting checkpoints.

use std::time::Duration;

use bytes::Bytes;
use eventsource_stream::Eventsource as _;
use futures::stream::{Stream, StreamExt as _, TryStreamExt as _};
use reqwest::header::ACCEPT;
use reqwest::{Body, Method, RequestBuilder};
use serde::de::DeserializeOwned;

use super::files::{FileBody, with_stall_timeout};
use super::path::Path;
use super::{Client, ClientError, Result, error};
use crate::image::{Image, ImportImages, Imported, ListImages, PullImage, PushCheckpoint, Pushed, TransferProgress};
use crate::page::Page;

/// A stream without even a comment for this long is dead.
const STANDSTILL_TIMEOUT: Duration = Duration::from_secs(60);

fn checkpoint(session: &str, n: &str) -> Path {
    Path::new("sessions").id(session).then("checkpoints").id(n)
}

impl Client {
    /// `POST /images`: pulls an image from a registry. `progress` is called regularly.
    pub async fn pull_image(&self, body: &PullImage, progress: impl FnMut(TransferProgress)) -> Result<Image> {
        self.transfer(self.request(Method::POST, Path::new("images"))?.json(body), progress).await
    }

    /// `POST /images/import`: imports the images of an archive.
    pub async fn import_images<S, E>(
        &self,
        query: &ImportImages,
        archive: S,
        progress: impl FnMut(TransferProgress),
    ) -> Result<Imported>
    where
        S: Stream<Item = std::result::Result<Bytes, E>> + Send + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let body = Body::wrap_stream(archive.map_err(std::io::Error::other).boxed());
        let request = self.request(Method::POST, Path::new("images").then("import"))?.query(query).body(body);
        self.transfer(request.header("Content-Type", "application/octet-stream"), progress).await
    }

    /// `GET /images`.
    pub async fn list_images(&self, query: &ListImages) -> Result<Page<Image>> {
        self.fetch(Path::new("images"), query).await
    }

    /// `GET /images/{id}`.
    pub async fn get_image(&self, id: &str) -> Result<Image> {
        self.fetch(Path::new("images").id(id), &()).await
    }

    /// `DELETE /images/{id}`.
    pub async fn delete_image(&self, id: &str) -> Result<()> {
        self.done(self.request(Method::DELETE, Path::new("images").id(id))?).await
    }

    /// `POST /sessions/{id}/checkpoints/{n}/push`; `n` is a number or `now`.
    pub async fn push_checkpoint(
        &self,
        session: &str,
        n: &str,
        body: &PushCheckpoint,
        progress: impl FnMut(TransferProgress),
    ) -> Result<Pushed> {
        self.transfer(self.request(Method::POST, checkpoint(session, n).then("push"))?.json(body), progress).await
    }

    /// `GET /sessions/{id}/checkpoints/{n}/export`: an OCI archive; `n` is a number or `now`.
    pub async fn export_checkpoint(&self, session: &str, n: &str) -> Result<FileBody> {
        let request = self.request(Method::GET, checkpoint(session, n).then("export"))?;
        Ok(FileBody::new(self.accepted(request).await?, self))
    }

    /// A call that reports its progress.
    async fn transfer<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        mut progress: impl FnMut(TransferProgress),
    ) -> Result<T> {
        let response = self.accepted(request.header(ACCEPT, "text/event-stream")).await?;
        let unexpected = |error: &dyn std::fmt::Display| {
            ClientError::Protocol(format!("the answer is not what was expected: {error}"))
        };
        let cut_off = |reason: String| {
            let mut url = self.base.clone();
            url.set_path("");
            ClientError::Unreachable { url: url.as_str().trim_end_matches('/').into(), reason }
        };
        let mut events = with_stall_timeout(response, STANDSTILL_TIMEOUT).boxed().eventsource();
        while let Some(event) = events.next().await {
            let event = event.map_err(|error| cut_off(error.to_string()))?;
            match event.event.as_str() {
                "progress" => progress(serde_json::from_str(&event.data).map_err(|error| unexpected(&error))?),
                "done" => return serde_json::from_str(&event.data).map_err(|error| unexpected(&error)),
                "failed" => return Err(error::refusal(reqwest::StatusCode::INTERNAL_SERVER_ERROR, &event.data)),
                _ => {}
            }
        }
        Err(cut_off("the server ended the stream".into()))
    }
}
