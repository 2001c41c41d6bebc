//! Ends the connection to a provider at once when its call is cancelled, even while the program reads nothing and so nobody asks for
//! the next piece.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::upstream::Pieces;

/// Pieces of an answer, dropped when the call is cancelled.
pub struct Cancellable {
    pieces: Arc<Mutex<Option<Pieces>>>,
    watcher: JoinHandle<()>,
}

impl Cancellable {
    pub fn new(pieces: Pieces, cancelled: CancellationToken) -> Self {
        let pieces = Arc::new(Mutex::new(Some(pieces)));
        let watched = pieces.clone();
        let watcher = tokio::spawn(async move {
            cancelled.cancelled().await;
            drop(watched.lock().unwrap_or_else(PoisonError::into_inner).take());
        });
        Self { pieces, watcher }
    }
}

impl Stream for Cancellable {
    type Item = Result<Bytes, Failure>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.pieces.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(pieces) => pieces.as_mut().poll_next(cx),
            None => Poll::Ready(Some(Err(Failure::Cancelled))),
        }
    }
}

impl Drop for Cancellable {
    fn drop(&mut self) {
        self.watcher.abort();
        // The watcher ends later than this; the connection does not.
        drop(self.pieces.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}
