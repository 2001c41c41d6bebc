//! Starting, stopping and listing.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use raworc_core::ids::{ContainerId, LayerId};
use raworc_launcher::protocol::{Action, Assign, Outcome};
use raworc_workspace::{LayerStack, Mounter, Trash};
use tokio::sync::{OwnedMutexGuard, RwLock, mpsc};

use super::cgroup::Cgroups;
use super::launcher::Launcher;
use super::layout::{Layout, Slot, remove};
use super::process::Handle;
use super::spare::{Spare, SparePool};
use super::workspace::note;
use super::{blocking, image};
use crate::{ContainerSpec, Exit, Listed, RuntimeError};

/// Every container of this data directory.
pub struct Containers {
    /// Where they are.
    pub layout: Layout,
    /// Starts them.
    pub launcher: Launcher,
    /// Their cgroups.
    pub cgroups: Cgroups,
    /// Mounts their workspaces and images.
    pub mounter: Mounter,
    /// Takes what was written to their root filesystems.
    pub trash: Trash,
    /// Those that are nobody's yet.
    pub stock: SparePool,
    /// Where ends are reported.
    pub exits: mpsc::Sender<Exit>,
    /// Those of which anything is there.
    owned: Mutex<HashMap<ContainerId, Owned>>,
    /// One start or stop at a time for each container.
    gates: Mutex<HashMap<ContainerId, Arc<tokio::sync::Mutex<()>>>>,
}

/// A container that is a session's.
#[derive(Clone)]
pub struct Owned {
    /// What it is called.
    pub slot: Slot,
    /// Its first process while that runs.
    pub process: Option<Arc<Handle>>,
    /// What its workspace is made of, once it has one.
    pub workspace: Option<LayerStack>,
    /// The layers of its image.
    pub image: Vec<LayerId>,
    /// Taken to look at the workspace's mount, and alone to exchange it: in between there is none.
    pub mount: Arc<RwLock<()>>,
}

impl Owned {
    /// One of which no process is known.
    pub fn new(slot: Slot, workspace: Option<LayerStack>, image: Vec<LayerId>) -> Self {
        Self { slot, process: None, workspace, image, mount: Arc::default() }
    }
}

impl Containers {
    /// None are known yet; see [`Containers::adopt`].
    pub fn new(
        layout: Layout,
        launcher: Launcher,
        cgroups: Cgroups,
        mounter: Mounter,
        trash: Trash,
        stock: SparePool,
        exits: mpsc::Sender<Exit>,
    ) -> Self {
        let (owned, gates) = Default::default();
        Self { layout, launcher, cgroups, mounter, trash, stock, exits, owned, gates }
    }

    /// Starts a container, or leaves it alone where it runs.
    pub async fn start(self: &Arc<Self>, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        let gate = self.enter(spec.id).await;
        let result = if self.is_running(spec.id) { Ok(()) } else { self.start_anew(spec).await };
        self.leave(spec.id, gate);
        result
    }

    async fn start_anew(self: &Arc<Self>, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        self.remove(spec.id).await?;
        if let Some(spare) = self.take_spare(spec).await {
            match self.assign(spare, spec).await {
                // It was not told anything, so one that is made for this session may take its place.
                Err(RuntimeError::Start(error)) => {
                    tracing::warn!(id = %spec.id, %error, "a spare container could not be used");
                    self.remove(spec.id).await?;
                }
                result => return self.or_remove(spec.id, result).await,
            }
        }
        let slot = Slot::new();
        // The layers of its image are about to be mounted: whoever asks is to know.
        self.set_owned(spec.id, Owned::new(slot.clone(), None, layers_of(spec)));
        let result = match self.prepare(slot, &spec.resources, spec.image.as_ref()).await {
            Ok(fresh) => self.assign(fresh, spec).await,
            Err(error) => Err(error),
        };
        self.or_remove(spec.id, result).await
    }

