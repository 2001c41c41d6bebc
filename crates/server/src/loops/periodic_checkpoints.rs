//! Has workspaces saved by the clock, where their sessions' plans say so.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use raworc_core::checkpoints::{Cause, Plan, Policy};
use raworc_core::ids::SessionId;
use tokio::time::Instant;

use crate::app::Shared;
use crate::loops::supervise::Loop;
use crate::sync::lock;

/// How exactly times are kept.
const TICK: Duration = Duration::from_secs(1);

/// Sessions with a container that are saved by the clock, and when the next time is.
#[derive(Default)]
pub struct CheckpointTimers(Mutex<HashMap<SessionId, (Duration, Instant)>>);

impl CheckpointTimers {
    /// Notes the plan of a session; its clock starts now, or goes on where the plan is the same.
    pub fn set(&self, session: SessionId, plan: &Plan, is_running: bool) {
        let every = plan.every.filter(|_| is_running && plan.policy == Policy::Every);
        let mut all = lock(&self.0);
        match (every, all.get(&session)) {
            (Some(every), Some((same, _))) if *same == every => {}
            (Some(every), _) => drop(all.insert(session, (every, Instant::now() + every))),
            (None, _) => drop(all.remove(&session)),
        }
    }

    /// Those whose time has come; the next time of each is so much later.
    fn due(&self) -> Vec<SessionId> {
        let now = Instant::now();
        let mut due = Vec::new();
        for (session, (every, next)) in lock(&self.0).iter_mut() {
            if *next <= now {
                *next = now + *every;
                due.push(*session);
            }
        }
        due
    }
}

/// Has workspaces saved by the clock.
pub struct PeriodicCheckpoints;

impl Loop for PeriodicCheckpoints {
    const NAME: &'static str = "every";
    const TRIGGER: &'static str = "every second";

    fn bound() -> String {
        "all that are due are asked for".to_owned()
    }

    async fn run(app: Shared) {
        loop {
            tokio::select! {
                biased;
                () = app.stopping.cancelled() => return,
                () = tokio::time::sleep(TICK) => {}
            }
            app.loops.ran(PeriodicCheckpoints::NAME, true);
            app.checkpoint_timers
                .due()
                .into_iter()
                .for_each(|session| app.checkpoint_queue.enqueue(session, Cause::Every));
        }
    }
}
