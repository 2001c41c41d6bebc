//! The disk under the layers: slow now and then, full in the middle of something, or the last thing that a server touches.

use std::io;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use raworc_server::FaultInjector;
use raworc_workspace::steps::{self, Step};

use crate::world::World;

/// What work on layers meets.
pub struct SimFaultInjector(pub World);

/// What becomes of a piece of work.
#[derive(Clone, Copy, Debug)]
pub struct InjectedFault {
    /// So many steps are still taken.
    steps: usize,
    /// Then the server is dead; otherwise the disk is full for a moment.
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

/// A dead server goes on with nothing.
async fn alive(world: &World) {
    if world.state().is_dead {
        std::future::pending::<()>().await;
    }
}

/// Stands in the middle of what is done to layers on this thread.
pub fn watch(world: &World) {
    let world = world.clone();
    steps::watch(Some(Box::new(move |step| meet(&world, step))));
}

fn meet(world: &World, step: Step<'_>) -> io::Result<()> {
    let mut state = world.state();
    if state.is_dead {
        return Err(io::Error::other("the server is dead"));
    }
    match (step, &mut state.fate) {
        (Step::Flushed(layer), _) => state.oracle.flushed(layer),
        (Step::Change, None) => {}
        (Step::Change, Some(fate)) if fate.steps > 0 => fate.steps -= 1,
        (Step::Change, Some(InjectedFault { is_death: false, .. })) => {
            state.fate = None;
            state.tell("the disk is full in the middle of something");
            return Err(rustix::io::Errno::NOSPC.into());
        }
        (Step::Change, Some(_)) => {
            state.is_dead = true;
            state.death.notify_one();
            state.tell("the server dies in the middle of something");
            return Err(io::Error::other("the server is dead"));
        }
    }
    Ok(())
}
