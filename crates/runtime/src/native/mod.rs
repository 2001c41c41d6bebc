//! Containers on this machine, through an OCI runtime: the embedded one or another program.
//!
//! ```text
//! DATA/run/
//!   instance           the name of this data directory's cgroups, which follows from its device and inode number
//!   rootfs/            the root of every container that runs no image, read-only there
//!   views/             what containers see of the machine's processors and memory
//!   empty/             nothing, for overlays that want two directories
//!   host/              the host program and the server's socket; appears as /run/raworc
//!   containers/ID/     an OCI bundle, the records of its process, its workspace and its image, what was written to the root
//!                      of the latter, and its slot; SLOT/ while it is nobody's
//!   state/             the OCI runtime's own
//!   trash/             what was written to the roots of containers that are no more
//! ```
//!
//! The limits of a container are in the cgroup `/raworc/INSTANCE/SLOT`, below the cgroup that systemd gave the user where
//! this is no real root. Starting one is the launcher's work; everything
//! else, above all stopping, works on what the kernel and the directories above say, so that it works after any crash. Where the
//! two differ, the kernel is right: whatever of these files is missing, damaged or left from another time, what is in the cgroups
//! of this data directory is a container of it, and what a file names elsewhere is none.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use raworc_core::ids::ContainerId;
use raworc_workspace::{LayerStack, Trash};
use tokio::sync::mpsc;

use crate::{ContainerSpec, Exit, Hidden, Listed, Occupancy, Runtime, RuntimeError};

mod adopt;
mod bundle;
mod cgroup;
mod config;
mod containers;
mod doctor;
mod etc;
mod image;
mod launcher;
mod layout;
mod process;
mod program_links;
mod rootfs;
pub mod rootless;
mod seccomp;
mod spare;
mod tasks;
mod unlinked;
mod view;
mod workspace;

pub use config::{Ids, NativeConfig};
pub use doctor::{Check, Status, doctor};

use cgroup::Cgroups;
use containers::Containers;
use launcher::Launcher;
use layout::Layout;
use spare::SparePool;
use tasks::blocking;

/// Exits that wait for the loop that records them.
const EXITS_MAX: usize = 1024;

/// Runs containers on this machine. Needs root, if only of a user namespace: see [`rootless::enter`].
pub struct NativeRuntime {
    containers: Arc<Containers>,
    exits: Mutex<Option<mpsc::Receiver<Exit>>>,
}

impl NativeRuntime {
    /// Prepares the directories, starts the launcher and adopts the containers that are there.
    pub async fn open(config: NativeConfig) -> Result<Self, RuntimeError> {
        if !rustix::process::geteuid().is_root() {
            let message = "containers need root, if only in a user namespace; `raworc doctor` says what else";
            return Err(RuntimeError::Unavailable(message.into()));
        }
        let mounter = config.mounter.clone();
        let stock = SparePool::new(config.spares, config.spare_resources);
        let prepare = move || {
            let layout = Layout::prepare(&config)?;
            layout::directory(&layout.trash(), 0o700)?;
            let trash = Trash::open(&layout.trash())?;
            Ok((layout, trash))
        };
        let (layout, trash) = blocking(prepare).await?;
        let launcher = Launcher::start(&layout).await?;
        let (sender, receiver) = mpsc::channel(EXITS_MAX);
        let cgroups = Cgroups::find(&layout.cgroup_parent, &layout.instance)
            .map_err(|e| RuntimeError::Unavailable(e.to_string()))?;
        let containers = Arc::new(Containers::new(layout, launcher, cgroups, mounter, trash, stock, sender));
        containers.adopt().await?;
        tokio::spawn(spare::keep_full(Arc::downgrade(&containers)));
        Ok(Self { containers, exits: Mutex::new(Some(receiver)) })
    }

    /// The ids outside that containers have.
    #[must_use]
    pub fn ids(&self) -> Ids {
        self.containers.layout.ids
    }

    /// Where the server has to listen for hosts: a socket that belongs to the containers' root ([`Ids::base`]) and is `0600`,
    /// so that agents cannot speak for their host.
    #[must_use]
    pub fn host_socket(&self) -> PathBuf {
        self.containers.layout.host_socket()
    }
}

#[async_trait]
impl Runtime for NativeRuntime {
    async fn start(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        let (containers, spec) = (Arc::clone(&self.containers), spec.clone());
        detached(async move { containers.start(&spec).await }).await
    }

    async fn stop(&self, id: ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        let containers = Arc::clone(&self.containers);
        detached(async move { containers.stop(id, grace).await }).await
    }

    async fn list(&self) -> Result<Vec<Listed>, RuntimeError> {
        Ok(self.containers.list())
    }

    fn hidden(&self, id: ContainerId) -> io::Result<Hidden> {
        self.containers.hidden(id)
    }

    fn workspace(&self, id: ContainerId) -> Option<LayerStack> {
        self.containers.workspace(id)
    }

    async fn open_workspace(&self, id: ContainerId) -> Result<OwnedFd, RuntimeError> {
        self.containers.open_workspace(id).await
    }

    async fn freeze(&self, id: ContainerId) -> Result<Occupancy, RuntimeError> {
        self.containers.freeze(id).await
    }

    async fn thaw(&self, id: ContainerId) -> Result<(), RuntimeError> {
        self.containers.thaw(id).await
    }

    async fn remount(&self, id: ContainerId, workspace: &LayerStack) -> Result<(), RuntimeError> {
        let (containers, workspace) = (Arc::clone(&self.containers), workspace.clone());
        detached(async move { containers.remount(id, &workspace).await }).await
    }

    fn exits(&self) -> mpsc::Receiver<Exit> {
        let taken = self.exits.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.unwrap_or_else(|| mpsc::channel(1).1)
    }

    fn spares(&self) -> usize {
        self.containers.stock.len()
    }

    async fn close(&self) {
        self.containers.close().await;
    }

    async fn check(&self) -> Result<BTreeMap<String, String>, RuntimeError> {
        let containers = &self.containers;
        let runtime = containers.layout.oci_runtime.as_deref().map(Path::to_string_lossy);
        Ok(BTreeMap::from([
            ("cgroup_version".into(), containers.cgroups.version().to_string()),
            ("containers".into(), containers.list().len().to_string()),
            ("launcher".into(), containers.launcher.state()),
            ("oci_runtime".into(), runtime.map_or("embedded".into(), |path| path.into_owned())),
        ]))
    }
}

/// Runs `work` to its end even if the caller loses interest: a start or stop is never left half done.
async fn detached<T, F>(work: F) -> Result<T, RuntimeError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, RuntimeError>> + Send + 'static,
{
    tokio::spawn(work).await.unwrap_or_else(|error| Err(RuntimeError::Other(error.to_string())))
}
