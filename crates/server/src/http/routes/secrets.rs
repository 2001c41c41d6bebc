//! `/secrets`

use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use raworc_api::page::{Page, PageQuery};
use raworc_api::secret::{Secret, SecretDefinition};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::Shared;
use crate::conditions::{Conditions, etag};
use crate::error::Failure;
use crate::http::extract::{Caller, Json, Path, Query, idempotency_key};
use crate::http::page::page_of;
use crate::http::problems::Problems;
use crate::verbs::check::page_limit;
use crate::verbs::secrets;
use crate::view;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(create, list)).routes(routes!(get, update, delete))
}

/// Add a secret of your own.
#[utoipa::path(post, path = "/secrets", tag = "secrets", request_body = SecretDefinition,
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key makes one secret only")),
    responses((status = 201, body = Secret), Problems))]
async fn create(
    State(app): State<Shared>,
    Caller(actor): Caller,
    headers: HeaderMap,
    Json(body): Json<SecretDefinition>,
) -> Result<Response, Failure> {
    let row = secrets::create(&app, &actor, body, idempotency_key(&headers)?).await?;
    let location = [(header::LOCATION, format!("{}/secrets/{}", raworc_api::PREFIX, row.name))];
    let version = etag(row.version);
    Ok((StatusCode::CREATED, location, version, app.budgets.json(view::secret(row)).await?).into_response())
}

/// List your secrets by name, without their values.
#[utoipa::path(get, path = "/secrets", tag = "secrets", params(PageQuery),
    responses((status = 200, body = Page<Secret>), Problems))]
async fn list(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Query(query): Query<PageQuery>,
) -> Result<Response, Failure> {
    let limit = page_limit(query.limit)?;
    let batch = secrets::list(&app, &actor, query.cursor.as_deref().unwrap_or_default(), limit).await?;
    app.budgets.json(page_of(batch, |row| row.name.clone(), view::secret)).await
}

/// Get a secret, without its value.
#[utoipa::path(get, path = "/secrets/{name}", tag = "secrets",
    params(("name" = String, Path, description = "Name or id"),
           ("If-None-Match" = Option<String>, Header, description = "Only where this is not its ETag")),
    responses((status = 200, body = Secret), (status = 304, description = "It has not changed"), Problems))]
async fn get(State(app): State<Shared>, Caller(actor): Caller, Path(name): Path<String>) -> Result<Response, Failure> {
    let row = secrets::get(&app, &actor, &name).await?;
    Ok((etag(row.version), app.budgets.json(view::secret(row)).await?).into_response())
}

/// Replace a secret's definition. The value stays if none is given.
#[utoipa::path(put, path = "/secrets/{name}", tag = "secrets", request_body = SecretDefinition,
    params(("name" = String, Path, description = "Name or id"),
           ("If-Match" = Option<String>, Header, description = "Only where this is still its ETag")),
    responses((status = 200, body = Secret), Problems))]
async fn update(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(body): Json<SecretDefinition>,
) -> Result<Response, Failure> {
    let row = secrets::update(&app, &actor, name, body, Conditions::of(&headers, &Method::PUT)?).await?;
    Ok((etag(row.version), app.budgets.json(view::secret(row)).await?).into_response())
}

/// Remove a secret.
#[utoipa::path(delete, path = "/secrets/{name}", tag = "secrets",
    params(("name" = String, Path, description = "Name or id"),
           ("If-Match" = Option<String>, Header, description = "Only where this is still its ETag")),
    responses((status = 204, description = "It is gone"), Problems))]
async fn delete(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Failure> {
    secrets::delete(&app, &actor, name, Conditions::of(&headers, &Method::DELETE)?).await?;
    Ok(StatusCode::NO_CONTENT)
}
