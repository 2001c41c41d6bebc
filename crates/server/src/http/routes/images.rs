//! `/images`, and checkpoints on their way to other servers

use std::io;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use raworc_api::image::{
    Image, ImportImages, Imported, LEFT_OUT_HEADER, ListImages, PullImage, PushCheckpoint, Pushed,
};
use raworc_api::page::Page;
use raworc_api::problem::Problem;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::files::{of, upload};
use super::transfers::answer;
use crate::app::Shared;
use crate::error::Failure;
use crate::http::extract::{Caller, Json, Path, Query};
use crate::http::leased::OfSession;
use crate::http::page::page_of;
use crate::http::problems::Problems;
use crate::policy::lease::Lease;
use crate::transfers::outgoing;
use crate::verbs::check::page_limit;
use crate::verbs::find::Purpose;
use crate::verbs::{images, push};
use crate::view;

/// What an archive is called among media types.
const ARCHIVE: &str = "application/vnd.oci.image.layer.v1.tar";

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(pull, list))
        .routes(routes!(import))
        .routes(routes!(get, delete))
        .routes(routes!(push_checkpoint))
        .routes(routes!(export_checkpoint))
}

/// Bring an image or a checkpoint in from a registry. For `Accept: text/event-stream`, progress is told: events `progress`,
/// then `done` with the image, or `failed` with the problem.
#[utoipa::path(post, path = "/images", tag = "images", request_body = PullImage,
    responses((status = 201, content((Image = "application/json"), (String = "text/event-stream"))), Problems))]
async fn pull(
    State(app): State<Shared>,
    Caller(actor): Caller,
    headers: HeaderMap,
    Json(body): Json<PullImage>,
) -> Result<Response, Failure> {
    let work = |tell| async move { images::pull(&app, &actor, body, &tell).await.map(view::image) };
    answer(&headers, StatusCode::CREATED, work).await
}

/// List images that are here, those that came first at the top.
#[utoipa::path(get, path = "/images", tag = "images", params(ListImages),
    responses((status = 200, body = Page<Image>), Problems))]
async fn list(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Query(query): Query<ListImages>,
) -> Result<axum::Json<Page<Image>>, Failure> {
    let limit = page_limit(query.limit)?;
    let after = match query.cursor {
        Some(cursor) => {
            let id = cursor.parse();
            Some(id.map_err(|_| Problem::field("cursor", "must be the next_cursor of an earlier page"))?)
        }
        None => None,
    };
    let batch = images::list(&app, &actor, after, limit).await?;
    Ok(axum::Json(page_of(batch, |row| row.id.to_string(), view::image)))
}

/// Bring in the images of an archive: an OCI archive, or what `docker save` writes, compressed or not. Progress is told as by
/// `POST /images`.
#[utoipa::path(post, path = "/images/import", tag = "images", params(ImportImages),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, content((Imported = "application/json"), (String = "text/event-stream"))), Problems))]
async fn import(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Query(query): Query<ImportImages>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let work = |tell| async move {
        let (_one, archive) = upload(&app, &actor, body).await?;
        let rows = images::import(&app, &actor, query.name, archive, &tell).await?;
        Ok(Imported { items: rows.into_iter().map(view::image).collect() })
    };
    answer(&headers, StatusCode::CREATED, work).await
}

/// Get an image.
#[utoipa::path(get, path = "/images/{id}", tag = "images",
    params(("id" = String, Path, description = "Id or name; the slashes of a name are written %2F")),
    responses((status = 200, body = Image), Problems))]
async fn get(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(id): Path<String>,
) -> Result<axum::Json<Image>, Failure> {
    Ok(axum::Json(view::image(images::get(&app, &actor, &id).await?)))
}

/// Remove an image. Sessions that run it keep what they have of it.
#[utoipa::path(delete, path = "/images/{id}", tag = "images",
    params(("id" = String, Path, description = "Id or name; the slashes of a name are written %2F")),
    responses((status = 204, description = "It is gone"), Problems))]
async fn delete(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    images::delete(&app, &actor, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Send a checkpoint, or for `now` one of what is there now, to a registry, as an OCI image. Progress is told as by
/// `POST /images`.
#[utoipa::path(post, path = "/sessions/{id}/checkpoints/{n}/push", tag = "checkpoints", request_body = PushCheckpoint,
    params(("id" = String, Path, description = "Id or name"), ("n" = String, Path, description = "A number, or `now`")),
    responses((status = 200, content((Pushed = "application/json"), (String = "text/event-stream"))), Problems))]
async fn push_checkpoint(
    State(app): State<Shared>,
    Caller(actor): Caller,
    lease: Lease,
    Path((id, n)): Path<(String, String)>,
    headers: HeaderMap,
    Json(body): Json<PushCheckpoint>,
) -> Result<Response, Failure> {
    let session = of(&app, &actor, &id, Purpose::Use).await?;
    let work = |tell| async move { lease.on(session, push::push(&app, &actor, (&id, &n), body, &tell)).await };
    answer(&headers, StatusCode::OK, work).await
}

/// A checkpoint, or for `now` one of what is there now, as an OCI archive: a tar with an image layout.
#[utoipa::path(get, path = "/sessions/{id}/checkpoints/{n}/export", tag = "checkpoints",
    params(("id" = String, Path, description = "Id or name"), ("n" = String, Path, description = "A number, or `now`")),
    responses((status = 200, content((Vec<u8> = "application/vnd.oci.image.layer.v1.tar")),
               headers(("Raworc-Left-Out" = u64, description = "What has no form in an image, and is not in it"))), Problems))]
async fn export_checkpoint(
    State(app): State<Shared>,
    Caller(actor): Caller,
    lease: Lease,
    Path((id, n)): Path<(String, String)>,
) -> Result<Response, Failure> {
    let session = of(&app, &actor, &id, Purpose::Use).await?;
    let export = lease.on(session, push::export(&app, &actor, &id, &n)).await?;
    let left_out = export.left_out.to_string();
    let disposition = format!("attachment; filename=\"{}\"", export.file_name());
    let body =
        outgoing::body(&app, move |out| export.write(out).map(|_| HeaderMap::new()).map_err(io::Error::other)).await?;
    let headers = [
        (header::CONTENT_TYPE, ARCHIVE.to_owned()),
        (header::CONTENT_DISPOSITION, disposition),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (HeaderName::from_static(LEFT_OUT_HEADER), left_out),
    ];
    Ok((headers, Extension(OfSession(session)), body).into_response())
}
