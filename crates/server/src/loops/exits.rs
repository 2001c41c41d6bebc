//! Tells sessions that their container has ended by itself.

use std::time::Duration;

use raworc_api::problem::Code;
use raworc_core::checkpoints::Cause;
use raworc_runtime::Exit;

use crate::app::Shared;
use crate::error::Failure;
use crate::loops::supervise::Loop;
use crate::record::observe;

/// How long the connection of a host that has ended may take to end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Records the ends of containers.
pub struct Exits;

impl Loop for Exits {
    const NAME: &'static str = "exits";
    const TRIGGER: &'static str = "a container that ended";

    fn bound() -> String {
        "each by itself".to_owned()
    }

    async fn run(app: Shared) {
        let mut exits = app.runtime.exits();
        loop {
            let Some(Some(exit)) = app.unless_stopping(exits.recv()).await else { return };
            // Each by itself: one whose remains do not go away must not hold up the truth about others.
            app.loops.ran(Exits::NAME, true);
            app.tasks.spawn(gone(app.clone(), exit));
        }
    }
}

async fn gone(app: Shared, exit: Exit) {
    // What its host said last may still be on its way to the records.
    app.hosts.until_disconnected(exit.id, LAST_WORDS).await;
    app.hosts.forget(exit.id);
    match observe::container_gone(&app, exit.id, exit.reason).await {
        Ok(_) => {}
        Err(Failure::Problem(problem)) if problem.code == Code::NotFound => {
            tracing::debug!(container = %exit.id, "a container ended that no session owns");
        }
        // The sweep finds it again.
        Err(error) => {
            tracing::error!(container = %exit.id, %error, "the end of a container could not be recorded");
        }
    }
    app.checkpoint_queue.enqueue(exit.id.session, Cause::Stop);
    if let Err(error) = app.runtime.stop(exit.id, Duration::ZERO).await {
        tracing::warn!(container = %exit.id, %error, "what is left of a container could not be removed; the sweep will");
    }
}
