//! `/providers` and `/models`

use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use raworc_api::page::{Page, PageQuery};
use raworc_api::provider::{Model, Provider, ProviderDefinition, ProviderTest};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::Shared;
use crate::conditions::{Conditions, etag};
use crate::error::Failure;
use crate::http::extract::{Caller, Json, Path, Query, idempotency_key};
use crate::http::page::page_of;
use crate::http::problems::Problems;
use crate::verbs::check::page_limit;
use crate::verbs::{models, providers};
use crate::view;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(get, update, delete))
        .routes(routes!(test))
        .routes(routes!(list_models))
        .routes(routes!(get_model))
}

/// Add a provider of models.
#[utoipa::path(post, path = "/providers", tag = "providers", request_body = ProviderDefinition,
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key makes one provider only")),
    responses((status = 201, body = Provider), Problems))]
async fn create(
    State(app): State<Shared>,
    Caller(actor): Caller,
    headers: HeaderMap,
    Json(body): Json<ProviderDefinition>,
) -> Result<Response, Failure> {
    let row = providers::create(&app, &actor, body, idempotency_key(&headers)?).await?;
    let location = [(header::LOCATION, format!("{}/providers/{}", raworc_api::PREFIX, row.name))];
    let version = etag(row.version);
    Ok((StatusCode::CREATED, location, version, app.budgets.json(view::provider(row)).await?).into_response())
}

/// List providers by name, without their keys.
#[utoipa::path(get, path = "/providers", tag = "providers", params(PageQuery),
    responses((status = 200, body = Page<Provider>), Problems))]
async fn list(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Query(query): Query<PageQuery>,
) -> Result<Response, Failure> {
    let limit = page_limit(query.limit)?;
    let batch = providers::list(&app, &actor, query.cursor.as_deref().unwrap_or_default(), limit).await?;
    app.budgets.json(page_of(batch, |row| row.name.clone(), view::provider)).await
}

/// Get a provider, without its key.
#[utoipa::path(get, path = "/providers/{name}", tag = "providers",
    params(("name" = String, Path, description = "Name or id"),
           ("If-None-Match" = Option<String>, Header, description = "Only where this is not its ETag")),
    responses((status = 200, body = Provider), (status = 304, description = "It has not changed"), Problems))]
async fn get(State(app): State<Shared>, Caller(actor): Caller, Path(name): Path<String>) -> Result<Response, Failure> {
    let row = providers::get(&app, &actor, &name).await?;
    Ok((etag(row.version), app.budgets.json(view::provider(row)).await?).into_response())
}

/// Ask a provider once: whether it is there, takes the key, and has its first model. Without models it is asked what it has.
#[utoipa::path(post, path = "/providers/{name}/test", tag = "providers",
    params(("name" = String, Path, description = "Name or id")),
    responses((status = 200, body = ProviderTest), Problems))]
async fn test(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(name): Path<String>,
) -> Result<axum::Json<ProviderTest>, Failure> {
    Ok(axum::Json(providers::test(&app, &actor, &name).await?))
}

/// Replace a provider's definition; used from the next call of a model on. The key stays if none is given.
#[utoipa::path(put, path = "/providers/{name}", tag = "providers", request_body = ProviderDefinition,
    params(("name" = String, Path, description = "Name or id"),
           ("If-Match" = Option<String>, Header, description = "Only where this is still its ETag")),
    responses((status = 200, body = Provider), Problems))]
async fn update(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(body): Json<ProviderDefinition>,
) -> Result<Response, Failure> {
    let row = providers::update(&app, &actor, name, body, Conditions::of(&headers, &Method::PUT)?).await?;
    Ok((etag(row.version), app.budgets.json(view::provider(row)).await?).into_response())
}

/// Remove a provider and its key.
#[utoipa::path(delete, path = "/providers/{name}", tag = "providers",
    params(("name" = String, Path, description = "Name or id"),
           ("If-Match" = Option<String>, Header, description = "Only where this is still its ETag")),
    responses((status = 204, description = "It is gone"), Problems))]
async fn delete(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Failure> {
    providers::delete(&app, &actor, name, Conditions::of(&headers, &Method::DELETE)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List the models that agents may name.
#[utoipa::path(get, path = "/models", tag = "models", params(PageQuery),
    responses((status = 200, body = Page<Model>), Problems))]
async fn list_models(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Query(query): Query<PageQuery>,
) -> Result<Response, Failure> {
    let limit = page_limit(query.limit)?;
    let page = models::list(&app, &actor, query.cursor.as_deref().unwrap_or_default(), limit).await?;
    app.budgets.json(page).await
}

/// Get the model that a name means: its id, or an id or alias that one provider has.
#[utoipa::path(get, path = "/models/{name}", tag = "models",
    params(("name" = String, Path, description = "PROVIDER/MODEL (the slash is written as %2F), or an id or alias of one provider")),
    responses((status = 200, body = Model), Problems))]
async fn get_model(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(name): Path<String>,
) -> Result<Response, Failure> {
    app.budgets.json(models::get(&app, &actor, &name).await?).await
}
