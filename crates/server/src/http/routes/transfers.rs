//! Answers to what takes its time: whole at the end, or, for `Accept: text/event-stream`, told as it gets on.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, Stream};
use raworc_api::image::TransferProgress;
use raworc_workspace::FileError;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::error::Failure;
use crate::http::negotiate::{EVENTS, JSON, negotiate};
use crate::transfers::images::Tell;

/// Progress is told no more often than this.
const INTERVAL: Duration = Duration::from_millis(100);
/// A comment is sent this often where nothing happens.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Does the work and answers it. As a stream, there are events `progress`, and at the end `done` with what the answer would be,
/// or `failed` with the problem. Whoever goes away ends the work (what has been transferred is not transferred again); whoever
/// only does not read holds nothing up.
pub async fn answer<T, F>(
    headers: &HeaderMap,
    status: StatusCode,
    work: impl FnOnce(Tell) -> F,
) -> Result<Response, Failure>
where
    T: Serialize + Send + 'static,
    F: Future<Output = Result<T, Failure>> + Send + 'static,
{
    if negotiate(headers, &[JSON, EVENTS])? == JSON {
        let result = work(Arc::new(|_| {})).await?;
        return Ok((status, axum::Json(result)).into_response());
    }
    let (tell, told) = watch::channel(TransferProgress::default());
    let work = work(Arc::new(move |progress| {
        tell.send_replace(progress);
    }));
    let transfer = Transfer { work: Some(AbortOnDropHandle::new(tokio::spawn(work))), told };
    Ok(Sse::new(transfer.events()).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

struct Transfer<T> {
    /// Until it has ended.
    work: Option<AbortOnDropHandle<Result<T, Failure>>>,
    told: watch::Receiver<TransferProgress>,
}

impl<T: Serialize + Send + 'static> Transfer<T> {
    fn events(self) -> impl Stream<Item = Result<sse::Event, Infallible>> {
        stream::unfold(self, |mut transfer| async move {
            let mut work = transfer.work.take()?;
            let told = &mut transfer.told;
            let progress = async {
                tokio::time::sleep(INTERVAL).await;
                match told.changed().await {
                    Ok(()) => told.borrow_and_update().clone(),
                    // The end is about to be told.
                    Err(_) => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                biased;
                result = &mut work => match result.map_err(|error| FileError::Io(std::io::Error::other(error)).into()).flatten() {
                    Ok(done) => sse::Event::default().event("done").json_data(done),
                    Err(failure) => sse::Event::default().event("failed").json_data(failure.into_problem()),
                },
                progress = progress => {
                    transfer.work = Some(work);
                    sse::Event::default().event("progress").json_data(progress)
                }
            };
            Some((Ok(event.ok()?), transfer))
        })
    }
}
