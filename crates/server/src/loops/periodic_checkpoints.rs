//! Has workspaces saved by the clock, where their sessions' plans say so.

use std::time::Duration;

use raworc_core::checkpoints::Cause;

use crate::app::Shared;
use crate::loops::supervise::Loop;

/// How exactly times are kept.
const TICK: Duration = Duration::from_secs(1);

/// Has workspaces saved by the clock.
pub struct PeriodicCheckpoints;

impl Loop for PeriodicCheckpoints {
    const NAME: &'static str = "every";
    const TRIGGER: &'static str = "every second";

    fn bound() -> String {
        "all that are due are asked for".to_owned()
    }

    async fn run(app: Shared) {
        while app.sleep(TICK).await {
            app.loops.ran(PeriodicCheckpoints::NAME, true);
            app.checkpoint_timers
                .due()
                .into_iter()
                .for_each(|session| app.checkpoint_queue.enqueue(session, Cause::Every));
        }
    }
}