    /// A start that failed leaves nothing. One of which nobody knows how it went is not tried again under the same id: the host
    /// may have got its token, and then have said something that counts.
    async fn or_remove(&self, id: ContainerId, result: Result<(), RuntimeError>) -> Result<(), RuntimeError> {
        if result.is_err()
            && let Err(error) = self.remove(id).await
        {
            tracing::warn!(%id, %error, "something of a container that did not start is left");
        }
        result
    }

    /// A spare one that lives: all of them die with their launcher. None of them runs an image.
    async fn take_spare(&self, spec: &ContainerSpec) -> Option<Spare> {
        if spec.image.is_some() {
            return None;
        }
        while let Some(spare) = self.stock.take(&spec.resources) {
            if !spare.process.has_ended() {
                return Some(spare);
            }
            self.discard(&spare.slot).await;
        }
        None
    }

    /// Makes a prepared container the session's. Where that fails, what is left of it is known by its id; with
    /// [`RuntimeError::Start`], its host has not been told anything.
    async fn assign(self: &Arc<Self>, spare: Spare, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        let (id, slot) = (spec.id, spare.slot);
        let bundle = self.layout.bundle(id);
        // From here on, whoever finds it after a crash finds it as this session's: not assigned, and so to be removed.
        let renamed = std::fs::rename(self.layout.spare(&slot), &bundle);
        if let Err(error) = renamed {
            self.discard(&slot).await;
            return Err(RuntimeError::Start(error.to_string()));
        }
        let owned = Owned::new(slot.clone(), Some(spec.workspace.clone()), layers_of(spec));
        self.set_owned(id, owned.clone());
        // The workspace travels as a detached mount: the launcher need not see the path, nor may an id without rights.
        let (mounter, stack, noted) = (self.mounter.clone(), spec.workspace.clone(), bundle.clone());
        let workspace = blocking(move || {
            note(&noted, &stack)?;
            mounter.mount(&stack)
        })
        .await
        .map_err(|error| RuntimeError::Start(format!("its workspace can't be mounted: {error}")))?;
        let assign =
            Assign { container: slot.to_string(), bundle, hostname: spec.hostname.clone(), token: spec.token.clone() };
        match self.launcher.request(Action::Assign(assign), Some(workspace)).await {
            Ok(Outcome::Assigned) => {}
            Ok(Outcome::Failed(message)) => return Err(RuntimeError::Start(message)),
            Ok(other) => return Err(RuntimeError::Start(format!("the launcher answered {other:?}"))),
            Err(error) => return Err(RuntimeError::Other(error.to_string())),
        }
        self.watch(id, Owned { process: Some(spare.process), ..owned }, Some(spare.ending));
        Ok(())
    }

    /// Ends a container and removes everything of it.
    pub async fn stop(&self, id: ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        let gate = self.enter(id).await;
        // Whoever watches it finds it taken, and reports nothing.
        let running = locked(&self.owned).get_mut(&id).and_then(|owned| owned.process.take());
        if let Some(process) = running {
            process.ask_to_end(grace).await;
        }
        let result = self.remove(id).await;
        self.leave(id, gate);
        result
    }

    /// Removes what is there of a container, whatever state that is in.
    async fn remove(&self, id: ContainerId) -> Result<(), RuntimeError> {
        let slot = locked(&self.owned).get(&id).map(|owned| owned.slot.clone());
        let Some(slot) = slot else { return Ok(()) };
        self.remove_slot(&slot, &self.layout.bundle(id)).await?;
        locked(&self.owned).remove(&id);
        Ok(())
    }

