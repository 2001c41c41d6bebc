//! `/agents`

use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use raworc_api::agent::{Agent, AgentDefinition};
use raworc_api::page::{Page, PageQuery};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::Shared;
use crate::conditions::{Conditions, etag};
use crate::error::Failure;
use crate::http::extract::{Caller, Json, Path, Query};
use crate::http::page::page_of;
use crate::http::problems::Problems;
use crate::verbs::agents;
use crate::verbs::check::page_limit;
use crate::view;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(create, list)).routes(routes!(get, update, delete))
}

/// Register an agent.
#[utoipa::path(post, path = "/agents", tag = "agents", request_body = AgentDefinition,
    responses((status = 201, body = Agent), Problems))]
async fn create(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Json(body): Json<AgentDefinition>,
) -> Result<Response, Failure> {
    let row = agents::create(&app, &actor, body).await?;
    let version = etag(row.version);
    Ok((StatusCode::CREATED, version, app.budgets.json(view::agent(row)).await?).into_response())
}

/// List agents by name.
#[utoipa::path(get, path = "/agents", tag = "agents", params(PageQuery),
    responses((status = 200, body = Page<Agent>), Problems))]
async fn list(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Query(query): Query<PageQuery>,
) -> Result<Response, Failure> {
    let limit = page_limit(query.limit)?;
    let batch = agents::list(&app, &actor, query.cursor.as_deref().unwrap_or_default(), limit).await?;
    app.budgets.json(page_of(batch, |row| row.definition.name.clone(), view::agent)).await
}

/// Get an agent.
#[utoipa::path(get, path = "/agents/{id}", tag = "agents",
    params(("id" = String, Path, description = "Id or name"),
           ("If-None-Match" = Option<String>, Header, description = "Only where this is not its ETag")),
    responses((status = 200, body = Agent), (status = 304, description = "It has not changed"), Problems))]
async fn get(State(app): State<Shared>, Caller(actor): Caller, Path(id): Path<String>) -> Result<Response, Failure> {
    let row = agents::get(&app, &actor, &id).await?;
    Ok((etag(row.version), app.budgets.json(view::agent(row)).await?).into_response())
}

/// Replace an agent's definition; used from the next message on.
#[utoipa::path(put, path = "/agents/{id}", tag = "agents", request_body = AgentDefinition,
    params(("id" = String, Path, description = "Id or name"),
           ("If-Match" = Option<String>, Header, description = "Only where this is still its ETag")),
    responses((status = 200, body = Agent), Problems))]
async fn update(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(body): Json<AgentDefinition>,
) -> Result<Response, Failure> {
    let row = agents::update(&app, &actor, id, body, Conditions::of(&headers, &Method::PUT)?).await?;
    Ok((etag(row.version), app.budgets.json(view::agent(row)).await?).into_response())
}

/// Remove an agent that no session uses.
#[utoipa::path(delete, path = "/agents/{id}", tag = "agents",
    params(("id" = String, Path, description = "Id or name"),
           ("If-Match" = Option<String>, Header, description = "Only where this is still its ETag")),
    responses((status = 204, description = "It is gone"), Problems))]
async fn delete(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Failure> {
    agents::delete(&app, &actor, id, Conditions::of(&headers, &Method::DELETE)?).await?;
    Ok(StatusCode::NO_CONTENT)
}
