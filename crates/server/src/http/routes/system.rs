//! `/health`, `/version`, `/metrics`, `/openapi.json`

use axum::Extension;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use raworc_api::disk::{DiskUsage, Prune, Pruned};
use raworc_api::health::{Health, LoopList, Version};
use raworc_core::permissions::Action;
use raworc_store::sessions;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::Shared;
use crate::error::Failure;
use crate::http::extract::{Caller, Json};
use crate::http::problems::Problems;
use crate::policy::permit;
use crate::verbs::{self, disk};

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(health))
        .routes(routes!(version))
        .routes(routes!(metrics))
        .routes(routes!(document))
        .routes(routes!(disk))
        .routes(routes!(loops))
        .routes(routes!(prune))
}

/// How the server is, part by part. Needs no token; with an administrator's it also tells what is wrong, and what to do.
#[utoipa::path(get, path = "/health", tag = "system", security((), ("token" = [])),
    responses((status = 200, description = "It serves: `ok`, or `degraded` where something does not work", body = Health),
              (status = 503, description = "It cannot serve: `unavailable`", body = Health)))]
async fn health(State(app): State<Shared>, caller: Result<Caller, Failure>) -> Response {
    let body = verbs::health::health(&app, caller.ok().as_ref().map(|Caller(actor)| actor)).await;
    let status = if body.status == "unavailable" { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, axum::Json(body)).into_response()
}

/// Which release this is. Needs no token.
#[utoipa::path(get, path = "/version", tag = "system", security(()), responses((status = 200, body = Version)))]
async fn version() -> axum::Json<Version> {
    axum::Json(Version { name: "raworc".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() })
}

/// Counters as OpenMetrics text, which Prometheus reads. For administrators.
#[utoipa::path(get, path = "/metrics", tag = "system",
    responses((status = 200, body = String, content_type = "application/openmetrics-text"), Problems))]
async fn metrics(State(app): State<Shared>, Caller(actor): Caller) -> Result<Response, Failure> {
    permit(&actor, Action::ReadServer, "metrics", "")?;
    let count = app.scan(|connection| Box::pin(async move { Ok(sessions::count_by_state(connection).await?) }));
    let (counts, _place) = count.await?;
    let text = app.metrics.text(&counts, app.hosts.connected(), app.runtime.spares(), app.started.elapsed());
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, content_type)], text).into_response())
}

/// What takes space on the server's disk. For administrators.
#[utoipa::path(get, path = "/system/disk", tag = "system", responses((status = 200, body = DiskUsage), Problems))]
async fn disk(State(app): State<Shared>, Caller(actor): Caller) -> Result<axum::Json<DiskUsage>, Failure> {
    Ok(axum::Json(disk::usage(&app, &actor).await?))
}

/// What the server does by itself, over and over, and how it gets on. For administrators.
#[utoipa::path(get, path = "/system/loops", tag = "system", responses((status = 200, body = LoopList), Problems))]
async fn loops(State(app): State<Shared>, Caller(actor): Caller) -> Result<axum::Json<LoopList>, Failure> {
    Ok(axum::Json(verbs::health::loop_list(&app, &actor)?))
}

/// Remove what nothing needs, and what the body names. For administrators.
#[utoipa::path(post, path = "/system/prune", tag = "system", request_body = Prune,
    responses((status = 200, body = Pruned), Problems))]
async fn prune(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Json(body): Json<Prune>,
) -> Result<axum::Json<Pruned>, Failure> {
    Ok(axum::Json(disk::prune(&app, &actor, body).await?))
}

/// The text of the OpenAPI document.
#[derive(Clone)]
pub struct Document(pub fn() -> String);

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "system", security(()),
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json", body = String)))]
async fn document(Extension(Document(write)): Extension<Document>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], write()).into_response()
}
