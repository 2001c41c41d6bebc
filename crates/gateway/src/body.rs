//! Reads bodies of requests, in bounded memory and time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use raworc_core::limits::UNREAD_BYTES_MAX;
use tokio::time::{Instant, timeout, timeout_at};

use crate::failure::Problem;
use crate::rooms::{Place, Room};

/// Longest body of a request, in bytes.
pub const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Time between two pieces of a body.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Time for a whole body.
const BODY_TIME_MAX: Duration = Duration::from_secs(300);
/// Time for reading and dropping a body that nobody needs.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

/// A body, and its place in memory.
pub struct Held {
    pub bytes: Bytes,
    _place: Place,
}

impl Held {
    /// A body that does not come from a container.
    pub fn unaccounted(bytes: Bytes) -> Self {
        Self { bytes, _place: Place::default() }
    }
}

/// Reads a body.
pub async fn read(headers: &HeaderMap, mut body: Incoming, room: &Room) -> Result<Held, Problem> {
    let read = try_read(headers, &mut body, room).await;
    if read.is_err() {
        drain(body).await;
    }
    read
}

async fn try_read(headers: &HeaderMap, body: &mut Incoming, room: &Room) -> Result<Held, Problem> {
    if headers.get(header::CONTENT_ENCODING).is_some_and(|value| value != "identity") {
        let message = "the gateway reads no compressed bodies; send it without a content-encoding";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "compressed_body", message));
    }
    let mut place = Place::default();
    let mut bytes = BytesMut::new();
    if let Some(length) = body.size_hint().exact().filter(|length| *length > 0) {
        let length = usize::try_from(length).ok().filter(|length| *length <= BODY_BYTES_MAX).ok_or_else(too_large)?;
        take_room(room, &mut place, length)?;
        bytes.reserve(length);
    }
    let is_length_known = body.size_hint().exact().is_some();
    let deadline = Instant::now() + BODY_TIME_MAX;
    loop {
        let silence = (Instant::now() + SILENCE_MAX).min(deadline);
        let frame = timeout_at(silence, body.frame()).await.map_err(|_| too_slow())?;
        let Some(frame) = frame else { break };
        let Ok(piece) = frame.map_err(|_| incomplete())?.into_data() else { continue };
        if bytes.len() + piece.len() > BODY_BYTES_MAX {
            return Err(too_large());
        }
        if !is_length_known {
            take_room(room, &mut place, piece.len())?;
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Held { bytes: bytes.freeze(), _place: place })
}

/// Reads and drops a body, up to a bound, so that its sender hears why it is refused.
pub async fn drain(mut body: Incoming) {
    let read = async {
        let mut left = UNREAD_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len) as u64);
            if left == 0 {
                break;
            }
        }
    };
    let _ = timeout(DRAIN_TIME_MAX, read).await;
}

fn take_room(room: &Room, place: &mut Place, bytes: usize) -> Result<(), Problem> {
    if room.body(place, bytes) {
        return Ok(());
    }
    let message = "too many large requests are being sent at the same time; try again when some are done";
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_bodies", message).retry_after(Duration::from_secs(1)))
}

fn too_large() -> Problem {
    let message = format!("a request may have {BODY_BYTES_MAX} bytes at most");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
}

fn too_slow() -> Problem {
    Problem::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", "the request's body did not come in time")
}

fn incomplete() -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "body_incomplete", "the request's body cannot be read to its end")
}
