//! `/sessions/{id}/events`

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, Stream};
use raworc_api::event::{Event, ListEvents};
use raworc_api::page::Page;
use raworc_api::problem::{Code, Problem};
use raworc_core::ids::SessionId;
use raworc_core::limits::PAGE_BYTES_MAX;
use raworc_store::Read;
use raworc_store::events::{self, EventRow};
use raworc_store::sessions::SessionRow;
use raworc_workspace::FileError;
use tokio::sync::{OwnedSemaphorePermit, watch};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::Shared;
use crate::error::Failure;
use crate::http::extract::{Caller, Path, Query};
use crate::http::negotiate::{EVENTS, JSON, negotiate};
use crate::http::page::page_of;
use crate::http::problems::Problems;
use crate::policy::budgets::{Charge, SMALL_BYTES};
use crate::policy::lease::Lease;
use crate::sync::blocking;
use crate::verbs::check::page_limit;
use crate::verbs::find::{self, Purpose};
use crate::view;

/// A comment is sent this often where nothing happens, so that a broken connection is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a browser waits before it connects again.
const RETRY: Duration = Duration::from_secs(1);
/// Rows that a stream holds at a time.
const STREAM_ROWS: u32 = 64;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(list))
}

/// The session's log after `after`: a page of JSON, or, for `Accept: text/event-stream`, a stream that goes on. A stream ends
/// when the session is deleted and all of its log is sent; there is none (204) of one whose log the client has.
#[utoipa::path(get, path = "/sessions/{id}/events", tag = "events",
    params(("id" = String, Path, description = "Id or name"), ListEvents,
           ("Last-Event-ID" = Option<u64>, Header, description = "For streams: only events after this one, and after `after`")),
    responses((status = 200, content((Page<Event> = "application/json"), (String = "text/event-stream"))),
              (status = 204, description = "The session is deleted, and nothing more comes: do not connect again"), Problems))]
async fn list(
    State(app): State<Shared>,
    Caller(actor): Caller,
    lease: Lease,
    Path(id): Path<String>,
    Query(query): Query<ListEvents>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let limit = page_limit(query.limit)?;
    let kind = negotiate(&headers, &[JSON, EVENTS])?;
    let mut connection = app.store.read().await?;
    let session = find::session(&mut connection, &actor, &id, Purpose::Read).await?;
    let after = query.after.unwrap_or(0);
    let mut answer = if kind == EVENTS {
        drop(connection);
        stream(&app, &lease, &session, after.max(last_event_id(&headers, &session)?))?
    } else {
        let batch = events::batch(&mut connection, session.id, after, (limit, PAGE_BYTES_MAX)).await?;
        // So few readers are there that what they read together is not much.
        let answer = app.budgets.json(page_of(batch, |row| row.seq.to_string(), view::event)).await?;
        drop(connection);
        answer
    };
    answer.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    Ok(answer)
}

/// The event that the client saw last: a browser that connects again sends it beside the query it began with. 0 where it
/// does not say.
fn last_event_id(headers: &HeaderMap, session: &SessionRow) -> Result<u64, Failure> {
    let wrong = |detail: String| Err(Problem::new(Code::InvalidRequest, detail).into());
    let text = headers.get("last-event-id").map_or("", |value| value.to_str().unwrap_or("?").trim());
    if text.is_empty() {
        return Ok(0);
    }
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse().ok().filter(|_| digits) {
        None => wrong("Last-Event-ID must be the id of an event, a whole number".to_owned()),
        Some(seq) if seq > session.last_seq => wrong(format!(
            "Last-Event-ID is {seq}, but the newest event of this session is {}; begin again without it",
            session.last_seq
        )),
        Some(seq) => Ok(seq),
    }
}

fn stream(app: &Shared, lease: &Lease, session: &SessionRow, after: u64) -> Result<Response, Failure> {
    if session.machine.deleted_at.is_some() && after >= session.last_seq {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let follow = Follow {
        app: app.clone(),
        lease: lease.clone(),
        session: session.id,
        after,
        rows: VecDeque::new(),
        is_last: false,
        is_first: true,
        charge: None,
        changes: app.hub.subscribe(session.id),
        _place: app.budgets.stream(lease.account())?,
    };
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok(Sse::new(follow.events()).keep_alive(keep_alive).into_response())
}

/// Events from the rows, for ever; a notice only says when to look again. Ends when the server stops, when the session is
/// deleted, and when whoever follows may no longer see them. At most a few small rows are held, or one that is long and
/// counted.
struct Follow {
    app: Shared,
    lease: Lease,
    session: SessionId,
    after: u64,
    rows: VecDeque<EventRow>,
    /// Nothing comes after these rows.
    is_last: bool,
    is_first: bool,
    /// Of the row that is long, until the next one is asked for.
    charge: Option<Charge>,
    changes: watch::Receiver<()>,
    _place: OwnedSemaphorePermit,
}

impl Follow {
    fn events(self) -> impl Stream<Item = Result<sse::Event, Infallible>> {
        stream::unfold(self, |mut follow| async move {
            match follow.next().await {
                Ok(event) => Some((Ok(event?), follow)),
                Err(error) => {
                    // The client resumes where it was, or is told then why it cannot.
                    tracing::warn!(session = %follow.session, %error, "a stream of events ends");
                    None
                }
            }
        })
    }

    async fn next(&mut self) -> Result<Option<sse::Event>, Failure> {
        loop {
            if let Some(row) = self.rows.pop_front() {
                self.after = row.seq;
                return self.show(row).await.map(Some);
            }
            self.charge = None;
            if self.is_last || self.app.stopping.is_cancelled() {
                return Ok(None);
            }
            self.changes.mark_unchanged();
            let stopping = self.app.stopping.clone();
            tokio::select! {
                loaded = self.load() => loaded?,
                () = stopping.cancelled() => return Ok(None),
            }
            if self.rows.is_empty() && !self.is_last {
                tokio::select! {
                    changed = self.changes.changed() => if changed.is_err() { return Ok(None) },
                    () = stopping.cancelled() => return Ok(None),
                }
            }
        }
    }

    async fn load(&mut self) -> Result<(), Failure> {
        let mut connection = self.app.store.read().await?;
        let next = events::next_bytes(&mut connection, self.session, self.after).await?;
        if let Some(bytes) = next.filter(|bytes| *bytes > SMALL_BYTES) {
            // Others are to have the connection while this one waits.
            drop(connection);
            self.charge = self.app.budgets.answers.wait(self.lease.account(), bytes).await;
            connection = self.app.store.read().await?;
        }
        let session = self.look(&mut connection).await?;
        let bounds = (STREAM_ROWS, SMALL_BYTES);
        let batch = events::batch(&mut connection, self.session, self.after, bounds).await?;
        self.is_last = session.machine.deleted_at.is_some() && !batch.has_more;
        self.rows = batch.rows.into();
        Ok(())
    }

    /// The session, where whoever follows may still see it.
    async fn look(&self, connection: &mut Read) -> Result<SessionRow, Failure> {
        find::session(connection, self.lease.actor(), &self.session.to_string(), Purpose::Read).await
    }

    async fn show(&mut self, row: EventRow) -> Result<sse::Event, Failure> {
        let event = sse::Event::default().id(row.seq.to_string()).event(row.kind.clone());
        let event = if std::mem::take(&mut self.is_first) { event.retry(RETRY) } else { event };
        let write = move || event.json_data(view::event(row));
        let written = if self.charge.is_some() { blocking(write).await.map_err(FileError::Io)? } else { write() };
        Ok(written.map_err(|error| FileError::Io(std::io::Error::other(error)))?)
    }
}
