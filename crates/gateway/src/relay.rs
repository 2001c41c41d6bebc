//! Passes the answer of a provider on to the program.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream;
use http::{HeaderMap, Response, StatusCode};
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::answer::{self, Body};
use crate::cancellable::Cancellable;
use crate::dialect::translate::{Exchange, StreamTranslator};
use crate::dialect::{Dialect, UsageFilter};
use crate::events::WholeEvents;
use crate::failure::{Failure, Problem};
use crate::headers;
use crate::plan::{Answers, Way};
use crate::ports::{Admission, CallEnd};
use crate::recorder::Recorder;
use crate::rooms::Place;
use crate::scrub::Scrub;
use crate::upstream::{ANSWER_TIME_MAX, Pieces, Reply, next_piece};

/// Longest streamed answer, in bytes.
const STREAM_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Characters of a provider's message that are recorded.
const MESSAGE_CHARACTERS_MAX: usize = 500;

/// A call that waits for its answer.
pub struct Waiting {
    /// What the program speaks.
    pub dialect: Dialect,
    pub answers: Answers,
    pub recorder: Recorder,
    /// Its place among the calls, kept until the answer has ended.
    pub place: Place,
    provider: String,
    timeout: Duration,
    cancelled: CancellationToken,
    scrub: Scrub,
}

impl Waiting {
    pub fn new(dialect: Dialect, answers: Answers, recorder: Recorder, place: Place, admission: &Admission) -> Self {
        let Admission { target, cancelled, .. } = admission;
        Self {
            dialect,
            answers,
            recorder,
            place,
            provider: target.provider.clone(),
            timeout: target.timeout,
            cancelled: cancelled.clone(),
            scrub: Scrub::new(target.key.as_ref()),
        }
    }

    /// Passes an answer on.
    pub async fn pass(mut self, reply: Reply) -> Response<Body> {
        self.recorder.first_byte();
        match reply {
            Reply::Stream { headers, first, rest } => self.stream(&headers, first, rest),
            Reply::Whole { status, headers, body } => {
                let headers = headers::to_program(&headers, &self.scrub, self.is_same());
                let body = self.scrub.whole(body);
                match status.is_success() {
                    true => self.whole(status, headers, body).await,
                    false => self.error(status, headers, body).await,
                }
            }
        }
    }

    /// Tells the program that there is no answer.
    pub async fn fail(self, failure: &Failure) -> Response<Body> {
        let problem = failure.problem(&self.provider);
        let end = if *failure == Failure::Cancelled { CallEnd::Cancelled } else { CallEnd::Failed };
        self.recorder.end(end, Some(problem.message.to_string())).await;
        answer::problem(self.dialect, &problem)
    }

    fn is_same(&self) -> bool {
        !matches!(self.answers.way, Way::Translated(_))
    }

    async fn whole(mut self, status: StatusCode, headers: HeaderMap, body: Bytes) -> Response<Body> {
        self.recorder.answer(self.answers.dialect, false);
        self.recorder.push(&body);
        // Clients take what has a good status for an answer.
        let inside = self.recorder.observed().and_then(|observed| observed.told);
        let status = inside.unwrap_or(status);
        let (status, body) = match &self.answers.way {
            Way::Same | Way::WithoutUsage => (status, body),
            Way::Translated(exchange) => match exchange.answer(&body) {
                Ok(translated) => (status, translated.into()),
                Err(failure) => {
                    let status = inside.unwrap_or(failure.status);
                    (status, self.dialect.error(status, &failure.code, &failure.message).into())
                }
            },
        };
        let failed = (!status.is_success()).then(|| format!("the provider {} answered with an error", self.provider));
        let failed = self.recorder.observed().and_then(|observed| observed.error.clone()).or(failed);
        self.recorder.end(CallEnd::Complete, failed).await;
        answer::whole(status, headers, body)
    }

    async fn error(mut self, status: StatusCode, headers: HeaderMap, body: Bytes) -> Response<Body> {
        self.recorder.push(&body);
        let said = message(&body).map(|said| format!(": {said}")).unwrap_or_default();
        let told = format!("the provider {} answered with status {}{said}", self.provider, status.as_u16());
        self.recorder.end(CallEnd::Complete, Some(told)).await;
        let is_json = serde_json::from_slice::<serde_json::Map<String, Value>>(&body).is_ok();
        match &self.answers.way {
            // What it says is about the key, which is no matter of the program's.
            _ if status == StatusCode::UNAUTHORIZED => {
                let message = format!(
                    "the provider {} does not take the key that the gateway has for it; an administrator has to set it",
                    self.provider
                );
                answer::problem(self.dialect, &Problem::new(status, "provider_refuses_key", message))
            }
            Way::Same | Way::WithoutUsage if is_json => answer::whole(status, headers, body),
            Way::Translated(exchange) if is_json => answer::whole(status, headers, exchange.error(status, &body)),
            _ => {
                let message = format!("the provider {} answered with status {}", self.provider, status.as_u16());
                let error = self.dialect.error(status, "provider_error", &message);
                let mut headers = headers;
                headers.remove(http::header::CONTENT_TYPE);
                answer::whole(status, headers, error)
            }
        }
    }

