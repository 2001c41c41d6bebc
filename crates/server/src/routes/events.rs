//! `/sessions/{id}/events`

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, Stream};
use raworc_api::event::{Event, ListEvents};
use raworc_api::page::Page;
use raworc_api::problem::{Code, Problem};
use raworc_core::ids::SessionId;
use raworc_core::limits::PAGE_ROWS_MAX;
use raworc_store::Sound;
use raworc_store::events::{self, EventRow};
use tokio::sync::watch;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::page;
use super::problems::Problems;
use crate::app::Shared;
use crate::error::Failure;
use crate::extract::{Bearer, Path, Query};
use crate::verbs::check::page_limit;
use crate::verbs::find::{self, Purpose};
use crate::view;

/// A comment is sent this often where nothing happens, so that a broken connection is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(list))
}

/// The session's log after `after`: a page of JSON, or, for `Accept: text/event-stream`, a stream that goes on.
#[utoipa::path(get, path = "/sessions/{id}/events", tag = "events",
    params(("id" = String, Path, description = "Id or name"), ListEvents,
           ("Last-Event-ID" = Option<u64>, Header, description = "As `after`, for streams that resume")),
    responses((status = 200, content((Page<Event> = "application/json"), (String = "text/event-stream"))), Problems))]
async fn list(
    State(app): State<Shared>,
    bearer: Bearer,
    Path(id): Path<String>,
    Query(query): Query<ListEvents>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let limit = page_limit(query.limit)?;
    let session = {
        let mut connection = app.store.read().await?;
        let actor = bearer.actor(&mut connection, app.now()).await?;
        find::session(&mut connection, &actor, &id, Purpose::Read).await?.id
    };
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accept.contains("text/event-stream") {
        let after = query.after.or(last_event_id(&headers)?).unwrap_or(0);
        let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
        return Ok(Sse::new(follow(app, bearer, session, after)).keep_alive(keep_alive).into_response());
    }
    let mut connection = app.store.read().await?;
    let rows = events::list(&mut connection, session, query.after.unwrap_or(0), limit + 1).await?;
    let rows = Sound { rows, damaged: Vec::new() };
    Ok(axum::Json(page(rows, limit, |row| row.seq.to_string(), view::event)).into_response())
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Failure> {
    let Some(value) = headers.get("last-event-id") else {
        return Ok(None);
    };
    let seq = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    seq.map(Some).ok_or_else(|| {
        Problem::new(Code::InvalidRequest, "Last-Event-ID must be the id of an event, a whole number").into()
    })
}

struct Follow {
    app: Shared,
    bearer: Bearer,
    session: SessionId,
    after: u64,
    rows: VecDeque<EventRow>,
    changes: watch::Receiver<()>,
}

/// Events from the rows, for ever; a notice only says when to look again. Ends when the server stops, and when whoever follows may
/// no longer see them.
fn follow(
    app: Shared,
    bearer: Bearer,
    session: SessionId,
    after: u64,
) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    let changes = app.hub.subscribe(session);
    let follow = Follow { app, bearer, session, after, rows: VecDeque::new(), changes };
    stream::unfold(follow, |mut follow| async move {
        let row = follow.next().await?;
        let event = sse::Event::default().id(row.seq.to_string()).event(row.kind.clone());
        let event = event.json_data(view::event(row)).ok()?;
        Some((Ok(event), follow))
    })
}

impl Follow {
    async fn next(&mut self) -> Option<EventRow> {
        loop {
            if let Some(row) = self.rows.pop_front() {
                self.after = row.seq;
                return Some(row);
            }
            if self.app.stopping.is_cancelled() {
                return None;
            }
            self.changes.mark_unchanged();
            match self.load().await {
                Ok(rows) => self.rows = rows.into(),
                Err(error) => {
                    // The client resumes where it was, or is told then why it cannot.
                    tracing::warn!(session = %self.session, %error, "a stream of events ends");
                    return None;
                }
            }
            if self.rows.is_empty() {
                let stopping = self.app.stopping.clone();
                tokio::select! {
                    changed = self.changes.changed() => changed.ok()?,
                    () = stopping.cancelled() => return None,
                }
            }
        }
    }

    async fn load(&self) -> Result<Vec<EventRow>, Failure> {
        let mut connection = self.app.store.read().await?;
        let actor = self.bearer.actor(&mut connection, self.app.now()).await?;
        find::session(&mut connection, &actor, &self.session.to_string(), Purpose::Read).await?;
        Ok(events::list(&mut connection, self.session, self.after, PAGE_ROWS_MAX).await?)
    }
}
