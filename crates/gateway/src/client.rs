//! The HTTP client for providers: connections with TLS, kept for the next request to the same origin.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tower_service::Service;

/// Time until a connection is there, TLS included.
pub const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Time for which a connection that nobody uses is kept.
const IDLE_CONNECTION_MAX: Duration = Duration::from_secs(30);
/// Connections of one origin that are kept while nobody uses them.
const IDLE_CONNECTIONS_PER_ORIGIN_MAX: usize = 64;
/// Headers of an answer.
const HEADERS_MAX: usize = 200;
/// Head of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 256 * 1024;

/// A client for providers; clones share their connections.
#[derive(Clone)]
pub struct Client {
    inner: legacy::Client<Connector, Full<Bytes>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

/// The client cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("TLS cannot be set up: {0}")]
pub struct ClientError(rustls::Error);

impl Client {
    /// A client that connects by TCP and trusts what this machine trusts.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    pub fn new() -> Result<Self, ClientError> {
        Self::build(Dialer::Tcp)
    }

    /// A client whose connections another function makes, from host and port.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    pub fn with_dialer<F>(dial: F) -> Result<Self, ClientError>
    where
        F: Fn(String, u16) -> BoxFuture<'static, io::Result<Socket>> + Send + Sync + 'static,
    {
        Self::build(Dialer::Given(Arc::new(dial)))
    }

    fn build(dialer: Dialer) -> Result<Self, ClientError> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        // The provider is explicit, so that it does not depend on what the program installed.
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(ClientError)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let https =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(dialer);
        let inner = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_CONNECTION_MAX)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_PER_ORIGIN_MAX)
            .http1_max_headers(HEADERS_MAX)
            .http1_max_buf_size(HEAD_BYTES_MAX)
            .build(Connector { https });
        Ok(Self { inner })
    }

    /// Sends a request. Redirects are not followed: a key is for its provider's origin only.
    pub(crate) async fn request(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, RequestFailure> {
        self.inner.request(request).await.map_err(|error| RequestFailure::of(&error))
    }
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestFailure {
    /// There is no connection.
    Connect(ConnectFailure),
    /// The connection ended before the answer's head.
    Closed,
    /// What came is no HTTP.
    NotHttp,
}

impl RequestFailure {
    fn of(error: &legacy::Error) -> Self {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(here) = cause {
            if let Some(failure) = here.downcast_ref::<ConnectFailure>() {
                return Self::Connect(failure.clone());
            }
            if here.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
                return Self::NotHttp;
            }
            cause = here.source();
        }
        if error.is_connect() { Self::Connect(ConnectFailure::Refused) } else { Self::Closed }
    }
}

/// Why there is no connection. It names neither host nor address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectFailure {
    #[error("its name has no address")]
    Name,
    #[error("its connection is refused")]
    Refused,
    #[error("there is no connection to it ({0})")]
    Connect(io::ErrorKind),
    #[error("TLS with it fails: its certificate is not trusted here, or it speaks no TLS")]
    Tls,
    #[error("there is no connection to it within {} seconds", CONNECT_MAX.as_secs())]
    Timeout,
}

impl ConnectFailure {
    fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut => Self::Timeout,
            kind => Self::Connect(kind),
        }
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection to a provider.
pub struct Socket(Box<dyn Duplex>);

impl Socket {
    /// A connection over any stream of bytes.
    pub fn new(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self(Box::new(io))
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

impl Connection for Socket {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

type Dial = dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Socket>> + Send + Sync;

/// Connects without TLS.
#[derive(Clone)]
enum Dialer {
    Tcp,
    Given(Arc<Dial>),
}

impl Dialer {
    async fn dial(self, uri: Uri) -> Result<Socket, ConnectFailure> {
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        match self {
            Self::Tcp => dial_tcp(&host, port).await,
            Self::Given(dial) => dial(host, port).await.map_err(|error| ConnectFailure::of_io(&error)),
        }
    }
}

/// Tries the addresses of a host one after another; each has an equal part of the time.
async fn dial_tcp(host: &str, port: u16) -> Result<Socket, ConnectFailure> {
    let addresses = tokio::net::lookup_host((host, port)).await.map_err(|_| ConnectFailure::Name)?;
    let addresses: Vec<_> = addresses.collect();
    let share = CONNECT_MAX / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut failure = ConnectFailure::Name;
    for address in addresses {
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                let set = stream.set_nodelay(true);
                set.map_err(|error| ConnectFailure::of_io(&error))?;
                return Ok(Socket::new(stream));
            }
            Ok(Err(error)) => failure = ConnectFailure::of_io(&error),
            Err(_) => failure = ConnectFailure::Timeout,
        }
    }
    Err(failure)
}

type Connecting<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl Service<Uri> for Dialer {
    type Response = TokioIo<Socket>;
    type Error = ConnectFailure;
    type Future = Connecting<Self::Response, ConnectFailure>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move { dialer.dial(uri).await.map(TokioIo::new) })
    }
}

/// Connects, with TLS where the URL says so, in bounded time.
#[derive(Clone)]
struct Connector {
    https: HttpsConnector<Dialer>,
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<Socket>>;
    type Error = ConnectFailure;
    type Future = Connecting<Self::Response, ConnectFailure>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.https.poll_ready(cx).map_err(|_| ConnectFailure::Refused)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.https.call(uri);
        Box::pin(async move {
            match tokio::time::timeout(CONNECT_MAX, connecting).await {
                Ok(Ok(stream)) => Ok(stream),
                Ok(Err(error)) => Err(match error.downcast::<ConnectFailure>() {
                    Ok(failure) => *failure,
                    Err(error) => {
                        // It may name hosts of the administrator's.
                        tracing::debug!(%error, "TLS with a provider fails");
                        ConnectFailure::Tls
                    }
                }),
                Err(_) => Err(ConnectFailure::Timeout),
            }
        })
    }
}
