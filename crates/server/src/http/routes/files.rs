//! `/sessions/{id}/files`

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::{Stream, StreamExt as _};
use raworc_api::image::LEFT_OUT_HEADER;
use raworc_api::problem::{Code, Problem};
use raworc_api::workspace::{self, Listing, ReadFile, WriteFile};
use raworc_core::ids::SessionId;
use raworc_core::limits::{ARCHIVE_BYTES_MAX, FILE_BYTES_MAX, LISTING_ENTRIES_MAX};
use raworc_core::permissions::Actor;
use raworc_workspace::{FileError, UnpackStats, Version};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::io::{ReaderStream, StreamReader, SyncIoBridge};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::Shared;
use crate::conditions::{self, Conditions, Range};
use crate::error::Failure;
use crate::http::extract::{Caller, Query};
use crate::http::file_path::FilePath;
use crate::http::leased::OfSession;
use crate::http::negotiate::{BYTES, JSON, TAR, negotiate};
use crate::http::problems::Problems;
use crate::layers::workspace_access;
use crate::policy::lease::Lease;
use crate::verbs::archives::{self, Incoming};
use crate::verbs::files::{self, Look, Looked};
use crate::verbs::find::{self, Purpose};
use crate::view;

/// How long an upload waits for others to end.
const UPLOAD_WAIT_MAX: Duration = Duration::from_secs(5);
/// An upload that brings nothing for so long is given up.
const UPLOAD_IDLE_MAX: Duration = Duration::from_secs(10);
/// Says whether an answer is a `file`, a `directory` or a `symlink`.
const KIND: HeaderName = HeaderName::from_static("raworc-kind");
/// Says a file's permission bits, in octal digits.
const MODE: HeaderName = HeaderName::from_static("raworc-mode");
/// Caches have to ask whether it is still the same.
const REVALIDATE: &str = "no-cache";
/// All permission bits.
const MODE_MAX: u32 = 0o7777;

/// What a GET of a path asks for.
type Asked = (FilePath, Query<ReadFile>, Method, HeaderMap);
/// What a PUT to a path says beside its body.
type Put = (Lease, FilePath, Query<WriteFile>, HeaderMap);

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(root, put_root))
        .routes(routes!(get, put, delete))
        .routes(routes!(saved_root))
        .routes(routes!(saved))
}

/// List the workspace; or, for `Accept: application/x-tar`, all that is in it as a tar.
#[utoipa::path(get, path = "/sessions/{id}/files", tag = "workspace",
    params(("id" = String, Path, description = "Id or name"), ReadFile),
    responses((status = 200, content((Listing = "application/json"), (Vec<u8> = "application/x-tar"))), Problems))]
async fn root(State(app): State<Shared>, Caller(actor): Caller, asked: Asked) -> Result<Response, Failure> {
    show(app, actor, asked).await
}

/// Read a file, or list a directory, of the workspace; or, for `Accept: application/x-tar`, a file, or all that is in a directory, as a
/// tar. Conditions and a single range of bytes are heeded (RFC 9110).
#[utoipa::path(get, path = "/sessions/{id}/files/{*path}", tag = "workspace",
    params(("id" = String, Path, description = "Id or name"),
           ("path" = String, Path, description = "From the workspace down, its bytes percent-encoded"), ReadFile,
           ("If-None-Match" = Option<String>, Header, description = "Only where this is not its ETag"),
           ("Range" = Option<String>, Header, description = "One range of bytes")),
    responses((status = 200, content((Vec<u8> = "application/octet-stream"), (Listing = "application/json"),
                                     (Vec<u8> = "application/x-tar")),
               headers(("Raworc-Kind" = String, description = "`file`, `directory` or `symlink`"),
                       ("Raworc-Mode" = String, description = "Permission bits of a file, in octal digits"),
                       ("ETag" = String, description = "Tells one state of a file from another"))),
              (status = 206, description = "A part of the file", body = Vec<u8>, content_type = "application/octet-stream"),
              (status = 304, description = "It has not changed"), (status = 416, body = Problem,
               content_type = "application/problem+json", description = "The range has nothing of the file"), Problems))]
