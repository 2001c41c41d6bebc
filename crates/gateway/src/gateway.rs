//! Serves the connections of containers. Everything that comes on them is hostile.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use raworc_core::ids::ContainerId;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::answer::{self, Body as AnswerBody};
use crate::client::{Client, ClientError};
use crate::ports::{Ports, Target};
use crate::probe::{self, ProbeError, ProbeReport};
use crate::replay::Recordings;
use crate::rooms::{Room, Rooms};
use crate::route::{self, Route};
use crate::stalled::Stalled;
use crate::{body, call, models};

/// Time for the head of a request, and between two requests on one connection.
const HEAD_WAIT_MAX: Duration = Duration::from_secs(75);
/// Head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Headers of a request.
const HEADERS_MAX: usize = 128;
/// Time for which a program may leave what is sent to it unread.
const UNREAD_WAIT_MAX: Duration = Duration::from_secs(300);

/// What containers reach. One for the whole server.
pub struct Gateway {
    pub(crate) ports: Arc<dyn Ports>,
    pub(crate) client: Client,
    pub(crate) recordings: Recordings,
    rooms: Rooms,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gateway")
    }
}

impl Gateway {
    /// A gateway for the program around it.
    ///
    /// # Errors
    /// If the client for providers cannot be set up.
    pub fn new(ports: Arc<dyn Ports>) -> Result<Self, ClientError> {
        Ok(Self::with_client(ports, Client::new()?))
    }

    /// A gateway with another client.
    #[must_use]
    pub fn with_client(ports: Arc<dyn Ports>, client: Client) -> Self {
        Self { ports, client, recordings: Recordings::default(), rooms: Rooms::new() }
    }

    /// A call of chat completions that the program around makes itself, for a container: admitted, carried out and recorded like those
    /// of programs inside. Dropping the answer's body ends it.
    pub async fn call(self: &Arc<Self>, container: ContainerId, key: &str, body: Bytes) -> Response<AnswerBody> {
        call::own(self, container, &self.rooms.of(container), key, body).await
    }

    /// Asks a provider once: whether it is there, takes the key, and has the model.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn probe(&self, target: &Target) -> Result<ProbeReport, ProbeError> {
        probe::probe(&self.client, &self.recordings, target).await
    }
}

/// Serves a connection from a container until it ends. One request is served at a time; a program opens several connections for
/// several. Dropping this ends the connection and its call.
pub async fn serve_connection<I>(io: I, container: ContainerId, gateway: Arc<Gateway>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let room = gateway.rooms.of(container);
    let service = service_fn(move |request| {
        let (gateway, room) = (gateway.clone(), room.clone());
        async move { Ok::<_, Infallible>(respond(&gateway, container, &room, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(Stalled::new(io, UNREAD_WAIT_MAX)), service)
        .await;
    if let Err(error) = served {
        // Of no interest but to who looks for it: programs come and go as they like.
        tracing::debug!(%container, %error, "a connection to the gateway ended");
    }
}

async fn respond(
    gateway: &Arc<Gateway>,
    container: ContainerId,
    room: &Room,
    request: Request<Incoming>,
) -> Response<AnswerBody> {
    match route::of(request.method(), request.uri(), request.headers()) {
        Route::Ping => answer::json(StatusCode::OK, "{\"status\":\"ok\"}"),
        Route::Models { form, id } => {
            let listed = gateway.ports.models(container).await;
            models::answer(form, &listed, id.as_deref())
        }
        Route::Call(route) => Box::pin(call::call(gateway, container, room, route, request)).await,
        Route::Refused { dialect, problem } => {
            if request.method() != Method::CONNECT {
                body::drain(request.into_body()).await;
            }
            answer::problem(dialect, &problem)
        }
    }
}
