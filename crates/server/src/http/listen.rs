//! Accepts connections, and speaks HTTP on them.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use raworc_api::problem::{Code, Problem};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt as _;

use crate::app::Shared;
use crate::http::connections::{Bounds, Connections, Full, Tracked, Watched, Working};
use crate::link::HOSTS_PENDING_MAX;

/// Longest head of a request, and longest part of an answer that waits in a connection, in bytes.
const BUFFER_BYTES: usize = 64 * 1024;
/// What the kernel holds for a connection of what its client has not taken, in bytes, and as much again for itself.
const SEND_BUFFER_BYTES: usize = 128 * 1024;
/// When the server stops, a connection that does not end by itself is closed after this long.
const STOP_MAX: Duration = Duration::from_secs(3);
/// How long is waited where no connection can be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Descriptors that are not for connections, at least: containers, records, files and the library's own.
const KEPT_BACK: u64 = 192 + HOSTS_PENDING_MAX as u64;

/// So many connections there may be however few descriptors there are.
const CONNECTIONS_MIN: usize = 16;

/// What the machine allows of these bounds: half of its descriptors, and not those that are kept back.
pub fn within_limits(bounds: Bounds) -> Bounds {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let room =
        usize::try_from((files / 2).min(files.saturating_sub(KEPT_BACK))).unwrap_or(usize::MAX).max(CONNECTIONS_MIN);
    if room < bounds.all {
        tracing::warn!(
            connections = room,
            open_files = files,
            "fewer connections than set: the limit of open files is low"
        );
    }
    Bounds { all: bounds.all.min(room), ..bounds }
}

/// Serves until the server stops. What is under way then goes on to its end.
pub async fn run(app: Shared, listener: TcpListener, router: Router, bounds: Bounds) {
    let connections = Arc::new(Connections::new(within_limits(bounds)));
    loop {
        let accepted = tokio::select! {
            () = app.stopping.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => match connections.enter(address) {
                Ok(guard) => {
                    let _ = stream.set_nodelay(true);
                    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER_BYTES);
                    let tracked = guard.tracked();
                    app.tasks.spawn(serve(app.clone(), Watched::new(stream, guard), tracked, router.clone()));
                }
                Err(full) => refuse(&stream, full),
            },
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // Out of descriptors, most likely.
                connections.shed();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(app: Shared, stream: Watched, tracked: Tracked, router: Router) {
    let of_requests = tracked.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let working = of_requests.begin();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(of_requests.clone());
        let (answer, tracked) = (router.clone().oneshot(request), of_requests.clone());
        async move {
            let answer: Response<Body> = answer.await?;
            if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                tracked.upgraded();
            }
            Ok::<_, Infallible>(answer.map(|body| Tracking { body, working: Some(working) }))
        }
    });
    let connection = http1::Builder::new()
        .header_read_timeout(None::<Duration>)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let mut is_stopping = false;
    let stop = async {
        app.stopping.cancelled().await;
        tokio::time::sleep(STOP_MAX).await;
    };
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            biased;
            outcome = connection.as_mut() => {
                if let Err(error) = outcome {
                    tracing::trace!(%error, "a connection broke");
                }
                return;
            }
            () = tracked.over() => return,
            () = &mut stop => return,
            () = app.stopping.cancelled(), if !is_stopping => {
                is_stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Says that there is no room, as far as that is possible without waiting.
fn refuse(stream: &TcpStream, full: Full) {
    let problem = match full {
        Full::All => Problem::new(Code::Unavailable, "the server has as many connections as it may; try again soon"),
        Full::Address => Problem::new(Code::Busy, "your address has as many connections as it may; close some"),
    };
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let body = serde_json::to_string(&problem).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let _ = stream.try_write(format!("{head}{body}").as_bytes());
}

/// An answer's body; the request is under way until it is written.
struct Tracking {
    body: Body,
    working: Option<Working>,
}

impl HttpBody for Tracking {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() {
            self.working = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
