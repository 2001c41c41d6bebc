//! Pushes from a layout to a registry.

use std::io::{self, Read as _, Seek as _, SeekFrom};

use bytes::Bytes;
use hyper::header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use hyper::{Method, Response, StatusCode};
use url::Url;

use super::http::{Fault, HttpRequest};
use super::{MANIFEST_PROGRESS, Progress, Registry, TagOrDigest};
use crate::image::{Descriptor, Document};
use crate::layout::Layout;
use crate::{Digest, Error};

/// Blobs up to this size, in bytes, are uploaded in one request.
const SMALL_BYTES_MAX: u64 = 1 << 20;
/// Bounds of [`super::Options::chunk_bytes`].
const CHUNK_BYTES: std::ops::RangeInclusive<u64> = 64 << 10..=16 << 20;
/// Maximum number of manifests in nested indexes.
const MANIFESTS_MAX: usize = 256;

/// An upload in progress.
struct Upload {
    /// The URL of the next request.
    location: Url,
    /// Bytes that the registry has.
    offset: u64,
}

impl Registry {
    /// Pushes an image and all its blobs; what the registry has is not sent. The manifests of an index are pushed
    /// before it. If the reference has a digest, it must be that of `manifest`.
    ///
    /// # Errors
    /// [`Error::Missing`] and [`Error::Damaged`] for blobs that neither side has; [`Error::Unauthorized`],
    /// [`Error::Unreachable`], [`Error::Refused`]. Uploaded blobs stay, and are not sent again.
    pub async fn push(&self, layout: &Layout, manifest: &Digest, progress: &dyn Progress) -> Result<(), Error> {
        if let TagOrDigest::Digest(named) = self.reference.tag_or_digest()
            && named != manifest
        {
            return Err(Error::BadReference(format!("{} is not what is pushed, {manifest}", self.reference)));
        }
        // Parents first here, but last in the registry.
        let mut manifests = vec![*manifest];
        let mut at = 0;
        while at < manifests.len() {
            let bytes = document(layout, manifests[at]).await?;
            match Document::parse(&bytes)? {
                Document::Index(entries) => manifests.extend(entries.iter().map(|entry| entry.digest)),
                Document::Manifest { config, layers, .. } => {
                    for blob in layers.iter().chain([&config]) {
                        self.push_blob(layout, blob, progress).await?;
                    }
                }
            }
            if manifests.len() > MANIFESTS_MAX {
                return Err(Error::TooLarge("the number of manifests".into()));
            }
            at += 1;
        }
        for digest in manifests.iter().rev() {
            let which =
                if digest == manifest { self.reference.tag_or_digest().clone() } else { TagOrDigest::Digest(*digest) };
            self.push_manifest(layout, digest, &which, progress).await?;
        }
        Ok(())
    }

    async fn push_manifest(
        &self,
        layout: &Layout,
        digest: &Digest,
        which: &TagOrDigest,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        let bytes = document(layout, *digest).await?;
        let total = bytes.len() as u64;
        progress.progress(MANIFEST_PROGRESS, 0, total);
        let call = HttpRequest::new(Method::PUT, self.url(&format!("manifests/{which}"))?)
            .header(CONTENT_TYPE, Document::media_type(&bytes))
            .body(bytes);
        let response = self.http.call(&call).await?;
        if response.status() != StatusCode::CREATED {
            return Err(self.http.unexpected(response, &format!("{}", self.reference)).await);
        }
        progress.progress(MANIFEST_PROGRESS, total, total);
        Ok(())
    }

