//! The simulated runtime: containers are entries in the world.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use async_trait::async_trait;
use raworc_core::ids::ContainerId;
use raworc_runtime::{ContainerSpec, Exit, ExitReason, Hidden, Listed, Occupancy, Runtime, RuntimeError};
use raworc_workspace::LayerStack;
use tokio::sync::mpsc;

use crate::host::{self, Model};
use crate::world::World;

/// The runtime of one server.
pub struct SimRuntime {
    world: World,
    exits: std::sync::Mutex<Option<mpsc::Receiver<Exit>>>,
}

impl SimRuntime {
    /// Adopts existing containers; those that ended meanwhile are reported.
    pub fn open(world: &World) -> Self {
        let (sender, receiver) = mpsc::channel(64);
        let ended: Vec<ContainerId> = {
            let mut state = world.state();
            state.exits = Some(sender.clone());
            // Adopted containers are thawed.
            state.containers.values_mut().for_each(|model| (model.is_frozen, model.is_stopping) = (false, false));
            state.containers.iter().filter(|(_, model)| !model.is_alive()).map(|(id, _)| *id).collect()
        };
        let world = world.clone();
        let late = world.clone();
        tokio::spawn(async move {
            for id in ended {
                late.pass(50).await;
                let _ = sender.send(Exit { id, reason: ExitReason::Unknown }).await;
            }
        });
        Self { world, exits: std::sync::Mutex::new(Some(receiver)) }
    }

    /// Resumes running hosts for a new server.
    pub fn wake_hosts(world: &World) {
        let state = world.state();
        for (id, _) in state.containers.iter().filter(|(_, model)| model.is_alive()) {
            tokio::spawn(host::run_host(world.clone(), *id));
        }
    }
}

#[async_trait]
impl Runtime for SimRuntime {
    async fn start(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        let world = &self.world;
        world.pass(15).await;
        if world.fault(0.04) {
            world.log(&format!("{} cannot be started", spec.id));
            return Err(RuntimeError::Start("bad luck".into()));
        }
        if world.fault(0.02) {
            return Err(RuntimeError::Unavailable("away for a moment".into()));
        }
        let is_there = {
            let mut state = world.state();
            let is_there = state.containers.get(&spec.id).is_some_and(Model::is_there);
            if !is_there {
                state.log(&format!("{} starts", spec.id));
                state.mount(spec.id, &spec.workspace);
                state.containers.insert(spec.id, Model::new(spec.token.clone(), spec.workspace.clone()));
            }
            is_there
        };
        if !is_there {
            tokio::spawn(host::run_host(world.clone(), spec.id));
        }
        world.pass(5).await;
        Ok(())
    }

    async fn stop(&self, id: ContainerId, _: Duration) -> Result<(), RuntimeError> {
        if let Some(model) = self.world.state().containers.get_mut(&id) {
            model.is_stopping = true;
        }
        self.world.pass(10).await;
        if self.world.fault(0.02) {
            return Err(RuntimeError::Other("it does not end yet".into()));
        }
        {
            let mut state = self.world.state();
            if let Some(model) = state.containers.remove(&id) {
                model.end();
                state.log(&format!("{id} is stopped"));
            }
        }
        self.world.pass(5).await;
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Listed>, RuntimeError> {
        if self.world.fault(0.05) {
            return Err(RuntimeError::Unavailable("away for a moment".into()));
        }
        let state = self.world.state();
        let all = state.containers.iter();
        let listed = |(id, model): (&ContainerId, &Model)| Listed {
            id: *id,
            workspace: Some(model.workspace.clone()),
            image: Vec::new(),
            is_running: model.is_alive(),
        };
        Ok(all.map(listed).collect())
    }

    fn hidden(&self, _: ContainerId) -> io::Result<Hidden> {
        Ok(Hidden::default())
    }

    fn workspace(&self, id: ContainerId) -> Option<LayerStack> {
        self.world.state().containers.get(&id).filter(|model| model.is_there()).map(|model| model.workspace.clone())
    }

    async fn open_workspace(&self, _: ContainerId) -> Result<OwnedFd, RuntimeError> {
        Err(RuntimeError::Other("nothing is mounted in a simulation".into()))
    }

    async fn freeze(&self, id: ContainerId) -> Result<Occupancy, RuntimeError> {
        self.world.pass(2).await;
        if self.world.fault(0.03) {
            return Err(RuntimeError::Other("it does not stand still".into()));
        }
        let mut state = self.world.state();
        let model = state.containers.get_mut(&id).filter(|model| model.is_there());
        let model = model.ok_or_else(|| RuntimeError::Other("it is gone".into()))?;
        model.is_frozen = true;
        let occupancy = if model.is_working() { Occupancy::OtherProcesses } else { Occupancy::HostOnly };
        state.log(&format!("{id} is frozen: {occupancy:?}"));
        Ok(occupancy)
    }

    async fn thaw(&self, id: ContainerId) -> Result<(), RuntimeError> {
        self.world.pass(1).await;
        if let Some(model) = self.world.state().containers.get_mut(&id) {
            model.is_frozen = false;
        }
        Ok(())
    }

    async fn remount(&self, id: ContainerId, workspace: &LayerStack) -> Result<(), RuntimeError> {
        self.world.pass(3).await;
        if self.world.fault(0.03) {
            return Err(RuntimeError::Other("it cannot be mounted".into()));
        }
        let mut state = self.world.state();
        if !state.containers.get(&id).is_some_and(Model::is_there) {
            return Err(RuntimeError::Other("it is gone".into()));
        }
        state.mount(id, workspace);
        if let Some(model) = state.containers.get_mut(&id) {
            model.workspace = workspace.clone();
        }
        Ok(())
    }

    fn exits(&self) -> mpsc::Receiver<Exit> {
        let taken = self.exits.lock().ok().and_then(|mut exits| exits.take());
        taken.unwrap_or_else(|| mpsc::channel(1).1)
    }

    fn spares(&self) -> usize {
        0
    }

    async fn close(&self) {}

    async fn check(&self) -> Result<BTreeMap<String, String>, RuntimeError> {
        Ok(BTreeMap::new())
    }
}
