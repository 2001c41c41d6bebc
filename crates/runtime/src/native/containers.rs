//! Starting, stopping and listing.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use raworc_core::ids::ContainerId;
use raworc_launcher::protocol::{Action, Outcome, Start};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use tokio::sync::{OwnedMutexGuard, mpsc};

use super::cgroup::Cgroups;
use super::launcher::Launcher;
use super::layout::{Layout, container_names};
use super::process::Handle;
use super::{blocking, bundle};
use crate::{ContainerSpec, Exit, RuntimeError};

/// Every container of this data directory.
pub struct Containers {
    /// Where they are.
    pub layout: Layout,
    /// Starts them.
    pub launcher: Launcher,
    /// Their cgroups.
    pub cgroups: Cgroups,
    /// Where ends are reported.
    pub exits: mpsc::Sender<Exit>,
    running: Mutex<HashMap<ContainerId, Arc<Handle>>>,
    /// One start or stop at a time for each container.
    gates: Mutex<HashMap<ContainerId, Arc<tokio::sync::Mutex<()>>>>,
}

impl Containers {
    /// None are known yet; see [`Containers::adopt`].
    pub fn new(layout: Layout, launcher: Launcher, cgroups: Cgroups, exits: mpsc::Sender<Exit>) -> Self {
        Self { layout, launcher, cgroups, exits, running: Mutex::default(), gates: Mutex::default() }
    }

    /// Starts a container, or leaves it alone where it runs.
    pub async fn start(self: &Arc<Self>, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        let id = spec.id;
        let gate = self.enter(id).await;
        let result = if locked(&self.running).contains_key(&id) { Ok(()) } else { self.start_anew(spec).await };
        self.leave(id, gate);
        result
    }

    async fn start_anew(self: &Arc<Self>, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        let failed = |error: io::Error| RuntimeError::Other(error.to_string());
        let bundle = self.layout.bundle(spec.id);
        if let Some(process) = Handle::of_bundle(&bundle).map_err(failed)?
            && process.is_started(&bundle)
        {
            // Its start was the last thing that an earlier launcher did.
            self.watch(spec.id, process, None).await;
            return Ok(());
        }
        if self.remains(spec.id) {
            self.remove(spec.id).await?;
        }
        let result = self.launch(spec).await;
        if result.is_err()
            && let Err(error) = self.remove(spec.id).await
        {
            tracing::warn!(id = %spec.id, %error, "something of a container that did not start is left");
        }
        result
    }

    async fn launch(self: &Arc<Self>, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        let (id, failed) = (spec.id, |error: io::Error| RuntimeError::Start(error.to_string()));
        let stage = self.launcher.stage().await?;
        // The workspace travels as a detached mount: the launcher need not see the path, nor may an id without rights.
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let workspace = open_tree(CWD, &spec.workspace, flags)
            .map_err(|error| RuntimeError::Start(format!("workspace {}: {error}", spec.workspace.display())))?;
        bundle::write(&self.layout, spec, &stage).map_err(failed)?;
        let status = self.launcher.expect(id);
        let start = Start {
            container: id.to_string(),
            bundle: self.layout.bundle(id),
            cgroup: self.layout.cgroup(id),
            limits: bundle::limits(&spec.resources),
        };
        let process = match self.launcher.request(Action::Start(start), Some(workspace)).await? {
            Outcome::Started(process) => process,
            Outcome::Failed(message) => return Err(RuntimeError::Start(message)),
            Outcome::Deleted => {
                return Err(RuntimeError::Start("the launcher answered something else".into()));
            }
        };
        match Handle::open(process).map_err(failed)? {
            Some(handle) => self.watch(id, handle, Some(status)).await,
            None => {
                let reason = self.reason(id, Some(status)).await;
                let _ = self.exits.send(Exit { id, reason }).await;
            }
        }
        Ok(())
    }

    /// Ends a container and removes everything of it.
    pub async fn stop(&self, id: ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        let gate = self.enter(id).await;
        // Whoever watches it finds it taken, and reports nothing.
        let running = locked(&self.running).remove(&id);
        let ended = match running {
            Some(process) => process.end(grace).await,
            None => Ok(()),
        };
        let result = match ended {
            Ok(()) => self.remove(id).await,
            Err(error) => Err(RuntimeError::Other(error.to_string())),
        };
        self.leave(id, gate);
        result
    }

    /// Removes what is there of a container, whatever state that is in.
    async fn remove(&self, id: ContainerId) -> Result<(), RuntimeError> {
        let failed = |error: io::Error| RuntimeError::Other(error.to_string());
        let bundle = self.layout.bundle(id);
        if let Some(process) = Handle::of_bundle(&bundle).map_err(failed)? {
            process.end(Duration::ZERO).await.map_err(failed)?;
        }
        self.cgroups.remove(id).await.map_err(failed)?;
        if self.layout.oci_runtime.is_some() {
            let action = Action::Delete { container: id.to_string() };
            if let Outcome::Failed(message) = self.launcher.request(action, None).await? {
                return Err(RuntimeError::Other(message));
            }
            // An external runtime may have made its cgroup again after the removal above.
            self.cgroups.remove(id).await.map_err(failed)?;
        }
        self.launcher.forget(id);
        let state = self.layout.state().join(id.to_string());
        blocking(move || [state, bundle].iter().try_for_each(remove_tree)).await
    }

    /// Every container of which anything is there.
    pub async fn list(&self) -> Result<Vec<ContainerId>, RuntimeError> {
        let (containers, state, cgroups) = (self.layout.containers(), self.layout.state(), self.cgroups.clone());
        blocking(move || {
            let mut all: BTreeSet<ContainerId> = cgroups.list()?;
            all.extend(container_names(&containers)?);
            all.extend(container_names(&state)?);
            Ok(all.into_iter().collect())
        })
        .await
    }

    fn remains(&self, id: ContainerId) -> bool {
        let (bundle, state) = (self.layout.bundle(id), self.layout.state().join(id.to_string()));
        bundle.exists() || state.exists() || self.cgroups.list().map_or(true, |all| all.contains(&id))
    }

    /// Notes that a container runs.
    pub fn set_running(&self, id: ContainerId, process: &Arc<Handle>) {
        locked(&self.running).insert(id, Arc::clone(process));
    }

    /// Notes that it has ended; false where it was stopped (or started anew) in the meantime.
    pub fn clear_running(&self, id: ContainerId, process: &Arc<Handle>) -> bool {
        let mut running = locked(&self.running);
        let same = running.get(&id).is_some_and(|known| Arc::ptr_eq(known, process));
        if same {
            running.remove(&id);
        }
        same
    }

    async fn enter(&self, id: ContainerId) -> OwnedMutexGuard<()> {
        let gate = Arc::clone(locked(&self.gates).entry(id).or_default());
        gate.lock_owned().await
    }

    fn leave(&self, id: ContainerId, gate: OwnedMutexGuard<()>) {
        let mut gates = locked(&self.gates);
        drop(gate);
        // New holders come through this map only, which is locked: at 1 nobody waits.
        if gates.get(&id).is_some_and(|gate| Arc::strong_count(gate) == 1) {
            gates.remove(&id);
        }
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        self.cgroups.remove_instance();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remove_tree(path: &std::path::PathBuf) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
