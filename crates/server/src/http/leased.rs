//! Ends what a request is doing, and what is still being read or answered, when its [`Lease`] ends.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::{Body as HttpBody, Frame, SizeHint};
use raworc_api::PREFIX;
use raworc_core::ids::SessionId;
use tokio::sync::OwnedSemaphorePermit;

use crate::app::Shared;
use crate::error::{Failure, NotAllowed};
use crate::http::connections::Tracked;
use crate::http::extract::Bearer;
use crate::policy::budgets::{Charge, SMALL_BYTES};
use crate::policy::lease::Lease;
use crate::verbs::audit;

/// Longest piece of an answer, in bytes.
const SLICE_BYTES: usize = 16 * 1024;

/// Marks the answer to a request whose lease has ended: nothing more of it is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Over;

/// Marks an answer that is read for as long as this session is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct OfSession(pub SessionId);

/// Gives a request the lease of its token, and holds it to it. Requests without a token of use are none of its business.
pub(super) async fn hold(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let Ok(bearer) = Bearer::from_headers(request.headers()) else {
        return next.run(request).await;
    };
    let Ok(lease) = Lease::of(&app, bearer.hash()).await else {
        return next.run(request).await;
    };
    if let Some(tracked) = request.extensions().get::<Tracked>() {
        tracked.known();
    }
    let place = match app.budgets.request(lease.account()) {
        Ok(place) => place,
        Err(failure) => return failure.into_response(),
    };
    let mut request =
        if is_small(request.body()) { request } else { request.map(|body| until(body, &lease, None, false)) };
    request.extensions_mut().insert(lease.clone());
    let (method, uri, matched) =
        (request.method().clone(), request.uri().clone(), request.extensions().get::<MatchedPath>().cloned());
    let response = tokio::select! {
        biased;
        response = next.run(request) => response,
        failure = lease.ended() => return over(failure),
    };
    if response.extensions().get::<NotAllowed>().is_some() {
        let below = |path: &str| path.strip_prefix(PREFIX).unwrap_or(path).to_owned();
        let call = format!("{method} {}", matched.as_ref().map_or_else(String::new, |path| below(path.as_str())));
        audit::refused(&app, lease.actor(), call, &below(uri.path()));
    }
    // Work whose body broke off because of that says something else.
    if lease.is_over() && !response.status().is_success() {
        return over(lease.ended().await);
    }
    answer(&app, &lease, place, response).await
}

fn over(failure: Failure) -> Response {
    let mut response = failure.into_response();
    response.extensions_mut().insert(Over);
    response
}

/// The answer, to be read in the time and the room there is for it.
async fn answer(app: &Shared, lease: &Lease, place: OwnedSemaphorePermit, response: Response) -> Response {
    if is_small(response.body()) {
        return response;
    }
    let may_end = is_stream_of_events(response.headers());
    let session = response.extensions().get::<OfSession>().map(|of| of.0);
    let bytes = response.body().size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
    let charge = match bytes {
        // What comes bit by bit is counted where it is made.
        None => None,
        Some(bytes) => match app.budgets.answer(lease.account(), bytes).await {
            Ok(charge) => Some(charge),
            Err(failure) => return failure.into_response(),
        },
    };
    response.map(|body| {
        Body::new(Sliced { body: until(body, lease, session, may_end), rest: Bytes::new(), _held: (place, charge) })
    })
}

/// A body in pieces that are not long, so that no more than one of them waits in a connection, and what it holds until it is read.
struct Sliced {
    body: Body,
    rest: Bytes,
    _held: (OwnedSemaphorePermit, Option<Charge>),
}

impl HttpBody for Sliced {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(context))
                .map(|frame| frame.map(Frame::into_data))
            {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let length = self.rest.len().min(SLICE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut whole = SizeHint::new();
        whole.set_lower(hint.lower().saturating_add(rest));
        if let Some(upper) = hint.upper() {
            whole.set_upper(upper.saturating_add(rest));
        }
        whole
    }
}

fn is_small(body: &Body) -> bool {
    body.size_hint().exact().is_some_and(|bytes| bytes <= SMALL_BYTES as u64)
}

/// Such a stream is whole at any event; what is cut off anywhere else must not look whole.
fn is_stream_of_events(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    content_type.starts_with("text/event-stream")
}

/// The body, for as long as the lease holds (and the session is there); then it ends, or breaks.
fn until(body: Body, lease: &Lease, session: Option<SessionId>, may_end: bool) -> Body {
    let lease = lease.clone();
    let ended = Box::pin(async move {
        match session {
            Some(session) => lease.ended_on(session).await,
            None => lease.ended().await,
        };
    });
    Body::new(Until { body: Some(body), ended, may_end })
}

struct Until {
    /// Gone when the lease has ended.
    body: Option<Body>,
    ended: BoxFuture<'static, ()>,
    may_end: bool,
}

impl HttpBody for Until {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = self.body.as_mut() else { return Poll::Ready(None) };
        let frame = Pin::new(body).poll_frame(context);
        if self.ended.as_mut().poll(context).is_ready() {
            self.body = None;
            let broken = axum::Error::new(std::io::Error::other("the token or account of this request has ended"));
            return Poll::Ready(if self.may_end { None } else { Some(Err(broken)) });
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}
