//! The server: verbs that decide and record, loops that carry out, routes that people call. See ARCHITECTURE.md.

mod admin_token;
mod app;
mod change;
mod checkpoints;
mod conditions;
mod encryption;
pub mod engine;
mod error;
mod gateway;
mod http;
mod hub;
mod layers;
mod link;
mod loops;
mod metrics;
mod models;
mod policy;
mod record;
mod reserve;
mod sync;
mod transfers;
mod turns;
mod verbs;
mod view;

pub use policy::ceilings::Ceilings;
pub use reserve::Reserve;
pub use transfers::registries::Registries;

use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use raworc_core::layers::Lengths;
use raworc_runtime::Runtime;
use raworc_store::Store;
use raworc_workspace::Mounter;
use raworc_workspace::layers::OverlayXattrs;
use tokio::net::TcpListener;

use engine::Engine;

pub use app::{Clock, FaultInjector};
pub use error::StartError;
pub use http::connections::Bounds;
pub use http::routes::openapi;

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
    /// Which extended attributes overlayfs uses here.
    pub xattrs: OverlayXattrs,
    /// Mounts workspaces.
    pub mounter: Mounter,
    /// How registries are spoken to.
    pub registries: Registries,
    /// Bytes that the images of one member may have together; none: half of the disk.
    pub images_bytes_max: Option<u64>,
    /// The most that a session may be given.
    pub ceilings: Ceilings,
    /// How many connections there may be.
    pub connections: Bounds,
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
    engine: Engine,
    address: SocketAddr,
    _lock: DataLock,
}

impl Server {
    /// Starts a server on `runtime`.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: Config, lock: DataLock, runtime: Arc<dyn Runtime>) -> Result<Self, StartError> {
        // First, so that nothing has been started where someone else has the address.
        let listener =
            TcpListener::bind(config.listen).await.map_err(|error| StartError::Listen(config.listen, error))?;
        let address = listener.local_addr().map_err(|error| StartError::Listen(config.listen, error))?;
        let hosts = link::listen(&config.host_socket, config.host_owner)
            .map_err(|error| StartError::File(config.host_socket.clone(), error))?;
        let records = config.data_dir.join("raworc.db");
        let (agent_owner, clock) = (config.agent_owner, app::system_clock());
        let (xattrs, mounter) = (config.xattrs, Some(config.mounter.clone()));
        let ids = config.host_owner.map_or(raworc_oci::Ids::UNMAPPED, raworc_oci::Ids::based);
        let (registries, images_bytes_max) = (config.registries, config.images_bytes_max);
        let data_dir = &config.data_dir;
        let parts = engine::Parts {
            data_dir,
            runtime,
            agent_owner,
            xattrs,
            mounter,
            ids,
            registries,
            images_bytes_max,
            ceilings: config.ceilings,
            clock,
            lengths: Lengths::default(),
            reserve: Some(Reserve::of(data_dir)),
            fault_injector: None,
        };
        let engine = Engine::start(parts, |listener| Store::open_sqlite(&records, listener)).await?;
        let (app, router) = (&engine.app, engine.router());
        app.tasks.spawn(link::accept(app.clone(), hosts));
        app.tasks.spawn(http::listen::run(app.clone(), listener, router, config.connections));
        Ok(Self { engine, address, _lock: lock })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The administrator's token, as in `admin.token`.
    pub fn admin_token(&self) -> &str {
        self.engine.admin_token()
    }

    /// Stops serving: ends streams, lets requests and what is being started or stopped end, closes the records. Other
    /// containers go on.
    pub async fn stop(self) {
        let app = &self.engine.app;
        app.stopping.cancel();
        app.tasks.close();
        if tokio::time::timeout(DRAIN, app.tasks.wait()).await.is_err() {
            tracing::warn!("not everything ended in time");
        }
        app.store.close().await;
    }
}
