//! Pulls from a registry into a layout.

use std::io::Write as _;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use hyper::{Method, Response, StatusCode};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::http::{Fault, HttpRequest};
use super::push::blocking;
use super::{MANIFEST_PROGRESS, Progress, Registry, TagOrDigest};
use crate::image::{DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, Document, INDEX, MANIFEST, choose};
use crate::layout::{BlobWriter, DOCUMENT_BYTES_MAX, Layout};
use crate::{Digest, Error};

/// Chunks of a download that wait to be written; each has at most 400 KiB.
const PIECES_MAX: usize = 8;
/// The header with the digest of a manifest.
const CONTENT_DIGEST: &str = "docker-content-digest";

/// Accepted media types of manifests.
fn accepted() -> String {
    [MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_INDEX].join(", ")
}

/// The digest that a registry states.
fn content_digest(response: &Response<Incoming>) -> Option<Digest> {
    response.headers().get(CONTENT_DIGEST).and_then(|value| value.to_str().ok()?.parse().ok())
}

impl Registry {
    /// Pulls an image and all its blobs. Blobs that the layout has, by size, are not downloaded; delete damaged ones
    /// first. For an index, the image for Linux and this machine is pulled. Returns the descriptor of the reference;
    /// nothing is tagged.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unauthorized`], [`Error::Unreachable`], [`Error::Refused`]; [`Error::Damaged`]
    /// and [`Error::TooLarge`] if the registry sends wrong content.
    pub async fn pull(&self, layout: &Layout, progress: &dyn Progress) -> Result<Descriptor, Error> {
        let (top, bytes) = self.pull_manifest(self.reference.tag_or_digest(), None, layout, progress).await?;
        let (config, layers) = match Document::parse(&bytes)? {
            Document::Manifest { config, layers, .. } => (config, layers),
            Document::Index(entries) => {
                let chosen = choose(&entries)?;
                let which = TagOrDigest::Digest(chosen.digest);
                let (_, bytes) = self.pull_manifest(&which, Some(chosen.size), layout, progress).await?;
                match Document::parse(&bytes)? {
                    Document::Manifest { config, layers, .. } => (config, layers),
                    Document::Index(_) => return Err(Error::BadImage("an index in an index".into())),
                }
            }
        };
        if config.size > DOCUMENT_BYTES_MAX {
            return Err(Error::TooLarge("the config".into()));
        }
        let bytes = layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.size));
        if bytes > self.options.bytes_max {
            return Err(Error::TooLarge("the image".into()));
        }
        for blob in layers.iter().chain([&config]) {
            self.pull_blob(blob, layout, progress).await?;
        }
        Ok(top)
    }

    /// The current digest of the reference, by one small request; `None` if the registry does not state it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unauthorized`], [`Error::Unreachable`], [`Error::Refused`].
    pub async fn digest(&self) -> Result<Option<Digest>, Error> {
        let which = self.reference.tag_or_digest();
        let call = HttpRequest::new(Method::HEAD, self.url(&format!("manifests/{which}"))?).header(ACCEPT, accepted());
        let response = match self.http.send_once(&call).await {
            Ok(response) => response,
            Err(Fault::Permanent(error)) => return Err(error),
            Err(Fault::Transient { why, .. }) => {
                return Err(Error::Unreachable { registry: self.http.origin(), tries: 1, why });
            }
        };
        match response.status() {
            StatusCode::OK => Ok(content_digest(&response)),
            _ => Err(self.http.unexpected(response, &self.reference.to_string()).await),
        }
    }

    async fn pull_manifest(
        &self,
        which: &TagOrDigest,
        size: Option<u64>,
        layout: &Layout,
        progress: &dyn Progress,
    ) -> Result<(Descriptor, Vec<u8>), Error> {
        let call = HttpRequest::new(Method::GET, self.url(&format!("manifests/{which}"))?).header(ACCEPT, accepted());
        let mut budget = self.http.retry_budget();
        let (bytes, said) = loop {
            let mut response = self.http.call(&call).await?;
            if response.status() != StatusCode::OK {
                return Err(self.http.unexpected(response, &self.reference.to_string()).await);
            }
            let said = content_digest(&response);
            match self
                .http
                .read_all(response.body_mut(), size.unwrap_or(DOCUMENT_BYTES_MAX).min(DOCUMENT_BYTES_MAX))
                .await
            {
                Ok(Some(bytes)) => break (bytes, said),
                Ok(None) => return Err(Error::TooLarge("the manifest".into())),
                Err(fault) => budget.back_off(fault).await?,
            }
        };
        let digest = Digest::of(&bytes);
        // For a tag, the stated digest protects from transfer errors, not from a dishonest registry.
        let expected = match which {
            TagOrDigest::Digest(expected) => Some(*expected),
            TagOrDigest::Tag(_) => said,
        };
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            return Err(Error::Damaged { digest: expected });
        }
        let total = bytes.len() as u64;
        // Store only valid documents.
        Document::parse(&bytes)?;
        let (layout, stored) = (layout.clone(), bytes.clone());
        blocking(move || layout.put(&stored[..], DOCUMENT_BYTES_MAX, Some(&digest))).await?;
        progress.progress(MANIFEST_PROGRESS, total, total);
        Ok((Descriptor::new(&Document::media_type(&bytes), digest, total), bytes))
    }

    async fn pull_blob(&self, blob: &Descriptor, layout: &Layout, progress: &dyn Progress) -> Result<(), Error> {
        let what = blob.digest.to_string();
        if layout.size(&blob.digest)? == Some(blob.size) {
            progress.progress(&what, blob.size, blob.size);
            return Ok(());
        }
        let mut download = Download::begin(layout)?;
        let outcome = self.fetch_all(blob, &mut download, progress).await;
        // Awaited even on failure, so that no writer is left.
        let writer = download.end().await?;
        // If the writer failed, its error says why.
        outcome?;
        let expected = blob.digest;
        blocking(move || writer.commit(Some(&expected))).await?;
        progress.progress(&what, blob.size, blob.size);
        Ok(())
    }

    async fn fetch_all(
        &self,
        blob: &Descriptor,
        download: &mut Download,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        let mut budget = self.http.retry_budget();
        let mut furthest = 0;
        while download.done < blob.size {
            if let Err(fault) = self.fetch(blob, download, progress).await {
                if download.done > furthest {
                    furthest = download.done;
                    budget.reset();
                }
                budget.back_off(fault).await?;
            }
        }
        Ok(())
    }

    /// Downloads as much as one answer has, from the current offset.
    async fn fetch(&self, blob: &Descriptor, download: &mut Download, progress: &dyn Progress) -> Result<(), Fault> {
        let what = blob.digest.to_string();
        let mut call = HttpRequest::new(Method::GET, self.url(&format!("blobs/{}", blob.digest))?);
        if download.done > 0 {
            call = call.header(RANGE, format!("bytes={}-{}", download.done, blob.size - 1));
        }
        let mut response = self.http.send_once(&call).await?;
        // Bytes to skip if the answer starts before the offset.
        let mut skip = match response.status() {
            StatusCode::OK => download.done,
            StatusCode::PARTIAL_CONTENT if first_byte(&response) == Some(download.done) => 0,
            StatusCode::PARTIAL_CONTENT => {
                return Err(super::http::refused(response.status(), "it sends another part than asked for").into());
            }
            _ => return Err(self.http.unexpected(response, &what).await.into()),
        };
        let announced =
            response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|bytes| bytes > blob.size - download.done + skip) {
            return Err(Error::TooLarge(what).into());
        }
        while let Some(mut piece) = self.http.chunk(response.body_mut()).await? {
            let known = skip.min(piece.len() as u64);
            skip -= known;
            piece = piece.slice(usize::try_from(known).unwrap_or(0)..);
            if download.done + piece.len() as u64 > blob.size {
                return Err(Error::TooLarge(what).into());
            }
            download.write(piece).await?;
            progress.progress(&what, download.done, blob.size);
        }
        if download.done < blob.size {
            return Err(Fault::Transient { why: "it sends less than it should".into(), after: None });
        }
        Ok(())
    }
}

