//! Streams events as server-sent events, and resumes after a broken connection.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use eventsource_stream::Eventsource;
use futures::stream::{BoxStream, Stream, StreamExt, try_unfold};
use reqwest::header::ACCEPT;
use reqwest::{Method, StatusCode};
use tokio::time::Instant;

use super::files::with_stall_timeout;
use super::path::Path;
use super::{ANSWER_TIMEOUT, Client, ClientError, Result};
use crate::event::Event;
use crate::problem::Code;

/// Consecutive attempts without an event before giving up.
const TRIES_MAX: u32 = 10;
/// Delay before the second attempt; it doubles with each further one.
const BACKOFF: Duration = Duration::from_millis(50);
/// The longest delay between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A connection that lasted this long resets the attempts, even without events.
const GOOD: Duration = Duration::from_secs(5);
/// A stream without even a comment for this long is dead.
const STANDSTILL_TIMEOUT: Duration = Duration::from_secs(60);

/// A session's events in order, without gaps or repetitions. Ends when the session is deleted, or with an error.
pub struct Follow(BoxStream<'static, Result<Event>>);

impl Stream for Follow {
    type Item = Result<Event>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

impl std::fmt::Debug for Follow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Follow")
    }
}

impl Client {
    /// Streams every event of a session after number `after`, including future ones. A broken connection is resumed;
    /// after several failed attempts the stream ends with an error.
    pub fn follow(&self, session: &str, after: u64) -> Follow {
        let follower = Follower {
            client: self.clone(),
            session: session.to_owned(),
            last: after,
            connected_once: false,
            failures: 0,
            live: None,
        };
        Follow(
            try_unfold(follower, |mut follower| async move {
                let event = follower.next().await?;
                Ok(event.map(|event| (event, follower)))
            })
            .boxed(),
        )
    }
}

struct Follower {
    client: Client,
    session: String,
    /// The number of the newest event that was returned.
    last: u64,
    connected_once: bool,
    failures: u32,
    live: Option<Live>,
}

struct Live {
    events: BoxStream<'static, std::result::Result<String, String>>,
    since: Instant,
}

impl Follower {
    async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            let Some(live) = &mut self.live else {
                match self.connect().await {
                    Ok(Some(live)) => self.live = Some(live),
                    Ok(None) => return Ok(None),
                    Err(error) if self.connected_once && is_transient(&error) => self.back_off(error).await?,
                    Err(error) => return Err(error),
                }
                continue;
            };
            match live.events.next().await {
                Some(Ok(data)) => {
                    if let Some(event) = self.take(&data).await? {
                        return Ok(Some(event));
                    }
                }
                Some(Err(reason)) => self.handle_disconnect(reason).await?,
                None => self.handle_disconnect("the server ended the stream".into()).await?,
            }
        }
    }

    /// `None` if the session has no further events.
    async fn connect(&mut self) -> Result<Option<Live>> {
        let path = Path::new("sessions").id(&self.session).then("events");
        let mut request = self.client.request(Method::GET, path)?.header(ACCEPT, "text/event-stream");
        request = if self.connected_once {
            request.header("Last-Event-ID", self.last)
        } else {
            request.query(&[("after", self.last)])
        };
        let response = match tokio::time::timeout(ANSWER_TIMEOUT, self.client.accepted(request)).await {
            Ok(answered) => answered?,
            Err(_) => return Err(self.unreachable("it took too long".into())),
        };
        self.connected_once = true;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        let events = with_stall_timeout(response, STANDSTILL_TIMEOUT).boxed().eventsource();
        let events = events.map(|event| event.map(|e| e.data).map_err(|e| e.to_string())).boxed();
        Ok(Some(Live { events, since: Instant::now() }))
    }

    /// Returns the event unless it is a repetition. After a gap, reconnects.
    async fn take(&mut self, data: &str) -> Result<Option<Event>> {
        let event: Event = serde_json::from_str(data)
            .map_err(|error| ClientError::Protocol(format!("an event is not what was expected: {error}")))?;
        if event.seq <= self.last {
            return Ok(None);
        }
        if event.seq != self.last + 1 {
            self.handle_disconnect(format!("event {} came after event {}", event.seq, self.last)).await?;
            return Ok(None);
        }
        self.last = event.seq;
        self.failures = 0;
        Ok(Some(event))
    }

    async fn handle_disconnect(&mut self, reason: String) -> Result<()> {
        if self.live.take().is_some_and(|live| live.since.elapsed() >= GOOD) {
            self.failures = 0;
        }
        let error = self.unreachable(reason);
        self.back_off(error).await
    }

    fn unreachable(&self, reason: String) -> ClientError {
        let url = self.client.base.as_str().trim_end_matches('/').trim_end_matches(crate::PREFIX);
        ClientError::Unreachable { url: url.to_owned(), reason }
    }

    /// Waits before the next attempt, or returns `error` after too many.
    async fn back_off(&mut self, error: ClientError) -> Result<()> {
        self.failures += 1;
        if self.failures >= TRIES_MAX {
            return Err(error);
        }
        let wait = BACKOFF.saturating_mul(1 << (self.failures - 1));
        tokio::time::sleep(wait.min(BACKOFF_MAX)).await;
        Ok(())
    }
}

/// Whether a retry may succeed.
fn is_transient(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } => true,
        ClientError::Problem(problem) => matches!(problem.code, Code::Busy | Code::Unavailable | Code::DiskFull),
        ClientError::Protocol(_) | ClientError::Input(_) => false,
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
