//! Makes answers for programs.

use std::convert::Infallible;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};

use crate::dialect::Dialect;
use crate::failure::Problem;

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");

/// An answer with a body that is at hand.
pub fn whole(status: StatusCode, headers: HeaderMap, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response.headers_mut().entry(CONTENT_TYPE).or_insert(JSON);
    response
}

/// JSON.
pub fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    whole(status, HeaderMap::new(), body)
}

/// A stream of events.
pub fn stream(headers: HeaderMap, pieces: impl Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let body = StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece))));
    let mut response = Response::new(body.boxed_unsync());
    *response.headers_mut() = headers;
    response.headers_mut().entry(CONTENT_TYPE).or_insert(EVENTS);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// An error in a dialect.
pub fn problem(dialect: Dialect, problem: &Problem) -> Response<Body> {
    let mut response = json(problem.status, dialect.error(problem.status, problem.code, &problem.message));
    if let Some(wait) = problem.retry_after {
        // Rounded up: who comes a little too early is refused again.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}