    fn stream(mut self, headers: &HeaderMap, first: Bytes, rest: Pieces) -> Response<Body> {
        let headers = headers::to_program(headers, &self.scrub, self.is_same());
        self.recorder.answer(self.answers.dialect, true);
        let transform = match &self.answers.way {
            Way::Same => Transform::Same,
            Way::WithoutUsage => Transform::WithoutUsage(UsageFilter::new()),
            Way::Translated(exchange) => Transform::translate(exchange),
        };
        let relay = Relay {
            first: Some(first),
            rest: Some(Cancellable::new(rest, self.cancelled.clone())),
            transform,
            events: WholeEvents::default(),
            recorder: Some(self.recorder),
            scrub: self.scrub,
            cancelled: self.cancelled,
            silence_max: self.timeout,
            ends: Instant::now() + ANSWER_TIME_MAX,
            provider: self.provider,
            dialect: self.dialect,
            bytes_left: STREAM_BYTES_MAX,
            _place: self.place,
        };
        answer::stream(
            headers,
            stream::unfold(Box::new(relay), |mut relay| async move {
                let piece = relay.next().await?;
                Some((piece, relay))
            }),
        )
    }
}

/// What the body of an error says, in one line.
pub fn message(body: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let said = [&value["error"]["message"], &value["error"], &value["message"], &value["detail"]];
    let said = said.iter().find_map(|said| said.as_str())?;
    Some(said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_CHARACTERS_MAX).collect())
}

enum Transform {
    Same,
    WithoutUsage(UsageFilter),
    Translate(Option<Box<StreamTranslator>>),
}

impl Transform {
    fn translate(exchange: &Exchange) -> Self {
        Self::Translate(Some(Box::new(StreamTranslator::new(exchange))))
    }
}

/// A stream on its way. Dropped, it ends the provider's connection and records that the program went away.
struct Relay {
    first: Option<Bytes>,
    /// Absent at the end.
    rest: Option<Cancellable>,
    transform: Transform,
    events: WholeEvents,
    /// Absent at the end.
    recorder: Option<Recorder>,
    scrub: Scrub,
    cancelled: CancellationToken,
    silence_max: Duration,
    /// When it has taken too long.
    ends: Instant,
    provider: String,
    dialect: Dialect,
    bytes_left: usize,
    _place: Place,
}

impl Relay {
    /// What is passed on next.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let rest = self.rest.as_mut()?;
            let piece = match self.first.take() {
                Some(first) => Ok(Some(first)),
                None => next_piece(rest, &self.cancelled, self.silence_max, self.ends).await,
            };
            let last = match piece {
                Ok(Some(piece)) if piece.len() > self.bytes_left => self.break_off(&Failure::TooLong).await,
                Ok(Some(piece)) => {
                    self.bytes_left -= piece.len();
                    let clean = self.scrub.push(piece);
                    let passed = self.pass(clean);
                    if passed.is_empty() {
                        continue;
                    }
                    return Some(passed);
                }
                Ok(None) => self.end().await,
                Err(failure) => self.break_off(&failure).await,
            };
            return (!last.is_empty()).then_some(last);
        }
    }

    /// Records a piece, and makes of it what the program gets.
    fn pass(&mut self, piece: Bytes) -> Bytes {
        if let Some(recorder) = &mut self.recorder {
            recorder.push(&piece);
        }
        match &mut self.transform {
            Transform::Same => self.events.push(piece),
            Transform::WithoutUsage(filter) => self.events.push(filter.push(&piece).into()),
            Transform::Translate(translator) => {
                translator.as_mut().map(|translator| translator.push(&piece)).unwrap_or_default().into()
            }
        }
    }

    /// The provider has ended its stream, at its end or before.
    async fn end(&mut self) -> Bytes {
        let held = self.scrub.finish();
        let mut last = BytesMut::from(&self.pass(held)[..]);
        let observed = self.recorder.as_mut().and_then(|recorder| recorder.observed());
        let is_complete = observed.is_none_or(|seen| seen.is_complete);
        match &mut self.transform {
            // It knows by itself what an end is, and says so in the program's dialect.
            Transform::Translate(translator) => {
                let rest = translator.take().map(|translator| translator.finish());
                last.extend_from_slice(&rest.unwrap_or_default());
                let cut = (!is_complete).then(|| Failure::Cut.problem(&self.provider).message.to_string());
                self.record(if is_complete { CallEnd::Complete } else { CallEnd::Cut }, cut).await;
                return last.freeze();
            }
            _ if !is_complete => {
                last.extend_from_slice(&self.break_off(&Failure::Cut).await);
                return last.freeze();
            }
            Transform::Same => {}
            Transform::WithoutUsage(filter) => {
                let filter = std::mem::take(filter);
                last.extend_from_slice(&self.events.push(filter.finish().into()));
            }
        }
        last.extend_from_slice(&self.events.finish());
        self.record(CallEnd::Complete, None).await;
        last.freeze()
    }

    /// Ends the stream with an error, never as if it were complete.
    async fn break_off(&mut self, failure: &Failure) -> Bytes {
        let problem = failure.problem(&self.provider);
        let end = if *failure == Failure::Cancelled { CallEnd::Cancelled } else { CallEnd::Cut };
        self.record(end, Some(problem.message.to_string())).await;
        let mut last = BytesMut::from(self.events.abandon());
        last.extend_from_slice(&self.dialect.error_event(problem.status, problem.code, &problem.message));
        last.freeze()
    }

    /// Ends the provider's connection, and records the end.
    async fn record(&mut self, end: CallEnd, error: Option<String>) {
        self.rest = None;
        if let Some(recorder) = self.recorder.take() {
            recorder.end(end, error).await;
        }
    }
}
