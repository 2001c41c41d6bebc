//! Calls about files of a workspace.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use http_body_util::BodyExt as _;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, TE};
use reqwest::{Body, Method, Response, StatusCode};

use super::checkpoints::checkpoints;
use super::path::Path;
use super::{ANSWER_TIMEOUT, Client, ClientError, Result, error};
use crate::workspace::{FileKind, Listing, ReadFile, Unpacked, WriteFile};

/// The header with the type of an entry.
const KIND_HEADER: &str = "Raworc-Kind";
/// The media type of a tar.
pub const ARCHIVE: &str = "application/x-tar";
/// How long a transfer of a file may stall.
const STANDSTILL_TIMEOUT: Duration = Duration::from_secs(60);

/// The content at a path.
#[derive(Debug)]
pub enum Content {
    /// A directory.
    Directory(Listing),
    /// A file.
    File(Box<FileBody>),
}

/// The bytes of a file as they arrive.
pub struct FileBody {
    headers: HeaderMap,
    length: Option<u64>,
    body: Body,
    client: Client,
}

impl fmt::Debug for FileBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileBody").field("length", &self.length).finish_non_exhaustive()
    }
}

impl FileBody {
    pub(super) fn new(response: Response, client: &Client) -> Self {
        let length = response.content_length();
        let (parts, body) = http::Response::<Body>::from(response).into_parts();
        Self { headers: parts.headers, length, body, client: client.clone() }
    }

    /// Its length, if the server stated it.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// A number in a header; one in a trailer is available after the last chunk.
    #[must_use]
    pub fn number(&self, header: &str) -> Option<u64> {
        self.headers.get(header)?.to_str().ok()?.parse().ok()
    }

    /// The next chunk, or `None` at the end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            let frame = match tokio::time::timeout(STANDSTILL_TIMEOUT, self.body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Err(self.client.broken(&error)),
                Err(_) => return Err(ClientError::Protocol("the file came to a standstill half way".into())),
            };
            match frame.into_data() {
                Ok(data) => return Ok(Some(data)),
                Err(frame) => self.headers.extend(frame.into_trailers().unwrap_or_default()),
            }
        }
    }

    /// All bytes.
    pub async fn bytes(mut self) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }
}

/// The path of a session's file, in its current state or in a checkpoint (number or label, or `now`).
fn file(session: &str, version: Option<&str>, path: &[u8]) -> Path {
    let files = match version {
        Some(n) => checkpoints(session).id(n).then("files"),
        None => Path::new("sessions").id(session).then("files"),
    };
    files.file(path)
}

impl Client {
    /// `GET /sessions/{id}/files/{path}`, or `…/checkpoints/{n}/files/{path}` with a version; an empty path is the
    /// workspace. Returns the first page of a directory.
    pub async fn read_file(&self, session: &str, version: Option<&str>, path: &[u8]) -> Result<Content> {
        let request = self.request(Method::GET, file(session, version, path))?;
        let response = self.accepted(request).await?;
        let is_directory = response.headers().get(KIND_HEADER).is_some_and(|kind| kind == "directory");
        if is_directory {
            return self.document(response).await.map(Content::Directory);
        }
        Ok(Content::File(Box::new(FileBody::new(response, self))))
    }

    /// As [`Self::read_file`] for a directory: the page that `query` asks for.
    pub async fn list_files(
        &self,
        session: &str,
        version: Option<&str>,
        path: &[u8],
        query: &ReadFile,
    ) -> Result<Listing> {
        self.fetch(file(session, version, path), query).await
    }

    /// `PUT /sessions/{id}/files/{path}`: creates or replaces a file; missing directories are created.
    pub async fn write_file<S, E>(&self, session: &str, path: &[u8], query: &WriteFile, content: S) -> Result<()>
    where
        S: Stream<Item = std::result::Result<Bytes, E>> + Send + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let body = Body::wrap_stream(content.map_err(std::io::Error::other).boxed());
        let request = self.request(Method::PUT, file(session, None, path))?.query(query).body(body);
        self.accepted(request.header("Content-Type", "application/octet-stream")).await.map(|_| ())
    }

    /// `HEAD /sessions/{id}/files/{path}`, or `…/checkpoints/{n}/files/{path}`: the type of an entry, if it exists.
    /// With `follow`, the type of a link's target.
    pub async fn file_kind(
        &self,
        session: &str,
        version: Option<&str>,
        path: &[u8],
        follow: bool,
    ) -> Result<Option<FileKind>> {
        let query = ReadFile { follow: Some(follow), limit: Some(1), cursor: None };
        let request = self.request(Method::HEAD, file(session, version, path))?.query(&query);
        let response = self.send(request.timeout(ANSWER_TIMEOUT)).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            // Neither a file nor a directory.
            StatusCode::CONFLICT => Ok(Some(FileKind::Other)),
            status if !status.is_success() => Err(self.refused(response).await),
            _ => Ok(Some(match response.headers().get(KIND_HEADER).map(|kind| kind.as_bytes()) {
                Some(b"directory") => FileKind::Directory,
                Some(b"symlink") => FileKind::Symlink,
                _ => FileKind::File,
            })),
        }
    }

    /// `GET /sessions/{id}/files/{path}`, or `…/checkpoints/{n}/files/{path}`, as a tar. The trailer
    /// [`crate::image::LEFT_OUT_HEADER`] has the number of omitted entries.
    pub async fn read_archive(
        &self,
        session: &str,
        version: Option<&str>,
        path: &[u8],
        follow: bool,
    ) -> Result<FileBody> {
        let query = ReadFile { follow: Some(follow), ..ReadFile::default() };
        let request = self.request(Method::GET, file(session, version, path))?.query(&query);
        let response = self.accepted(request.header(ACCEPT, ARCHIVE).header(TE, "trailers")).await?;
        Ok(FileBody::new(response, self))
    }

    /// `PUT /sessions/{id}/files/{path}` with a tar, which is unpacked into that directory.
    pub async fn write_archive<S, E>(&self, session: &str, path: &[u8], content: S) -> Result<Unpacked>
    where
        S: Stream<Item = std::result::Result<Bytes, E>> + Send + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let body = Body::wrap_stream(content.map_err(std::io::Error::other).boxed());
        let request = self.request(Method::PUT, file(session, None, path))?.body(body);
        let response = self.send(request.header(CONTENT_TYPE, ARCHIVE)).await?;
        self.document(response).await
    }

    /// `DELETE /sessions/{id}/files/{path}`.
    pub async fn delete_file(&self, session: &str, path: &[u8]) -> Result<()> {
        self.done(self.request(Method::DELETE, file(session, None, path))?).await
    }
}

/// A stream that fails if it stalls; servers send comments to keep it alive.
pub(super) fn with_stall_timeout(
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