    /// Removes the container of a slot, with its bundle.
    pub async fn remove_slot(&self, slot: &Slot, bundle: &Path) -> Result<(), RuntimeError> {
        let failed = |error: io::Error| RuntimeError::Other(error.to_string());
        let process = self.process_of(bundle, slot).map_err(failed)?;
        // Through the cgroup, too: a server that follows another in a user namespace of its own may not signal it.
        self.cgroups.kill(slot);
        if let Some(process) = process {
            process.kill().await.map_err(failed)?;
        }
        self.cgroups.remove(slot).await.map_err(failed)?;
        if self.layout.oci_runtime.is_some() {
            let action = Action::Delete { container: slot.to_string() };
            if let Outcome::Failed(message) = self.launcher.request(action, None).await? {
                return Err(RuntimeError::Other(message));
            }
            // An external runtime may have made its cgroup again after the removal above.
            self.cgroups.remove(slot).await.map_err(failed)?;
        }
        self.launcher.forget(slot);
        // The bundle last: it is what the rest is found by.
        let trees = [self.layout.state().join(slot.as_str()), bundle.to_owned()];
        let (trash, written) = (self.trash.clone(), bundle.join(image::WRITTEN));
        blocking(move || {
            trash.remove(&written)?;
            trees.iter().try_for_each(|tree| remove(tree))
        })
        .await
    }

    /// The process of a bundle, if it lives and is in the slot's cgroup: a record may be left from another time, or come with
    /// a copy of another data directory.
    pub fn process_of(&self, bundle: &Path, slot: &Slot) -> io::Result<Option<Handle>> {
        let Some(process) = Handle::of_bundle(bundle)? else { return Ok(None) };
        Ok(self.cgroups.processes(slot)?.contains(&process.pid()).then_some(process))
    }

    /// Every container of which anything is there, and whether its first process is.
    pub fn list(&self) -> Vec<Listed> {
        let listed = |(id, owned): (&ContainerId, &Owned)| Listed {
            id: *id,
            workspace: owned.workspace.clone(),
            image: owned.image.clone(),
            is_running: owned.process.is_some(),
        };
        locked(&self.owned).iter().map(listed).collect()
    }

    fn is_running(&self, id: ContainerId) -> bool {
        locked(&self.owned).get(&id).is_some_and(|owned| owned.process.is_some())
    }

    /// Notes what is there of a container.
    pub fn set_owned(&self, id: ContainerId, owned: Owned) {
        locked(&self.owned).insert(id, owned);
    }

    /// What is there of a container that runs.
    pub fn running(&self, id: ContainerId) -> Option<Owned> {
        locked(&self.owned).get(&id).filter(|owned| owned.process.is_some()).cloned()
    }

    /// The slot of a container of which anything is there.
    pub fn slot(&self, id: ContainerId) -> Option<Slot> {
        locked(&self.owned).get(&id).map(|owned| owned.slot.clone())
    }

    /// Notes that a container that runs has another workspace.
    pub fn set_workspace(&self, id: ContainerId, workspace: LayerStack) {
        if let Some(owned) = locked(&self.owned).get_mut(&id) {
            owned.workspace = Some(workspace);
        }
    }

    /// Notes that it has ended; false where it was stopped (or started anew) in the meantime.
    pub fn clear_running(&self, id: ContainerId, process: &Arc<Handle>) -> bool {
        let mut owned = locked(&self.owned);
        let known = owned.get_mut(&id).map(|owned| &mut owned.process);
        let Some(running) = known else { return false };
        let is_same = running.as_ref().is_some_and(|known| Arc::ptr_eq(known, process));
        if is_same {
            *running = None;
        }
        is_same
    }

    /// Waits for the turn of whoever changes a container.
    pub async fn enter(&self, id: ContainerId) -> OwnedMutexGuard<()> {
        let gate = Arc::clone(locked(&self.gates).entry(id).or_default());
        gate.lock_owned().await
    }

    /// Lets the next one have its turn.
    pub fn leave(&self, id: ContainerId, gate: OwnedMutexGuard<()>) {
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

fn layers_of(spec: &ContainerSpec) -> Vec<LayerId> {
    spec.image.as_ref().map(|image| image.layers.clone()).unwrap_or_default()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
