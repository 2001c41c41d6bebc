//! Answers that are written by a thread while their client reads them, however long they are.

use std::io::{self, Write};
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use futures::{StreamExt as _, TryStreamExt as _};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio::runtime::Handle;
use tokio_util::io::ReaderStream;

use crate::app::Shared;
use crate::error::Failure;

/// Bytes that are written ahead of who reads.
const BUFFER_BYTES: usize = 256 << 10;
/// How long who reads may take none of it, before it is given up: it holds a thread.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// What `write` writes, as a body; what it returns follows as trailers, for clients that take those. Where it fails, or nobody
/// reads, the body breaks off.
///
/// # Errors
/// 503 where there is no thread for it.
pub async fn body(
    app: &Shared,
    write: impl FnOnce(BlockingBodyWriter) -> io::Result<HeaderMap> + Send + 'static,
) -> Result<Body, Failure> {
    let thread = app.budgets.thread().await?;
    let (read, pipe) = tokio::io::duplex(BUFFER_BYTES);
    let writer = BlockingBodyWriter { pipe, runtime: Handle::current() };
    let done = tokio::task::spawn_blocking(move || {
        let _thread = thread;
        write(writer)
    });
    // What ends early must not look as if it were whole.
    let end = futures::stream::once(async move {
        match done.await {
            Ok(Ok(trailers)) => Ok(Frame::trailers(trailers)),
            Ok(Err(error)) => {
                tracing::warn!(%error, "an answer was cut off");
                Err(error)
            }
            Err(error) => Err(io::Error::other(error)),
        }
    });
    let data = ReaderStream::new(read).map_ok(Frame::data);
    Ok(Body::new(StreamBody::new(data.chain(end))))
}

/// Writes to whoever reads at the other end, for as long as that goes on.
pub struct BlockingBodyWriter {
    pipe: DuplexStream,
    runtime: Handle,
}

impl Write for BlockingBodyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let write = tokio::time::timeout(IDLE_MAX, self.pipe.write(bytes));
        self.runtime.block_on(write).map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "nobody reads it"))?
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
