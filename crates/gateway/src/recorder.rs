//! Sees to it that the end of every admitted call is recorded exactly once, whatever becomes of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::dialect::{Dialect, Observed, Observer};
use crate::ports::{Admission, CallEnd, CallRecord, Ports};

/// Kept of the body of a request, in bytes.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// Kept of the body of an answer, in bytes.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// The record of one call. Dropped before its end is known, it says that the program went away.
pub struct Recorder {
    ports: Arc<dyn Ports>,
    id: Uuid,
    cancelled: CancellationToken,
    begun: Instant,
    first_byte: Option<Duration>,
    attempts: u32,
    status: Option<StatusCode>,
    request: Bytes,
    answer: BytesMut,
    observer: Option<Observer>,
    observed: Option<Observed>,
    is_recorded: bool,
}

impl Recorder {
    pub fn new(ports: Arc<dyn Ports>, admission: &Admission) -> Self {
        Self {
            ports,
            id: admission.id,
            cancelled: admission.cancelled.clone(),
            begun: Instant::now(),
            first_byte: None,
            attempts: 0,
            status: None,
            request: Bytes::new(),
            answer: BytesMut::new(),
            observer: None,
            observed: None,
            is_recorded: false,
        }
    }

    /// The body that is sent to the provider.
    pub fn request(&mut self, body: &Bytes) {
        self.request = match body.get(..REQUEST_BYTES_MAX) {
            // A copy: a part of the whole would keep all of it.
            Some(beginning) => Bytes::copy_from_slice(beginning),
            None => body.clone(),
        };
    }

    /// One more attempt begins.
    pub fn attempt(&mut self) {
        self.attempts += 1;
    }

    /// An attempt has been answered.
    pub fn status(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// The answer begins, in this dialect.
    pub fn answer(&mut self, dialect: Dialect, is_streaming: bool) {
        self.observer = Some(Observer::new(dialect, is_streaming));
    }

    /// The first byte of the answer is there.
    pub fn first_byte(&mut self) {
        self.first_byte.get_or_insert(self.begun.elapsed());
    }

    /// More of the answer.
    pub fn push(&mut self, bytes: &[u8]) {
        let room = ANSWER_BYTES_MAX.saturating_sub(self.answer.len());
        self.answer.extend_from_slice(&bytes[..bytes.len().min(room)]);
        if let Some(observer) = &mut self.observer {
            observer.push(bytes);
        }
    }

    /// What the whole answer was; to be asked at its end.
    pub fn observed(&mut self) -> Option<&Observed> {
        if let Some(observer) = self.observer.take() {
            self.observed = Some(observer.finish());
        }
        self.observed.as_ref()
    }

    /// Records the end. Even if the caller is dropped meanwhile, it is recorded.
    pub async fn end(mut self, end: CallEnd, error: Option<String>) {
        if let Some(recording) = self.record(end, error) {
            // A panic of the program around is told there.
            let _ = recording.await;
        }
    }

    fn record(&mut self, end: CallEnd, error: Option<String>) -> Option<tokio::task::JoinHandle<()>> {
        if std::mem::replace(&mut self.is_recorded, true) {
            return None;
        }
        self.observed();
        let observed = self.observed.take();
        let (usage, tool_calls, told) = match observed {
            Some(observed) => (observed.usage, observed.tool_calls, observed.error),
            None => (None, Vec::new(), None),
        };
        let record = CallRecord {
            id: self.id,
            end,
            status: self.status,
            attempts: self.attempts,
            usage,
            first_byte: self.first_byte,
            duration: self.begun.elapsed(),
            tool_calls,
            error: error.or(told),
            request: std::mem::take(&mut self.request),
            answer: std::mem::take(&mut self.answer).freeze(),
        };
        let ports = self.ports.clone();
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        Some(runtime.spawn(async move { ports.finished(record).await }))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let end = if self.cancelled.is_cancelled() { CallEnd::Cancelled } else { CallEnd::ClientGone };
        self.record(end, None);
    }
}
