//! `/sessions/{id}/files`

use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt as _};
use raworc_api::problem::Code;
use raworc_api::workspace::{FileEntry, FileKind, Listing};
use raworc_core::ids::SessionId;
use raworc_core::limits::FILE_BYTES_MAX;
use raworc_core::permissions::Actor;
use raworc_workspace::{Entry, FileError, Found, Kind};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::io::{ReaderStream, StreamReader, SyncIoBridge};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::leased::OfSession;
use super::problems::Problems;
use crate::app::Shared;
use crate::error::Failure;
use crate::extract::{Caller, Path};
use crate::lease::Lease;
use crate::verbs::files;
use crate::verbs::find::{self, Purpose};

/// How long an upload waits for others to end.
const UPLOAD_WAIT_MAX: Duration = Duration::from_secs(5);
/// An upload that brings nothing for so long is given up.
const UPLOAD_IDLE_MAX: Duration = Duration::from_secs(10);
/// Says whether an answer is a `file` or a `directory`.
const KIND: HeaderName = HeaderName::from_static("raworc-kind");

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(root)).routes(routes!(get, put, delete))
}

/// List the workspace.
#[utoipa::path(get, path = "/sessions/{id}/files", tag = "workspace",
    params(("id" = String, Path, description = "Id or name")),
    responses((status = 200, body = Listing), Problems))]
async fn root(State(app): State<Shared>, Caller(actor): Caller, Path(id): Path<String>) -> Result<Response, Failure> {
    show(String::new(), files::look(&app, &actor, &id, String::new()).await?)
}

/// Read a file, or list a directory, of the workspace.
#[utoipa::path(get, path = "/sessions/{id}/files/{*path}", tag = "workspace",
    params(("id" = String, Path, description = "Id or name"), ("path" = String, Path)),
    responses((status = 200, content((Vec<u8> = "application/octet-stream"), (Listing = "application/json")),
               headers(("Raworc-Kind" = String, description = "`file` or `directory`"))), Problems))]
async fn get(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path((id, path)): Path<(String, String)>,
) -> Result<Response, Failure> {
    let session = of(&app, &actor, &id, Purpose::Read).await?;
    let mut answer = show(path.clone(), files::look(&app, &actor, &id, path).await?)?;
    answer.extensions_mut().insert(OfSession(session));
    Ok(answer)
}

/// The session that a request names, which may be deleted meanwhile.
pub(super) async fn of(app: &Shared, actor: &Actor, id: &str, purpose: Purpose) -> Result<SessionId, Failure> {
    let mut connection = app.store.read().await?;
    Ok(find::session(&mut connection, actor, id, purpose).await?.id)
}

/// Write a file; directories on the way are made. It appears whole or not at all.
#[utoipa::path(put, path = "/sessions/{id}/files/{*path}", tag = "workspace",
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    params(("id" = String, Path, description = "Id or name"), ("path" = String, Path)),
    responses((status = 201, description = "The file is new"), (status = 204, description = "It was replaced"),
              Problems))]
async fn put(
    State(app): State<Shared>,
    Caller(actor): Caller,
    lease: Lease,
    Path((id, path)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Failure> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > FILE_BYTES_MAX) {
        return Err(FileError::TooLarge.into());
    }
    let session = of(&app, &actor, &id, Purpose::Use).await?;
    let write = async {
        let (_one, reader) = upload(&app, &actor, body).await?;
        files::write(&app, &actor, &id, path, reader).await
    };
    let is_new = lease.on(session, write).await?;
    Ok(if is_new { StatusCode::CREATED } else { StatusCode::NO_CONTENT })
}

/// A body to be read where reading may block, when its turn has come.
pub(super) async fn upload(
    app: &Shared,
    actor: &Actor,
    body: Body,
) -> Result<([OwnedSemaphorePermit; 2], impl std::io::Read + Send + use<>), Failure> {
    let Ok(Ok(turn)) = tokio::time::timeout(UPLOAD_WAIT_MAX, app.uploads.of(actor.account).acquire_owned()).await
    else {
        return Err(Failure::new(Code::Busy, "this account uploads too many files at the same time; try again later"));
    };
    let thread = app.budgets.thread().await?;
    Ok(([turn, thread], SyncIoBridge::new(StreamReader::new(Box::pin(impatient(body.into_data_stream()))))))
}

/// The body as it comes, for as long as it comes.
fn impatient(body: BodyDataStream) -> impl Stream<Item = std::io::Result<Bytes>> {
    futures::stream::unfold(body, |mut body| async {
        match tokio::time::timeout(UPLOAD_IDLE_MAX, body.next()).await {
            Ok(next) => next.map(|chunk| (chunk.map_err(std::io::Error::other), body)),
            Err(late) => Some((Err(std::io::Error::other(late)), body)),
        }
    })
}

/// Remove a file, or a directory with all that is in it.
#[utoipa::path(delete, path = "/sessions/{id}/files/{*path}", tag = "workspace",
    params(("id" = String, Path, description = "Id or name"), ("path" = String, Path)),
    responses((status = 204, description = "It is gone"), Problems))]
async fn delete(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path((id, path)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    files::remove(&app, &actor, &id, path).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What was found, as an answer.
pub(super) fn show(path: String, found: Found) -> Result<Response, Failure> {
    match found {
        Found::Directory(entries, truncated) => {
            let entries = entries.into_iter().map(entry).collect();
            Ok(([(KIND, "directory")], axum::Json(Listing { path, entries, truncated })).into_response())
        }
        Found::File(file, size) => {
            // A file that grows while it is read is cut where it ended when it was opened.
            let reader = tokio::io::AsyncReadExt::take(tokio::fs::File::from_std(file), size);
            let headers = [
                (KIND, "file".to_owned()),
                (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
                (header::CONTENT_LENGTH, size.to_string()),
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
            ];
            Ok((headers, Body::from_stream(ReaderStream::new(reader))).into_response())
        }
    }
}

fn entry(entry: Entry) -> FileEntry {
    FileEntry {
        name: entry.name,
        kind: kind(entry.kind),
        size: entry.size,
        mode: entry.mode,
        modified_at: jiff::Timestamp::try_from(entry.modified).unwrap_or(jiff::Timestamp::UNIX_EPOCH),
        target: entry.target,
    }
}

/// A kind, as it is told.
pub(super) fn kind(kind: Kind) -> FileKind {
    match kind {
        Kind::File => FileKind::File,
        Kind::Directory => FileKind::Directory,
        Kind::Symlink => FileKind::Symlink,
        Kind::Other => FileKind::Other,
    }
}
