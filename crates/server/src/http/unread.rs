//! What a client is still sending when its request is refused.
//!
//! A connection that is closed while there is something unread breaks under the client: it then learns that the pipe is
//! broken, not what was wrong with its request. So the rest is read and dropped before the answer goes out, within bounds.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::Request;
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use raworc_core::limits::UNREAD_BYTES_MAX;

use crate::http::leased::Over;

/// A body up to this long waits in the sockets' buffers, in whole: nobody has to read it.
const BUFFERED_BYTES: u64 = 16 * 1024;
/// Longest time for reading the rest.
const TIME_MAX: Duration = Duration::from_secs(5);
/// A client that sends nothing for so long is waiting for the answer, or slow: it is told at once.
const IDLE_MAX: Duration = Duration::from_millis(500);

/// A body that its reader and this module share, and whether anyone has begun to read it.
#[derive(Clone)]
struct Shared(Arc<Mutex<(BodyDataStream, bool)>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, (BodyDataStream, bool)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, axum::Error>>> {
        let (stream, begun) = &mut *self.lock();
        *begun = true;
        stream.poll_next_unpin(context)
    }
}

/// Reads what a refused request has not been read of.
pub(super) async fn read(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let is_chunked = headers.contains_key(header::TRANSFER_ENCODING);
    let waits = headers.contains_key(header::EXPECT);
    let matters = is_chunked || announced.is_some_and(|bytes| (BUFFERED_BYTES..=UNREAD_BYTES_MAX).contains(&bytes));
    if !matters {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let shared = Shared(Arc::new(Mutex::new((body.into_data_stream(), false))));
    let reader = shared.clone();
    let body = Body::from_stream(stream::poll_fn(move |context| reader.poll(context)));
    let response = next.run(Request::from_parts(parts, body)).await;
    // A client that expects to be told to go on (`Expect: 100-continue`) is told so by the first read, and not before.
    let is_over = response.extensions().get::<Over>().is_some();
    let sends = !is_over && (!waits || shared.lock().1);
    if sends && (response.status().is_client_error() || response.status().is_server_error()) {
        // Where there is more than that, or it does not come, the connection breaks.
        let _ = tokio::time::timeout(TIME_MAX, drop_rest(shared)).await;
    }
    response
}

async fn drop_rest(shared: Shared) {
    let mut left = UNREAD_BYTES_MAX;
    while let Ok(Some(Ok(chunk))) = tokio::time::timeout(IDLE_MAX, poll_fn(|context| shared.poll(context))).await {
        left = left.saturating_sub(chunk.len() as u64);
        if left == 0 {
            return;
        }
    }
}