async fn get(State(app): State<Shared>, Caller(actor): Caller, asked: Asked) -> Result<Response, Failure> {
    show(app, actor, asked).await
}

/// The session that a request names, which may be deleted meanwhile.
pub(super) async fn of(app: &Shared, actor: &Actor, id: &str, purpose: Purpose) -> Result<SessionId, Failure> {
    let mut connection = app.store.read().await?;
    Ok(find::session(&mut connection, actor, id, purpose).await?.id)
}

/// Write a file; directories on the way are made. It appears whole or not at all. A body of the type `application/x-tar` is unpacked
/// into the directory of this path, which is made where it is missing.
#[utoipa::path(put, path = "/sessions/{id}/files/{*path}", tag = "workspace",
    request_body(content((Vec<u8> = "application/octet-stream"), (Vec<u8> = "application/x-tar"))),
    params(("id" = String, Path, description = "Id or name"),
           ("path" = String, Path, description = "From the workspace down, its bytes percent-encoded"), WriteFile,
           ("If-Match" = Option<String>, Header, description = "Only where this is still its ETag"),
           ("If-None-Match" = Option<String>, Header, description = "`*`: only where there is none yet")),
    responses((status = 200, description = "The archive is unpacked into a directory that was there", body = workspace::Unpacked),
              (status = 201, description = "The file, or the directory that the archive is unpacked into, is new",
               body = workspace::Unpacked, headers(("ETag" = String, description = "That of the file"))),
              (status = 204, description = "It was replaced", headers(("ETag" = String, description = "That of the file"))),
              Problems))]
async fn put(State(app): State<Shared>, Caller(actor): Caller, put: Put, body: Body) -> Result<Response, Failure> {
    store(app, actor, put, body).await
}

/// Unpack an archive into the workspace; what is there already stays, unless the archive has something of the same name.
#[utoipa::path(put, path = "/sessions/{id}/files", tag = "workspace",
    request_body(content = Vec<u8>, content_type = "application/x-tar"),
    params(("id" = String, Path, description = "Id or name"), WriteFile),
    responses((status = 200, body = workspace::Unpacked), Problems))]
async fn put_root(State(app): State<Shared>, Caller(actor): Caller, put: Put, body: Body) -> Result<Response, Failure> {
    store(app, actor, put, body).await
}

/// Writes a file, or unpacks an archive.
async fn store(app: Shared, actor: Actor, (lease, at, query, headers): Put, body: Body) -> Result<Response, Failure> {
    let is_archive = headers.get(header::CONTENT_TYPE).is_some_and(is_tar);
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let bytes_max = if is_archive { ARCHIVE_BYTES_MAX } else { FILE_BYTES_MAX };
    if announced.is_some_and(|bytes| bytes > bytes_max) {
        return Err(FileError::TooLarge.into());
    }
    let Query(WriteFile { mode, follow }) = query;
    let (mode, conditions) = (mode.as_deref().map(parse_mode).transpose()?, Conditions::of(&headers, &Method::PUT)?);
    if is_archive && mode.is_some() {
        return Err(Problem::field("mode", "must be left out: an archive says what modes its files have").into());
    }
    let (path, follow) = (at.path, follow.unwrap_or(true));
    let session = of(&app, &actor, &at.session, Purpose::Use).await?;
    let work = async {
        let (_one, content) = upload(&app, &actor, body).await?;
        if is_archive {
            let incoming = Incoming { path, follow, conditions, content };
            let UnpackStats { is_new, entries, bytes, left_out } =
                archives::unpack(&app, &actor, &at.session, incoming).await?;
            let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
            let unpacked = workspace::Unpacked { entries, size_bytes: bytes, left_out };
            return Ok((status, axum::Json(unpacked)).into_response());
        }
        let wanted = files::Upload { path, follow, mode, conditions, content };
        let written = files::write(&app, &actor, &at.session, wanted).await?;
        let status = if written.is_new { StatusCode::CREATED } else { StatusCode::NO_CONTENT };
        Ok((status, validators(&written.version)).into_response())
    };
    lease.on(session, work).await
}

