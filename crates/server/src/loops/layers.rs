//! Removes layers that nothing needs any more ([`chains`]).

use std::collections::BTreeSet;
use std::time::Duration;

use super::supervise::Loop;
use crate::app::Shared;
use crate::layers::chains::{self, BATCH};

/// How long to wait before what was still mounted or read is looked at again: longer each time.
const AGAIN_MIN: Duration = Duration::from_millis(200);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// Removes layers that nothing needs any more.
pub struct Layers;

impl Loop for Layers {
    const NAME: &'static str = "layers";
    const TRIGGER: &'static str = "a layer that may be of no use any more";

    fn bound() -> String {
        format!("{BATCH} looked up in one go")
    }

    async fn run(app: Shared) {
        let (mut busy, mut pause) = (BTreeSet::new(), AGAIN_MIN);
        loop {
            tokio::select! {
                biased;
                () = app.stopping.cancelled() => return,
                waste = app.garbage_queue.next_batch() => {
                    busy.extend(waste);
                    pause = AGAIN_MIN;
                }
                () = tokio::time::sleep(pause), if !busy.is_empty() => pause = (pause * 2).min(AGAIN_MAX),
            }
            let collected = chains::collect(&app, busy.clone()).await;
            app.loops.ran(Layers::NAME, collected.is_ok());
            match collected {
                Ok(left) => busy = left,
                Err(error) => tracing::warn!(%error, "layers could not be removed; it is tried again"),
            }
        }
    }
}