/// A blob that is written by a blocking thread.
struct Download {
    pieces: mpsc::Sender<Bytes>,
    writing: JoinHandle<Result<BlobWriter, Error>>,
    /// Bytes so far.
    done: u64,
}

impl Download {
    fn begin(layout: &Layout) -> Result<Self, Error> {
        let mut writer = layout.writer()?;
        let (pieces, mut waiting) = mpsc::channel::<Bytes>(PIECES_MAX);
        let writing = tokio::task::spawn_blocking(move || {
            while let Some(piece) = waiting.blocking_recv() {
                writer.write_all(&piece)?;
            }
            Ok(writer)
        });
        Ok(Self { pieces, writing, done: 0 })
    }

    async fn write(&mut self, piece: Bytes) -> Result<(), Error> {
        let bytes = piece.len() as u64;
        if self.pieces.send(piece).await.is_err() {
            return Err(std::io::Error::other("the writer of a download ended").into());
        }
        self.done += bytes;
        Ok(())
    }

    async fn end(self) -> Result<BlobWriter, Error> {
        drop(self.pieces);
        self.writing.await.unwrap_or_else(|error| Err(std::io::Error::other(error).into()))
    }
}

/// The first byte of a partial answer: `bytes FIRST-LAST/SIZE`.
fn first_byte<T>(response: &Response<T>) -> Option<u64> {
    let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    text.split_once('-')?.0.parse().ok()
}