/// Whether a body of this media type is an archive.
fn is_tar(content_type: &HeaderValue) -> bool {
    let essence = content_type.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(TAR.as_bytes())
}

/// Permission bits, in octal digits.
fn parse_mode(text: &str) -> Result<u32, Failure> {
    let is_octal = (1..=5).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| is_octal && *mode <= MODE_MAX);
    mode.ok_or_else(|| Problem::field("mode", "must be permission bits in octal digits, such as 0755").into())
}

fn wanted(at: &FilePath, query: ReadFile) -> Result<Look, Failure> {
    let entries_max = match query.limit {
        None => LISTING_ENTRIES_MAX,
        Some(limit) if (1..=LISTING_ENTRIES_MAX).contains(&limit) => limit,
        Some(limit) => {
            let detail = format!("must be 1 to {LISTING_ENTRIES_MAX}, is {limit}");
            return Err(Problem::field("limit", detail).into());
        }
    };
    let bad = |_| Problem::field("cursor", "must be the next_cursor of an earlier page");
    let after = query.cursor.map(|cursor| URL_SAFE_NO_PAD.decode(cursor).map_err(bad)).transpose()?;
    Ok(Look { path: at.path.clone(), follow: query.follow.unwrap_or(true), after, entries_max })
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

/// Remove a file, or a directory with all that is in it; of a link, the link itself.
#[utoipa::path(delete, path = "/sessions/{id}/files/{*path}", tag = "workspace",
    params(("id" = String, Path, description = "Id or name"),
           ("path" = String, Path, description = "From the workspace down, its bytes percent-encoded"),
           ("If-Match" = Option<String>, Header, description = "Only where this is still its ETag")),
    responses((status = 204, description = "It is gone"), Problems))]
async fn delete(
    State(app): State<Shared>,
    Caller(actor): Caller,
    at: FilePath,
    headers: HeaderMap,
) -> Result<StatusCode, Failure> {
    let conditions = Conditions::of(&headers, &Method::DELETE)?;
    files::remove(&app, &actor, &at.session, at.path, conditions).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The workspace as of a checkpoint: list it, or get it as a tar.
#[utoipa::path(get, path = "/sessions/{id}/checkpoints/{n}/files", tag = "checkpoints",
    params(("id" = String, Path, description = "Id or name"),
           ("n" = String, Path, description = "A number, a label, or `now`"), ReadFile),
    responses((status = 200, content((Listing = "application/json"), (Vec<u8> = "application/x-tar"))), Problems))]
async fn saved_root(State(app): State<Shared>, Caller(actor): Caller, asked: Asked) -> Result<Response, Failure> {
    show(app, actor, asked).await
}

/// Read a file, or list a directory, as of a checkpoint, as `GET /sessions/{id}/files/{path}` does.
#[utoipa::path(get, path = "/sessions/{id}/checkpoints/{n}/files/{*path}", tag = "checkpoints",
    params(("id" = String, Path, description = "Id or name"),
           ("n" = String, Path, description = "A number, a label, or `now`"),
           ("path" = String, Path, description = "From the workspace down, its bytes percent-encoded"), ReadFile),
    responses((status = 200, content((Vec<u8> = "application/octet-stream"), (Listing = "application/json"),
                                     (Vec<u8> = "application/x-tar")),
               headers(("Raworc-Kind" = String, description = "`file`, `directory` or `symlink`"))),
              (status = 206, description = "A part of the file", body = Vec<u8>, content_type = "application/octet-stream"),
              (status = 304, description = "It has not changed"), (status = 416, body = Problem,
               content_type = "application/problem+json", description = "The range has nothing of the file"), Problems))]
async fn saved(State(app): State<Shared>, Caller(actor): Caller, asked: Asked) -> Result<Response, Failure> {
    show(app, actor, asked).await
}

