//! `/sessions/{id}/checkpoints`

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use raworc_api::checkpoint::{ChangeKind, Checkpoint, CreateCheckpoint, Diff, DiffQuery, Difference, ListCheckpoints};
use raworc_api::page::Page;
use raworc_api::problem::Problem;
use raworc_api::session::{RemixSession, Session};
use raworc_workspace::layers::compare::DifferenceKind;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::sessions::show as show_session;
use crate::app::Shared;
use crate::error::Failure;
use crate::http::extract::{Caller, Json, Path, Query, idempotency_key};
use crate::http::page::page;
use crate::http::problems::Problems;
use crate::verbs::check::page_limit;
use crate::verbs::checkpoints;
use crate::verbs::idempotent::Key;
use crate::verbs::{remix, rewind};
use crate::view;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(get, delete))
        .routes(routes!(diff))
        .routes(routes!(restore))
        .routes(routes!(remix_session))
}

/// Take a checkpoint of the workspace. Answers when it is safe, or could not be taken.
#[utoipa::path(post, path = "/sessions/{id}/checkpoints", tag = "checkpoints", request_body = CreateCheckpoint,
    params(("id" = String, Path, description = "Id or name")),
    responses((status = 201, body = Checkpoint), Problems))]
async fn create(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(id): Path<String>,
    Json(body): Json<CreateCheckpoint>,
) -> Result<Response, Failure> {
    let row = checkpoints::request(&app, &actor, id, body.label).await?;
    let place = format!("{}/sessions/{}/checkpoints/{}", raworc_api::PREFIX, row.session_id, row.n);
    Ok((StatusCode::CREATED, [(header::LOCATION, place)], axum::Json(view::checkpoint(row))).into_response())
}

/// List checkpoints, oldest first.
#[utoipa::path(get, path = "/sessions/{id}/checkpoints", tag = "checkpoints",
    params(("id" = String, Path, description = "Id or name"), ListCheckpoints),
    responses((status = 200, body = Page<Checkpoint>), Problems))]
async fn list(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(id): Path<String>,
    Query(query): Query<ListCheckpoints>,
) -> Result<axum::Json<Page<Checkpoint>>, Failure> {
    let limit = page_limit(query.limit)?;
    let after = match query.cursor {
        Some(cursor) => {
            cursor.parse().map_err(|_| Problem::field("cursor", "must be the next_cursor of an earlier page"))?
        }
        None => 0,
    };
    let rows = checkpoints::list(&app, &actor, &id, after, limit + 1).await?;
    Ok(axum::Json(page(rows, limit, |row| row.n.to_string(), view::checkpoint)))
}

/// Get a checkpoint.
#[utoipa::path(get, path = "/sessions/{id}/checkpoints/{n}", tag = "checkpoints",
    params(("id" = String, Path, description = "Id or name"), ("n" = String, Path, description = "A number, or a label")),
    responses((status = 200, body = Checkpoint), Problems))]
async fn get(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path((id, n)): Path<(String, String)>,
) -> Result<axum::Json<Checkpoint>, Failure> {
    Ok(axum::Json(view::checkpoint(checkpoints::get(&app, &actor, &id, &n).await?)))
}

/// Give up a checkpoint. What it alone needs is removed from the disk in a while.
#[utoipa::path(delete, path = "/sessions/{id}/checkpoints/{n}", tag = "checkpoints",
    params(("id" = String, Path, description = "Id or name"), ("n" = u64, Path)),
    responses((status = 204), Problems))]
async fn delete(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path((id, n)): Path<(String, u64)>,
) -> Result<StatusCode, Failure> {
    checkpoints::delete(&app, &actor, id, n).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Compare a checkpoint, or `now`, with another.
#[utoipa::path(get, path = "/sessions/{id}/checkpoints/{n}/diff", tag = "checkpoints",
    params(("id" = String, Path, description = "Id or name"), ("n" = String, Path, description = "A number, a label, or `now`"),
           DiffQuery),
    responses((status = 200, body = Diff), Problems))]
async fn diff(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path((id, n)): Path<(String, String)>,
    Query(query): Query<DiffQuery>,
) -> Result<Response, Failure> {
    let found = checkpoints::diff(&app, &actor, &id, (query.from, &n), query.path).await?;
    let items = found.items.into_iter().map(|item| (view::name(&item.path), item));
    let items = items.map(|((path, path_bytes), item)| Difference {
        path,
        path_bytes,
        change: match item.change {
            DifferenceKind::Added => ChangeKind::Added,
            DifferenceKind::Changed => ChangeKind::Changed,
            DifferenceKind::Deleted => ChangeKind::Deleted,
        },
        kind: view::kind(item.kind),
        size_before: item.size_before,
        size_after: item.size_after,
    });
    let diff = Diff {
        from: found.from,
        to: n,
        items: items.collect(),
        truncated: found.is_truncated,
        unified: found.unified,
        is_binary: found.is_binary,
    };
    app.budgets.json(diff).await
}

/// Go back to a checkpoint, workspace and conversation. What is there now is saved first, as a checkpoint; what is worked on
/// or waits is cancelled.
#[utoipa::path(post, path = "/sessions/{id}/checkpoints/{n}/restore", tag = "checkpoints",
    params(("id" = String, Path, description = "Id or name"), ("n" = u64, Path)),
    responses((status = 200, body = Session), Problems))]
async fn restore(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path((id, n)): Path<(String, u64)>,
) -> Result<Response, Failure> {
    let row = rewind::rewind(&app, &actor, id, n).await?;
    show_session(&app, row).await
}

/// Make a session from a checkpoint of this one, or from what is there now: its configuration with what the body changes, its
/// conversation up to there, its workspace as of then.
#[utoipa::path(post, path = "/sessions/{id}/remix", tag = "sessions", request_body = RemixSession,
    params(("id" = String, Path, description = "Id or name"),
           ("Idempotency-Key" = Option<String>, Header, description = "The same key makes one session only")),
    responses((status = 201, body = Session), Problems))]
async fn remix_session(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(body): Json<RemixSession>,
) -> Result<Response, Failure> {
    let key = idempotency_key(&headers)?.map(|key| Key::new(key, &format!("POST /sessions/{id}/remix"), &body));
    let row = remix::remix(&app, &actor, id, body, key.transpose()?).await?;
    let location = [(header::LOCATION, format!("{}/sessions/{}", raworc_api::PREFIX, row.id))];
    Ok((StatusCode::CREATED, location, show_session(&app, row).await?).into_response())
}
