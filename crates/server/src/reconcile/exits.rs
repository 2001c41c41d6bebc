//! Tells sessions that their container has ended by itself.

use std::time::Duration;

use raworc_api::problem::Code;

use crate::app::Shared;
use crate::error::Failure;
use crate::verbs::observe;

/// Runs until the server stops.
pub async fn run(app: Shared) {
    let mut exits = app.runtime.exits();
    loop {
        let exit = tokio::select! {
            biased;
            () = app.stopping.cancelled() => return,
            exit = exits.recv() => exit,
        };
        let Some(exit) = exit else { return };
        app.hosts.forget(exit.id);
        if let Err(error) = app.runtime.stop(exit.id, Duration::ZERO).await {
            tracing::warn!(container = %exit.id, %error, "what is left of a container could not be removed; the sweep will");
        }
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
    }
}
