//! Finds hosts that were not heard of for too long.

use futures::StreamExt as _;
use raworc_core::limits::HEARTBEAT_INTERVAL;

use super::TOLD_AT_ONCE;
use crate::app::Shared;
use crate::loops::supervise::Loop;
use crate::record::observe;

/// Records hosts that were not heard of for too long.
pub struct Leases;

impl Loop for Leases {
    const NAME: &'static str = "leases";
    const TRIGGER: &'static str = "half the interval of heartbeats";

    fn bound() -> String {
        format!("{TOLD_AT_ONCE} at once")
    }

    async fn run(app: Shared) {
        while app.sleep(HEARTBEAT_INTERVAL / 2).await {
            app.loops.ran(Leases::NAME, true);
            let told = futures::stream::iter(app.hosts.lost()).for_each_concurrent(TOLD_AT_ONCE, async |container| {
                tracing::warn!(%container, "a host was not heard of for too long");
                if let Err(error) = observe::host_lost(&app, container).await {
                    tracing::error!(%container, %error, "the loss of a host could not be recorded; trying again");
                    app.hosts.expect(container);
                }
            });
            told.await;
        }
    }
}
