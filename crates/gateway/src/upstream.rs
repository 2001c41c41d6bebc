//! Sends a call to its provider, again while that helps. Nothing has been passed on to the program before this is done, so nothing is
//! told twice.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyDataStream, Full};
use hyper::body::Incoming;
use serde::de::IgnoredAny;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::backoff::{self, Backoff, Trouble};
use crate::client::Client;
use crate::failure::Failure;
use crate::plan::Outgoing;
use crate::ports::Target;
use crate::recorder::Recorder;

/// Longest answer that is no stream, in bytes.
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Longest answer that is an error, in bytes.
const ERROR_BYTES_MAX: usize = 1024 * 1024;
/// Time for one answer, however it comes: who sends a byte now and then is not silent.
pub const ANSWER_TIME_MAX: Duration = Duration::from_secs(3600);

/// Pieces of an answer.
pub type Pieces = BoxStream<'static, Result<Bytes, Failure>>;

/// An answer of a provider.
pub enum Reply {
    /// All of it.
    Whole { status: StatusCode, headers: HeaderMap, body: Bytes },
    /// A stream: what came first, and what comes.
    Stream { headers: HeaderMap, first: Bytes, rest: Pieces },
}

impl Reply {
    fn trouble(&self) -> Option<(Trouble, Option<Duration>)> {
        match self {
            Self::Whole { status, headers, .. } => {
                Some((Trouble::of(*status, headers)?, backoff::retry_after(headers)))
            }
            Self::Stream { .. } => None,
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Whole { status, .. } => *status,
            Self::Stream { .. } => StatusCode::OK,
        }
    }
}

/// Sends a call until there is an answer, or no more sense in it.
pub async fn send(
    client: &Client,
    outgoing: &Outgoing,
    target: &Target,
    cancelled: &CancellationToken,
    recorder: &mut Recorder,
) -> Result<Reply, Failure> {
    let mut backoff = Backoff::new();
    loop {
        recorder.attempt();
        let attempt = Box::pin(attempt(client, outgoing, target.timeout));
        let result = unless(cancelled, attempt).await?;
        let trouble = match &result {
            Ok(reply) => {
                recorder.status(reply.status());
                reply.trouble()
            }
            Err(failure) => failure.is_transient().then_some((Trouble::Fault, None)),
        };
        let wait = trouble.and_then(|(trouble, retry_after)| backoff.next(trouble, retry_after));
        let Some(wait) = wait else { return result };
        tracing::debug!(provider = target.provider, ?trouble, ?wait, "a call is tried again");
        drop(result);
        unless(cancelled, sleep(wait)).await?;
    }
}

/// Works, unless the call is cancelled first.
async fn unless<T>(cancelled: &CancellationToken, work: impl Future<Output = T>) -> Result<T, Failure> {
    tokio::select! {
        biased;
        () = cancelled.cancelled() => Err(Failure::Cancelled),
        done = work => Ok(done),
    }
}

/// The next piece, unless the call is cancelled or nothing comes for too long. At `end`, an answer has taken too long.
pub async fn next_piece(
    pieces: &mut (impl Stream<Item = Result<Bytes, Failure>> + Unpin),
    cancelled: &CancellationToken,
    silence_max: Duration,
    end: Instant,
) -> Result<Option<Bytes>, Failure> {
    let silent = Instant::now() + silence_max;
    match unless(cancelled, timeout_at(silent.min(end), pieces.next())).await? {
        Ok(_) if Instant::now() >= end => Err(Failure::TooLong),
        Ok(piece) => piece.transpose(),
        Err(_) if end <= silent => Err(Failure::TooLong),
        Err(_) => Err(Failure::Silent(silence_max)),
    }
}

async fn attempt(client: &Client, outgoing: &Outgoing, silence_max: Duration) -> Result<Reply, Failure> {
    let mut request = Request::new(Full::new(outgoing.body.clone()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = outgoing.uri.clone();
    *request.headers_mut() = outgoing.headers.clone();
    let deadline = Instant::now() + silence_max;
    let silent = |_| Failure::Silent(silence_max);
    let response = timeout_at(deadline, client.request(request)).await.map_err(silent)??;
    let (status, headers, mut pieces) = taken_apart(response)?;
    if !(status.is_success() && outgoing.is_streaming && is_stream(&headers)) {
        let bytes_max = if status.is_success() { ANSWER_BYTES_MAX } else { ERROR_BYTES_MAX };
        let body = collect(pieces, bytes_max, deadline, silence_max).await?;
        if status.is_success() && serde_json::from_slice::<IgnoredAny>(&body).is_err() {
            return Err(Failure::Garbage("it is no JSON"));
        }
        return Ok(Reply::Whole { status, headers, body });
    }
    // An answer without a single byte is none, and the next attempt may bring one.
    let first = loop {
        match timeout_at(deadline, pieces.next()).await.map_err(silent)? {
            Some(piece) => {
                let piece = piece?;
                if !piece.is_empty() {
                    break piece;
                }
            }
            None => return Err(Failure::Closed),
        }
    };
    Ok(Reply::Stream { headers, first, rest: pieces })
}

fn taken_apart(response: Response<Incoming>) -> Result<(StatusCode, HeaderMap, Pieces), Failure> {
    let (head, body) = response.into_parts();
    if head.status.is_redirection() {
        return Err(Failure::Redirect(head.status));
    }
    if head.headers.get(CONTENT_ENCODING).is_some_and(|value| value != "identity") {
        return Err(Failure::Garbage("it is compressed, which was not asked for"));
    }
    let pieces = BodyDataStream::new(body).map_err(|_| Failure::Cut).boxed();
    Ok((head.status, head.headers, pieces))
}

fn is_stream(headers: &HeaderMap) -> bool {
    let said = headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    said.is_none_or(|said| said.trim_start().to_ascii_lowercase().starts_with("text/event-stream"))
}

/// Reads a whole answer.
pub async fn collect(
    mut pieces: Pieces,
    bytes_max: usize,
    first: Instant,
    silence_max: Duration,
) -> Result<Bytes, Failure> {
    let mut whole = BytesMut::new();
    let mut deadline = first;
    let end = Instant::now() + ANSWER_TIME_MAX;
    loop {
        let piece = timeout_at(deadline, pieces.next()).await.map_err(|_| Failure::Silent(silence_max))?;
        let Some(piece) = piece else { return Ok(whole.freeze()) };
        let piece = piece?;
        if whole.len() + piece.len() > bytes_max || Instant::now() >= end {
            return Err(Failure::TooLong);
        }
        whole.extend_from_slice(&piece);
        deadline = Instant::now() + silence_max;
    }
}

/// Reads an answer that is short, for a question that is no call.
pub async fn ask(
    client: &Client,
    request: Request<Full<Bytes>>,
    time: Duration,
) -> Result<(StatusCode, Bytes), Failure> {
    let deadline = Instant::now() + time;
    let silent = |_| Failure::Silent(time);
    let response = timeout_at(deadline, client.request(request)).await.map_err(silent)??;
    let (status, _, pieces) = taken_apart(response)?;
    let body = timeout_at(deadline, collect(pieces, ANSWER_BYTES_MAX, deadline, time)).await.map_err(silent)??;
    Ok((status, body))
}
