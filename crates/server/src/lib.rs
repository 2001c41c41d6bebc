//! The server: verbs that decide and record, loops that carry out, routes that people call. See ARCHITECTURE.md.

mod app;
mod auth;
mod change;
mod error;
mod extract;
mod hosts;
mod hub;
mod link;
mod metrics;
mod reconcile;
mod routes;
mod verbs;
mod view;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use raworc_core::time::Time;
use raworc_runtime::Runtime;
use raworc_store::{Store, StoreError, agents, sessions, settings};
use raworc_workspace::Workspaces;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use app::{App, Shared};
use error::Failure;

pub use routes::openapi;

/// What is under way gets this long to end when the server stops; longer than stopping a container takes.
const DRAIN: Duration = Duration::from_secs(5);

/// Where a server keeps its things and listens.
#[derive(Clone, Debug)]
pub struct Config {
    /// Everything it keeps.
    pub data_dir: PathBuf,
    /// Where it listens; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Where containers' hosts find it.
    pub host_socket: PathBuf,
    /// Outside, the id of containers' root; hosts connect as it.
    pub host_owner: Option<u32>,
    /// Outside, the id of containers' agents; workspaces belong to it.
    pub agent_owner: Option<u32>,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another server uses this data directory.
    #[error("another server is using the data directory {0}")]
    InUse(PathBuf),
    /// It cannot listen there.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    /// A file or directory cannot be used.
    #[error("{0}: {1}")]
    File(PathBuf, std::io::Error),
    /// The records cannot be opened.
    #[error("the records cannot be opened: {0}")]
    Store(#[from] StoreError),
    /// The first steps failed.
    #[error("{0}")]
    Other(String),
}

impl From<Failure> for StartError {
    fn from(failure: Failure) -> Self {
        StartError::Other(failure.to_string())
    }
}

/// The right to be the one server of a data directory; given back when dropped.
#[derive(Debug)]
pub struct DataLock {
    _file: File,
}

/// Takes a data directory for this process. To be done before anything in it is touched.
///
/// # Errors
/// [`StartError::InUse`] where another process has it.
pub fn lock(data_dir: &Path) -> Result<DataLock, StartError> {
    let path = data_dir.join("lock");
    let failed = |error| StartError::File(path.clone(), error);
    let file = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(DataLock { _file: file }),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StartError::InUse(data_dir.to_owned())),
        Err(error) => Err(failed(error.into())),
    }
}

/// A running server.
pub struct Server {
    app: Shared,
    address: SocketAddr,
    admin_token: String,
    _lock: DataLock,
}

impl Server {
    /// Starts a server on `runtime`.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: Config, lock: DataLock, runtime: Arc<dyn Runtime>) -> Result<Self, StartError> {
        let hub = Arc::new(hub::Hub::default());
        let store = Store::open_sqlite(&config.data_dir.join("raworc.db"), hub::listener(&hub))?;
        let now: Time = jiff::Timestamp::now().into();
        let admin_token = admin_token(&store, &config.data_dir.join("admin.token"), now).await?;
        let host_secret = first_records(&store, now).await?;
        let workspaces = Workspaces::open(&config.data_dir, config.agent_owner)
            .map_err(|error| StartError::File(config.data_dir.clone(), error))?;
        let app: Shared = Arc::new(App {
            store,
            runtime,
            workspaces,
            hub,
            hosts: hosts::Hosts::default(),
            host_tokens: auth::HostTokens::new(&host_secret),
            metrics: metrics::Metrics::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            started: Instant::now(),
        });
        let hosts_listener = link::listen(&config.host_socket, config.host_owner)
            .map_err(|error| StartError::File(config.host_socket.clone(), error))?;
        let listener =
            TcpListener::bind(config.listen).await.map_err(|error| StartError::Listen(config.listen, error))?;
        let address = listener.local_addr().map_err(|error| StartError::Listen(config.listen, error))?;
        expect_hosts(&app).await?;
        reconcile::sweep::once(&app).await?;
        spawn(&app, hosts_listener, listener);
        Ok(Self { app, address, admin_token, _lock: lock })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The administrator's token, as in `admin.token`.
    pub fn admin_token(&self) -> &str {
        &self.admin_token
    }

    /// Stops serving: ends streams, lets requests and what is being started or stopped end, closes the records. Other
    /// containers go on.
    pub async fn stop(self) {
        self.app.stopping.cancel();
        self.app.tasks.close();
        if tokio::time::timeout(DRAIN, self.app.tasks.wait()).await.is_err() {
            tracing::warn!("not everything ended in time");
        }
        self.app.store.close().await;
    }
}

/// The administrator's token from its file; made at first start, made anew where the file was lost.
async fn admin_token(store: &Store, path: &Path, now: Time) -> Result<String, StartError> {
    let failed = |error| StartError::File(path.to_owned(), error);
    if let Some(secret) = verbs::accounts::first_start(store, now).await? {
        write_secret(path, &secret).map_err(failed)?;
        return Ok(secret);
    }
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Ok(_) => replace_admin_token(store, path, now).await,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => replace_admin_token(store, path, now).await,
        Err(error) => Err(failed(error)),
    }
}

async fn replace_admin_token(store: &Store, path: &Path, now: Time) -> Result<String, StartError> {
    let secret = verbs::accounts::replace_admin_token(store, now).await?;
    write_secret(path, &secret).map_err(|error| StartError::File(path.to_owned(), error))?;
    Ok(secret)
}

fn write_secret(path: &Path, secret: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(format!("{secret}\n").as_bytes())?;
    file.sync_all()
}

/// What has to be in the records before anyone calls: the built-in agents and the secret behind hosts' tokens.
async fn first_records(store: &Store, now: Time) -> Result<String, StartError> {
    Ok(store
        .write(move |transaction| {
            Box::pin(async move {
                for agent in verbs::agents::builtin(now) {
                    if agents::find(transaction.connection(), &agent.definition.name).await?.is_none() {
                        agents::insert(transaction.connection(), &agent).await?;
                    }
                }
                settings::get_or_insert(transaction.connection(), "host_secret", auth::new_secret()).await
            })
        })
        .await?)
}

/// Every host that was running when the last server ended gets a full lease to come back.
async fn expect_hosts(app: &Shared) -> Result<(), StartError> {
    let mut connection = app.store.read().await?;
    for container in sessions::containers_up(&mut connection).await? {
        app.hosts.expect(container);
    }
    Ok(())
}

fn spawn(app: &Shared, hosts: tokio::net::UnixListener, listener: TcpListener) {
    let tasks = &app.tasks;
    tasks.spawn(link::accept(app.clone(), hosts));
    tasks.spawn(reconcile::containers::run(app.clone()));
    tasks.spawn(reconcile::deadlines::run(app.clone()));
    tasks.spawn(reconcile::exits::run(app.clone()));
    tasks.spawn(reconcile::leases::run(app.clone()));
    tasks.spawn(reconcile::sweep::run(app.clone()));
    let (router, stopping) = (routes::router(app.clone()), app.stopping.clone());
    tasks.spawn(async move {
        let serve = axum::serve(listener, router).with_graceful_shutdown(stopping.cancelled_owned());
        if let Err(error) = serve.await {
            tracing::error!(%error, "the server stopped listening");
        }
    });
}
