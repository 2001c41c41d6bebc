//! Keeps the reserve for a full disk ([`Reserve`](crate::reserve::Reserve)).

use std::time::Duration;

use super::supervise::Loop;
use crate::app::Shared;
use crate::sync::blocking;

/// How often it is looked whether there is room for it again: soon after some was made, or it is taken by others.
const INTERVAL: Duration = Duration::from_secs(2);

/// Keeps the reserve.
pub struct ReserveLoop;

impl Loop for ReserveLoop {
    const NAME: &'static str = "reserve";
    const TRIGGER: &'static str = "every 2 seconds";

    fn bound() -> String {
        "one look at a time".to_owned()
    }

    async fn run(app: Shared) {
        let Some(reserve) = app.reserve.clone() else { return };
        loop {
            let kept = reserve.clone();
            let _ = blocking(move || kept.keep()).await;
            app.loops.ran(Self::NAME, true);
            if !app.sleep(INTERVAL).await {
                return;
            }
        }
    }
}
