//! When sessions are saved by the clock.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use raworc_core::checkpoints::{Plan, Policy};
use raworc_core::ids::SessionId;
use tokio::time::Instant;

use crate::sync::lock;

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
    pub fn due(&self) -> Vec<SessionId> {
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
