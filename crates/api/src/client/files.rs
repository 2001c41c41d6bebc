//! Calls about files of a workspace.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use reqwest::{Body, Method, Response};

use super::checkpoints::checkpoints;
use super::path::Path;
use super::{Client, ClientError, Result, error};
use crate::workspace::Listing;

/// The header that says what a path is.
const KIND_HEADER: &str = "Raworc-Kind";
/// How long a file may come to a standstill while it is read or written.
const STANDSTILL_TIMEOUT: Duration = Duration::from_secs(60);

/// What is at a path.
#[derive(Debug)]
pub enum Content {
    /// A directory.
    Directory(Listing),
    /// A file.
    File(Box<FileBody>),
}

/// The bytes of a file, as they arrive.
pub struct FileBody {
    pub(super) response: Response,
    pub(super) client: Client,
}

impl fmt::Debug for FileBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileBody").field("length", &self.response.content_length()).finish_non_exhaustive()
    }
}

impl FileBody {
    /// Its length, where the server said so.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// A number that the server said beside it.
    #[must_use]
    pub fn number(&self, header: &str) -> Option<u64> {
        self.response.headers().get(header)?.to_str().ok()?.parse().ok()
    }

    /// The next piece, or `None` at the end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        match tokio::time::timeout(STANDSTILL_TIMEOUT, self.response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(self.client.broken(&error)),
            Err(_) => Err(ClientError::Protocol("the file came to a standstill half way".into())),
        }
    }

    /// All of it.
    pub async fn bytes(mut self) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }
}

fn file(session: &str, path: &str) -> Path {
    Path::new("sessions").id(session).then("files").file(path)
}

impl Client {
    /// `GET /sessions/{id}/files/{path}`; an empty path is the workspace itself.
    pub async fn read_file(&self, session: &str, path: &str) -> Result<Content> {
        self.content(file(session, path)).await
    }

    /// `GET /sessions/{id}/checkpoints/{n}/files/{path}`: the same as of a checkpoint; `n` is a number or a label.
    pub async fn read_saved_file(&self, session: &str, n: &str, path: &str) -> Result<Content> {
        self.content(checkpoints(session).id(n).then("files").file(path)).await
    }

    async fn content(&self, at: Path) -> Result<Content> {
        let request = self.request(Method::GET, at)?;
        let response = self.accepted(request).await?;
        let is_directory = response.headers().get(KIND_HEADER).is_some_and(|kind| kind == "directory");
        if is_directory {
            return self.document(response).await.map(Content::Directory);
        }
        Ok(Content::File(Box::new(FileBody { response, client: self.clone() })))
    }

    /// `PUT /sessions/{id}/files/{path}`: makes or replaces a file, and the directories above it.
    pub async fn write_file<S, E>(&self, session: &str, path: &str, content: S) -> Result<()>
    where
        S: Stream<Item = std::result::Result<Bytes, E>> + Send + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let body = Body::wrap_stream(content.map_err(std::io::Error::other).boxed());
        let request = self.request(Method::PUT, file(session, path))?.body(body);
        self.accepted(request.header("Content-Type", "application/octet-stream")).await.map(|_| ())
    }

    /// `DELETE /sessions/{id}/files/{path}`.
    pub async fn delete_file(&self, session: &str, path: &str) -> Result<()> {
        self.done(self.request(Method::DELETE, file(session, path))?).await
    }
}

/// The bytes of a stream that must not come to a standstill: servers send a comment now and then.
pub(super) fn lively(
    response: Response,
    standstill: Duration,
) -> impl Stream<Item = std::result::Result<Bytes, String>> + Send {
    futures::stream::try_unfold(response, move |mut response| async move {
        match tokio::time::timeout(standstill, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk.map(|bytes| (bytes, response))),
            Ok(Err(error)) => Err(error::chain(&error)),
            Err(_) => Err("nothing was heard for too long".to_owned()),
        }
    })
}
