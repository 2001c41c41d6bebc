//! Finds hosts that were not heard of for too long.

use raworc_core::limits::HEARTBEAT_INTERVAL;

use crate::app::Shared;
use crate::verbs::observe;

/// Runs until the server stops.
pub async fn run(app: Shared) {
    loop {
        tokio::select! {
            biased;
            () = app.stopping.cancelled() => return,
            () = tokio::time::sleep(HEARTBEAT_INTERVAL / 2) => {}
        }
        app.loops.ran("leases", true);
        for container in app.hosts.lost() {
            tracing::warn!(%container, "a host was not heard of for too long");
            if let Err(error) = observe::host_lost(&app, container).await {
                tracing::error!(%container, %error, "the loss of a host could not be recorded; trying again");
                app.hosts.expect(container);
            }
        }
    }
}
