//! `/sessions/{id}/messages` and `/sessions/{id}/exec`

use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use raworc_api::message::{ListMessages, Message, MessageWithReply, SendMessage, WaitQuery};
use raworc_api::page::Page;
use raworc_api::problem::Problem;
use raworc_api::workspace::{Exec, ExecResult};
use raworc_core::ids::{MessageId, SessionId};
use raworc_core::limits::{PAGE_BYTES_MAX, WAIT_MAX};
use raworc_store::messages;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::Shared;
use crate::error::Failure;
use crate::http::extract::{Caller, Json, Path, Query, idempotency_key};
use crate::http::page::page_of;
use crate::http::problems::Problems;
use crate::verbs::check::page_limit;
use crate::verbs::find::{self, Purpose};
use crate::verbs::idempotent::Key;
use crate::verbs::{cancel_message, exec, send_message};
use crate::view;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(send, list)).routes(routes!(get)).routes(routes!(cancel)).routes(routes!(run))
}

/// Send a message. Answered once it is stored for good; with `wait_seconds`, once it has ended.
#[utoipa::path(post, path = "/sessions/{id}/messages", tag = "messages", request_body = SendMessage,
    params(("id" = String, Path, description = "Id or name"), WaitQuery,
           ("Idempotency-Key" = Option<String>, Header, description = "The same key sends one message only")),
    responses((status = 201, description = "Stored", body = MessageWithReply),
              (status = 200, description = "Ended within wait_seconds", body = MessageWithReply),
              (status = 202, description = "Not ended within wait_seconds", body = MessageWithReply), Problems))]
async fn send(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(id): Path<String>,
    Query(query): Query<WaitQuery>,
    headers: HeaderMap,
    Json(body): Json<SendMessage>,
) -> Result<Response, Failure> {
    let wait = wait(query)?;
    let key = match idempotency_key(&headers)? {
        Some(key) => {
            // By its id: a name may mean another session another time.
            let mut connection = app.store.read().await?;
            let session = find::session(&mut connection, &actor, &id, Purpose::Use).await?.id;
            Some(Key::new(key, &format!("POST /sessions/{session}/messages"), &body)?)
        }
        None => None,
    };
    let row = send_message::send_message(&app, &actor, id, body, key).await?;
    let Some(wait) = wait else {
        let body = MessageWithReply { message: view::message(row), reply: None };
        return Ok((StatusCode::CREATED, app.budgets.json(body).await?).into_response());
    };
    let answer = until_ended(&app, row.session_id, row.id, wait).await?;
    let status = if answer.message.status.is_final() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, app.budgets.json(answer).await?).into_response())
}

/// Get a message and its answer; with `wait_seconds`, once it has ended.
#[utoipa::path(get, path = "/sessions/{id}/messages/{message_id}", tag = "messages",
    params(("id" = String, Path, description = "Id or name of the session"),
           ("message_id" = String, Path, format = "uuid"), WaitQuery),
    responses((status = 200, body = MessageWithReply), Problems))]
async fn get(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path((id, message)): Path<(String, String)>,
    Query(query): Query<WaitQuery>,
) -> Result<Response, Failure> {
    let wait = wait(query)?.unwrap_or(Duration::ZERO);
    let session = {
        let mut connection = app.store.read().await?;
        find::session(&mut connection, &actor, &id, Purpose::Read).await?.id
    };
    let message: MessageId = message.parse().map_err(|_| Failure::not_found("message", &message))?;
    app.budgets.json(until_ended(&app, session, message, wait).await?).await
}

/// Cancel a message: one that waits never runs; one that is worked on is ended, as by `POST …/cancel`.
#[utoipa::path(post, path = "/sessions/{id}/messages/{message_id}/cancel", tag = "messages",
    params(("id" = String, Path, description = "Id or name of the session"),
           ("message_id" = String, Path, format = "uuid"), WaitQuery),
    responses((status = 200, description = "Cancelled, or being cancelled", body = MessageWithReply), Problems))]
async fn cancel(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path((id, message)): Path<(String, String)>,
    Query(query): Query<WaitQuery>,
) -> Result<axum::Json<MessageWithReply>, Failure> {
    let wait = wait(query)?.unwrap_or(Duration::ZERO);
    let row = cancel_message::cancel_message(&app, &actor, id, message).await?;
    Ok(axum::Json(until_ended(&app, row.session_id, row.id, wait).await?))
}

/// List the conversation, oldest first.
#[utoipa::path(get, path = "/sessions/{id}/messages", tag = "messages",
    params(("id" = String, Path, description = "Id or name"), ListMessages),
    responses((status = 200, body = Page<Message>), Problems))]
async fn list(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(id): Path<String>,
    Query(query): Query<ListMessages>,
) -> Result<Response, Failure> {
    let limit = page_limit(query.limit)?;
    let after = match &query.cursor {
        None => 0,
        Some(text) => {
            text.parse().map_err(|_| Problem::field("cursor", "must be the next_cursor of an earlier page"))?
        }
    };
    let mut connection = app.store.read().await?;
    let session = find::session(&mut connection, &actor, &id, Purpose::Read).await?;
    let bounds = (limit, PAGE_BYTES_MAX);
    let batch = messages::list(&mut connection, session.id, query.status, after, bounds).await?;
    // So few readers are there that what they read together is not much.
    let answer = app.budgets.json(page_of(batch, |row| row.seq.to_string(), view::message)).await;
    drop(connection);
    answer
}

/// Run a command beside the conversation, and wait for its end. Wakes a session that rests.
#[utoipa::path(post, path = "/sessions/{id}/exec", tag = "workspace", request_body = Exec,
    params(("id" = String, Path, description = "Id or name")),
    responses((status = 200, body = ExecResult), Problems))]
async fn run(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(id): Path<String>,
    Json(body): Json<Exec>,
) -> Result<Response, Failure> {
    app.budgets.json(exec::exec(&app, &actor, id, body).await?).await
}

fn wait(query: WaitQuery) -> Result<Option<Duration>, Failure> {
    match query.wait_seconds.map(Duration::from_secs) {
        Some(wait) if wait > WAIT_MAX => {
            Err(Problem::field("wait_seconds", format!("must be 0 to {}", WAIT_MAX.as_secs())).into())
        }
        wait => Ok(wait),
    }
}

/// The message once it has ended, or after `wait` as it then is.
async fn until_ended(
    app: &Shared,
    session: SessionId,
    id: MessageId,
    wait: Duration,
) -> Result<MessageWithReply, Failure> {
    let mut changes = app.hub.subscribe(session);
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        {
            let mut connection = app.store.read().await?;
            let found = messages::find(&mut connection, session, id).await?;
            let row = found.ok_or_else(|| Failure::not_found("message", &id.to_string()))?;
            let over = tokio::time::Instant::now() >= deadline || app.stopping.is_cancelled();
            if row.status.is_final() || over {
                let reply = messages::reply_to(&mut connection, id).await?.map(view::message);
                return Ok(MessageWithReply { message: view::message(row), reply });
            }
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep_until(deadline) => {}
            () = app.stopping.cancelled() => {}
        }
    }
}
