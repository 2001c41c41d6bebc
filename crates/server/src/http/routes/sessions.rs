//! `/sessions`

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use raworc_api::page::Page;
use raworc_api::problem::Problem;
use raworc_api::session::{AssignAgents, AssignedAgent, CreateSession, ListSessions, Session, UpdateSession};
use raworc_core::ids::{AgentId, SessionId};
use raworc_core::limits::PAGE_BYTES_MAX;
use raworc_core::permissions::{Actor, Role};
use raworc_core::time::Time;
use raworc_store::sessions::{self, Filter, SessionRow};
use raworc_store::{Read, StoreError, agents};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::Shared;
use crate::conditions::{Conditions, session_etag};
use crate::error::Failure;
use crate::http::extract::{Caller, Json, Path, Query, idempotency_key};
use crate::http::page::page_of;
use crate::http::problems::Problems;
use crate::verbs::check::page_limit;
use crate::verbs::find::{self, Purpose};
use crate::verbs::idempotent::Key;
use crate::verbs::lifecycle::{self, LifecycleAction};
use crate::verbs::{assign_agents, create_session, update_session};
use crate::view;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(get, update, delete))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(terminate))
        .routes(routes!(restart))
        .routes(routes!(restore))
        .routes(routes!(cancel))
        .routes(routes!(get_agents, put_agents))
}

/// A session as an answer, with its version.
pub(super) async fn show(app: &Shared, row: SessionRow) -> Result<Response, Failure> {
    let mut connection = app.store.read().await?;
    let agents = assigned(&mut connection, row.id, &mut HashMap::new()).await?;
    drop(connection);
    let version = session_etag(row.edition, row.version);
    Ok((version, app.budgets.json(view::session(row, agents)).await?).into_response())
}

/// Create a session.
#[utoipa::path(post, path = "/sessions", tag = "sessions", request_body = CreateSession,
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key makes one session only")),
    responses((status = 201, body = Session), Problems))]
async fn create(
    State(app): State<Shared>,
    Caller(actor): Caller,
    headers: HeaderMap,
    Json(body): Json<CreateSession>,
) -> Result<Response, Failure> {
    let key = idempotency_key(&headers)?.map(|key| Key::new(key, "POST /sessions", &body)).transpose()?;
    let row = create_session::create_session(&app, &actor, body, key).await?;
    let location = [(header::LOCATION, format!("{}/sessions/{}", raworc_api::PREFIX, row.id))];
    Ok((StatusCode::CREATED, location, show(&app, row).await?).into_response())
}

/// List sessions, newest first. A member sees their own.
#[utoipa::path(get, path = "/sessions", tag = "sessions", params(ListSessions),
    responses((status = 200, body = Page<Session>), Problems))]
async fn list(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Query(query): Query<ListSessions>,
) -> Result<Response, Failure> {
    let limit = page_limit(query.limit)?;
    let filter = filter(&actor, query)?;
    let read = app.scan(move |connection| Box::pin(async move { listed(connection, &filter, limit).await }));
    let (page, _place) = read.await?;
    app.budgets.json(page).await
}

async fn listed(connection: &mut Read, filter: &Filter, limit: u32) -> Result<Page<Session>, Failure> {
    let batch = sessions::list(connection, filter, (limit, PAGE_BYTES_MAX)).await?;
    let page = page_of(batch, |row| format!("{}:{}", row.created_at.0, row.id), |row| row);
    let mut items = Vec::with_capacity(page.items.len());
    // Sessions have few different agents, and those may be long.
    let mut known = HashMap::new();
    for row in page.items {
        let agents = assigned(connection, row.id, &mut known).await?;
        items.push(view::session(row, agents));
    }
    Ok(Page { items, next_cursor: page.next_cursor, damaged: page.damaged })
}

/// The agents of a session as it lists them; `known` are those that were looked up before.
async fn assigned(
    connection: &mut Read,
    session: SessionId,
    known: &mut HashMap<AgentId, AssignedAgent>,
) -> Result<Vec<AssignedAgent>, Failure> {
    let mut all = Vec::new();
    for id in agents::ids_of_session(connection, session).await? {
        if let Entry::Vacant(place) = known.entry(id) {
            match agents::find(connection, &id.to_string()).await {
                Ok(Some(row)) => drop(place.insert(view::assigned(row))),
                Ok(None) | Err(StoreError::Damaged(_)) => continue,
                Err(error) => return Err(error.into()),
            }
        }
        all.extend(known.get(&id).cloned());
    }
    Ok(all)
}

fn filter(actor: &Actor, query: ListSessions) -> Result<Filter, Failure> {
    Ok(Filter {
        owner: (actor.role != Role::Admin).then_some(actor.account),
        owner_name: query.created_by,
        state: query.state,
        parent: query.parent,
        name_contains: query.q,
        name: None,
        include_deleted: query.include_deleted,
        after: query.cursor.map(|cursor| parse_cursor(&cursor)).transpose()?,
    })
}

