//! Faults of the disk with the layers: it is slow, full, or the server dies.

use std::io;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use raworc_server::FaultInjector;
use raworc_workspace::failpoints::{self, Failpoint};

use crate::world::World;

/// Injects faults into work on layers.
pub struct SimFaultInjector(pub World);

/// The fault of one piece of work.
#[derive(Clone, Copy, Debug)]
pub struct InjectedFault {
    /// How many steps succeed before.
    steps: usize,
    /// Whether the server dies; otherwise the disk is full once.
    is_death: bool,
}

impl FaultInjector for SimFaultInjector {
    fn before(&self) -> BoxFuture<'_, ()> {
        async move {
            alive(&self.0).await;
            self.0.pass(if self.0.fault(0.01) { 1_500 } else { 2 }).await;
            alive(&self.0).await;
            let (is_full, is_death) = (self.0.fault(0.04), self.0.fault(0.015));
            let steps = self.0.below(if self.0.chance(0.5) { 5 } else { 50 });
            let mut state = self.0.state();
            state.fate =
                (is_full || (is_death && state.is_mortal)).then_some(InjectedFault { steps, is_death: !is_full });
        }
        .boxed()
    }

    fn after(&self) -> BoxFuture<'_, ()> {
        async move {
            self.0.state().fate = None;
            alive(&self.0).await;
            self.0.pass(if self.0.fault(0.01) { 800 } else { 2 }).await;
        }
        .boxed()
    }
}

/// Blocks for ever if the server is dead.
async fn alive(world: &World) {
    if world.state().is_dead {
        std::future::pending::<()>().await;
    }
}

/// Installs the failpoint handler on this thread.
pub fn watch(world: &World) {
    let world = world.clone();
    failpoints::set_handler(Some(Box::new(move |step| meet(&world, step))));
}

fn meet(world: &World, step: Failpoint<'_>) -> io::Result<()> {
    let mut state = world.state();
    if state.is_dead {
        return Err(io::Error::other("the server is dead"));
    }
    match (step, &mut state.fate) {
        (Failpoint::Flushed(layer), _) => state.oracle.flushed(layer),
        (Failpoint::Change, None) => {}
        (Failpoint::Change, Some(fate)) if fate.steps > 0 => fate.steps -= 1,
        (Failpoint::Change, Some(InjectedFault { is_death: false, .. })) => {
            state.fate = None;
            state.log("the disk is full in the middle of something");
            return Err(rustix::io::Errno::NOSPC.into());
        }
        (Failpoint::Change, Some(_)) => {
            state.is_dead = true;
            state.death.notify_one();
            state.log("the server dies in the middle of something");
            return Err(io::Error::other("the server is dead"));
        }
    }
    Ok(())
}