    async fn push_blob(&self, layout: &Layout, blob: &Descriptor, progress: &dyn Progress) -> Result<(), Error> {
        let what = blob.digest.to_string();
        progress.progress(&what, 0, blob.size);
        if !self.has_blob(&blob.digest).await? {
            match layout.size(&blob.digest)? {
                None => return Err(Error::Missing { digest: blob.digest }),
                Some(size) if size != blob.size => return Err(Error::Damaged { digest: blob.digest }),
                Some(_) => {}
            }
            match self.upload(layout, blob, progress).await {
                // Registries have many errors for a wrong digest, so verify the blob. If it is fine, the registry
                // assembled the chunks wrongly (which concurrent uploads of one blob can cause).
                Err(Error::Refused { status, why }) => {
                    verify(layout, blob.digest).await?;
                    if status != StatusCode::BAD_REQUEST.as_u16() {
                        return Err(Error::Refused { status, why });
                    }
                    self.upload(layout, blob, progress).await?;
                }
                outcome => outcome?,
            }
        }
        progress.progress(&what, blob.size, blob.size);
        Ok(())
    }

    /// Whether the registry has this blob, so that it need not be in the layout.
    ///
    /// # Errors
    /// [`Error::Unauthorized`], [`Error::Unreachable`], [`Error::Refused`].
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        let response = self.http.call(&HttpRequest::new(Method::HEAD, self.url(&format!("blobs/{digest}"))?)).await?;
        match response.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.http.unexpected(response, &digest.to_string()).await),
        }
    }

    /// Uploads a blob with retries.
    async fn upload(&self, layout: &Layout, blob: &Descriptor, progress: &dyn Progress) -> Result<(), Error> {
        let mut budget = self.http.retry_budget();
        let mut furthest = 0;
        let mut upload: Option<Upload> = None;
        loop {
            match self.step(layout, blob, upload.take()).await {
                Ok(None) => return Ok(()),
                Ok(Some(next)) => {
                    progress.progress(&blob.digest.to_string(), next.offset, blob.size);
                    if next.offset > furthest {
                        furthest = next.offset;
                        budget.reset();
                    }
                    upload = Some(next);
                }
                Err((last, fault)) => {
                    budget.back_off(fault).await?;
                    upload = match last {
                        Some(last) => self.resume(last, blob.size).await?,
                        None => None,
                    };
                    // Data that arrived before the fault counts as progress.
                    if let Some(upload) = upload.as_ref().filter(|upload| upload.offset > furthest) {
                        furthest = upload.offset;
                        budget.reset();
                        progress.progress(&blob.digest.to_string(), upload.offset, blob.size);
                    }
                    // The last answer may have been lost.
                    if upload.is_none() && self.has_blob(&blob.digest).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Sends one request: starts an upload, sends a chunk, or completes it (`None`). On a fault, `upload` stays as it
    /// was.
    async fn step(
        &self,
        layout: &Layout,
        blob: &Descriptor,
        upload: Option<Upload>,
    ) -> Result<Option<Upload>, (Option<Upload>, Fault)> {
        let Some(upload) = upload else {
            return self.begin().await.map(Some).map_err(|fault| (None, fault));
        };
        let outcome = if blob.size <= SMALL_BYTES_MAX || upload.offset == blob.size {
            self.end(layout, blob, &upload).await.map(|()| None)
        } else {
            self.send_piece(layout, blob, &upload).await.map(Some)
        };
        outcome.map_err(|fault| (Some(upload), fault))
    }

    async fn begin(&self) -> Result<Upload, Fault> {
        let url = self.url("blobs/uploads/")?;
        let response = self.http.send_once(&HttpRequest::new(Method::POST, url.clone())).await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(self.http.unexpected(response, "the beginning of an upload").await.into());
        }
        Ok(Upload { location: self.http.location(&url, &response)?, offset: 0 })
    }

    async fn send_piece(&self, layout: &Layout, blob: &Descriptor, upload: &Upload) -> Result<Upload, Fault> {
        let bytes = self.options.chunk_bytes.clamp(*CHUNK_BYTES.start(), *CHUNK_BYTES.end());
        let bytes = bytes.min(blob.size - upload.offset);
        let end = upload.offset + bytes;
        let piece = read(layout, blob.digest, upload.offset, bytes).await?;
        let call = HttpRequest::new(Method::PATCH, upload.location.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_RANGE, format!("{}-{}", upload.offset, end - 1))
            .body(piece);
        let response = self.http.send_once(&call).await?;
        match response.status() {
            StatusCode::ACCEPTED => {
                let offset = received(&response).filter(|offset| *offset <= end).unwrap_or(end);
                if offset <= upload.offset {
                    return Err(Fault::Transient {
                        why: "it takes a piece of an upload and has no more".into(),
                        after: None,
                    });
                }
                Ok(Upload { location: self.http.location(&upload.location, &response)?, offset })
            }
            // The registry has another offset or no upload; `resume` asks.
            StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::NOT_FOUND => {
                let why = format!("it refused a piece of an upload with status {}", response.status().as_u16());
                Err(Fault::Transient { why, after: None })
            }
            _ => Err(self.http.unexpected(response, "a piece of an upload").await.into()),
        }
    }

    async fn end(&self, layout: &Layout, blob: &Descriptor, upload: &Upload) -> Result<(), Fault> {
        let mut url = upload.location.clone();
        url.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let rest = read(layout, blob.digest, upload.offset, blob.size - upload.offset).await?;
        let call = HttpRequest::new(Method::PUT, url).header(CONTENT_TYPE, "application/octet-stream").body(rest);
        let response = self.http.send_once(&call).await?;
        match response.status() {
            StatusCode::CREATED => Ok(()),
            StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE => {
                Err(Fault::Transient { why: "it has forgotten the upload".into(), after: None })
            }
            _ => Err(self.http.unexpected(response, "the end of an upload").await.into()),
        }
    }

    /// Asks how much of an upload has arrived. `None` to start again.
    async fn resume(&self, last: Upload, size: u64) -> Result<Option<Upload>, Error> {
        let call = HttpRequest::new(Method::GET, last.location.clone()).header(ACCEPT, "*/*");
        let response = match self.http.send_once(&call).await {
            Ok(response) => response,
            // If the registry is still unreachable, the next attempt notices.
            Err(Fault::Transient { .. }) => return Ok(Some(last)),
            Err(Fault::Permanent(error @ Error::Unauthorized(_))) => return Err(error),
            Err(Fault::Permanent(_)) => return Ok(None),
        };
        if !matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::ACCEPTED) {
            return Ok(None);
        }
        // "0-0" means one byte or none; starting again loses nothing.
        let Some(offset) = received(&response).filter(|offset| (2..=size).contains(offset)) else { return Ok(None) };
        let has_location = response.headers().contains_key(hyper::header::LOCATION);
        let location = if has_location { self.http.location(&last.location, &response)? } else { last.location };
        Ok(Some(Upload { location, offset }))
    }
}

/// Bytes that the registry has: `Range: 0-LAST`.
fn received<T>(response: &Response<T>) -> Option<u64> {
    let text = response.headers().get(RANGE)?.to_str().ok()?.trim_start_matches("bytes=");
    let (_, last) = text.split_once('-')?;
    last.parse::<u64>().ok()?.checked_add(1)
}

async fn document(layout: &Layout, digest: Digest) -> Result<Vec<u8>, Error> {
    let layout = layout.clone();
    blocking(move || layout.document(&digest)).await
}

async fn verify(layout: &Layout, digest: Digest) -> Result<(), Error> {
    let layout = layout.clone();
    blocking(move || {
        io::copy(&mut layout.get(&digest)?, &mut io::sink()).map_err(Error::from_io)?;
        Ok(())
    })
    .await
}

async fn read(layout: &Layout, digest: Digest, offset: u64, bytes: u64) -> Result<Bytes, Error> {
    let path = layout.path(&digest);
    blocking(move || {
        let mut file = std::fs::File::open(path).map_err(|_| Error::Missing { digest })?;
        file.seek(SeekFrom::Start(offset))?;
        let mut piece = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
        file.take(bytes).read_to_end(&mut piece)?;
        if piece.len() as u64 != bytes {
            return Err(Error::Damaged { digest });
        }
        Ok(piece.into())
    })
    .await
}

/// Runs blocking file operations.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error).into()))
}