fn parse_cursor(text: &str) -> Result<(Time, SessionId), Failure> {
    text.split_once(':')
        .and_then(|(at, id)| Some((Time(at.parse().ok()?), id.parse().ok()?)))
        .ok_or_else(|| Problem::field("cursor", "must be the next_cursor of an earlier page").into())
}

/// Get a session.
#[utoipa::path(get, path = "/sessions/{id}", tag = "sessions",
    params(("id" = String, Path, description = "Id or name"),
           ("If-None-Match" = Option<String>, Header, description = "Only where this is not its ETag")),
    responses((status = 200, body = Session), (status = 304, description = "It has not changed"), Problems))]
async fn get(State(app): State<Shared>, Caller(actor): Caller, Path(id): Path<String>) -> Result<Response, Failure> {
    let row = {
        let mut connection = app.store.read().await?;
        find::session(&mut connection, &actor, &id, Purpose::Read).await?
    };
    show(&app, row).await
}

/// Change a session; what the body leaves out stays.
#[utoipa::path(put, path = "/sessions/{id}", tag = "sessions", request_body = UpdateSession,
    params(("id" = String, Path, description = "Id or name"),
           ("If-Match" = Option<String>, Header, description = "Only where this is still its ETag")),
    responses((status = 200, body = Session), Problems))]
async fn update(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(body): Json<UpdateSession>,
) -> Result<Response, Failure> {
    let conditions = Conditions::of(&headers, &Method::PUT)?;
    let row = update_session::update_session(&app, &actor, id, body, conditions).await?;
    show(&app, row).await
}

/// Assign agents; used from the next message on.
#[utoipa::path(put, path = "/sessions/{id}/agents", tag = "sessions", request_body = AssignAgents,
    params(("id" = String, Path, description = "Id or name")),
    responses((status = 200, body = Vec<AssignedAgent>), Problems))]
async fn put_agents(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(id): Path<String>,
    Json(body): Json<AssignAgents>,
) -> Result<axum::Json<Vec<AssignedAgent>>, Failure> {
    let rows = assign_agents::assign_agents(&app, &actor, id, body.agent_ids).await?;
    Ok(axum::Json(rows.into_iter().map(view::assigned).collect()))
}

/// List the session's agents, the one that answers by default first.
#[utoipa::path(get, path = "/sessions/{id}/agents", tag = "sessions",
    params(("id" = String, Path, description = "Id or name")),
    responses((status = 200, body = Vec<AssignedAgent>), Problems))]
async fn get_agents(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(id): Path<String>,
) -> Result<axum::Json<Vec<AssignedAgent>>, Failure> {
    let mut connection = app.store.read().await?;
    let row = find::session(&mut connection, &actor, &id, Purpose::Read).await?;
    let rows = agents::of_session(&mut connection, row.id).await?;
    Ok(axum::Json(rows.into_iter().map(view::assigned).collect()))
}

/// One action on a session's life: the handler and its place in the document.
macro_rules! lifecycle_routes {
    ($($(#[$doc:meta])* $name:ident, $method:ident, $path:literal, $action:ident $(, $status:literal $said:literal)?;)*) => {$(
        $(#[$doc])*
        #[utoipa::path($method, path = $path, tag = "sessions",
            params(("id" = String, Path, description = "Id or name")),
            responses((status = 200, body = Session), $((status = $status, description = $said),)? Problems))]
        async fn $name(
            State(app): State<Shared>,
            Caller(actor): Caller,
            Path(id): Path<String>,
            headers: HeaderMap,
        ) -> Result<Response, Failure> {
            // Only DELETE comes here with any.
            let conditions = Conditions::of(&headers, &Method::DELETE)?;
            match lifecycle::apply(&app, &actor, id.clone(), LifecycleAction::$action, conditions).await {
                Err(failure) if LifecycleAction::$action == LifecycleAction::Delete && failure.damage().is_some() => {
                    lifecycle::delete_damaged(&app, &actor, &id, failure).await?;
                    Ok(StatusCode::NO_CONTENT.into_response())
                }
                outcome => show(&app, outcome?).await,
            }
        }
    )*};
}

lifecycle_routes! {
    /// Delete a session: end it and hide it. `restore` brings it back.
    delete, delete, "/sessions/{id}", Delete, 204 "Deleted; its record is damaged, so there is nothing to show";
    /// Pause a session: messages queue and do not wake it. A running message goes back to the queue.
    pause, post, "/sessions/{id}/pause", Pause;
    /// Resume a paused session, or wake one that rests.
    resume, post, "/sessions/{id}/resume", Resume;
    /// End a session: running and queued messages are cancelled, the workspace is kept.
    terminate, post, "/sessions/{id}/terminate", Terminate;
    /// Give a session a new container. A running message goes back to the queue.
    restart, post, "/sessions/{id}/restart", Restart;
    /// Bring a terminated or deleted session back.
    restore, post, "/sessions/{id}/restore", Restore;
    /// Cancel the message that is being worked on.
    cancel, post, "/sessions/{id}/cancel", Cancel;
}