/// What is at a path of a workspace, or of a version of one, in the form that is wanted.
async fn show(app: Shared, actor: Actor, (at, Query(query), method, headers): Asked) -> Result<Response, Failure> {
    let session = of(&app, &actor, &at.session, Purpose::Read).await?;
    let version = at.version.as_deref();
    let is_tar = negotiate(&headers, &[JSON, BYTES, TAR]).is_ok_and(|wanted| wanted == TAR);
    let mut answer = if is_tar {
        let follow = query.follow.unwrap_or(true);
        let found = archives::pack(&app, &actor, (&at.session, version), at.path, follow).await?;
        let kind = if found.is_directory() { "directory" } else { "file" };
        let body = if method == Method::HEAD { Body::empty() } else { found.body(&app, &actor).await? };
        let headers = [(KIND, kind), (header::CONTENT_TYPE, TAR), (header::CACHE_CONTROL, REVALIDATE)];
        let more = [(header::X_CONTENT_TYPE_OPTIONS, "nosniff"), (header::TRAILER, LEFT_OUT_HEADER)];
        (headers, more, body).into_response()
    } else {
        let look = wanted(&at, query)?;
        let workspace = files::open(&app, &actor, &at.session, version).await?;
        found(&at.path, workspace_access::read(workspace, move |workspace| look.run(workspace)).await?, &headers)?
    };
    answer.headers_mut().append(header::VARY, HeaderValue::from_static("accept"));
    answer.extensions_mut().insert(OfSession(session));
    Ok(answer)
}

/// What was found, as an answer.
fn found(path: &[u8], looked: Looked, headers: &HeaderMap) -> Result<Response, Failure> {
    match looked {
        Looked::Directory(page) => {
            let (path, path_bytes) = view::name(path.strip_prefix(b"/").unwrap_or(path));
            let next_cursor = page.next.map(|name| URL_SAFE_NO_PAD.encode(name));
            let entries = page.entries.into_iter().map(view::entry).collect();
            let listing = Listing { path, path_bytes, entries, truncated: next_cursor.is_some(), next_cursor };
            Ok(([(KIND, "directory"), (header::CACHE_CONTROL, REVALIDATE)], axum::Json(listing)).into_response())
        }
        Looked::Symlink(target, version) => Ok((content_headers("symlink", &version), target).into_response()),
        Looked::File(file, version) => bytes(file, &version, headers),
    }
}

/// A file, or the part of it that is wanted.
fn bytes(mut file: File, version: &Version, headers: &HeaderMap) -> Result<Response, Failure> {
    let size = version.size;
    let (status, start, length) = match Range::of(headers, size, &files::described(Some(version))) {
        Range::Whole => (StatusCode::OK, 0, size),
        Range::Part(start, length) => (StatusCode::PARTIAL_CONTENT, start, length),
        Range::Unsatisfiable => {
            let detail = format!("the file has {size} bytes, and nothing of it is in this range");
            let failure = Failure::new(Code::RangeNotSatisfiable, detail);
            let range = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
            return Ok((validators(version), range, failure).into_response());
        }
    };
    file.seek(SeekFrom::Start(start)).map_err(FileError::from)?;
    // A file that grows while it is read is cut where it ended when it was opened.
    let reader = tokio::io::AsyncReadExt::take(tokio::fs::File::from_std(file), length);
    let body = Body::from_stream(ReaderStream::new(reader));
    let mut response = (status, content_headers("file", version), body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {start}-{}/{size}", start + length - 1);
        headers.extend(HeaderValue::try_from(range).ok().map(|range| (header::CONTENT_RANGE, range)));
    }
    Ok(response)
}

/// What tells one state of a file from another.
fn validators(version: &Version) -> HeaderMap {
    let tag = HeaderValue::try_from(format!("\"{}\"", version.tag)).ok().map(|tag| (header::ETAG, tag));
    let date = conditions::date(version.modified.0).and_then(|date| HeaderValue::try_from(date).ok());
    tag.into_iter().chain(date.map(|date| (header::LAST_MODIFIED, date))).collect()
}

fn content_headers(kind: &'static str, version: &Version) -> (HeaderMap, [(HeaderName, String); 5]) {
    let headers = [
        (KIND, kind.to_owned()),
        (MODE, format!("{:04o}", version.mode)),
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::CACHE_CONTROL, REVALIDATE.to_owned()),
    ];
    (validators(version), headers)
}
