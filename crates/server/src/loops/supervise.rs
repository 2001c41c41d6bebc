//! Keeps the loops going. One that panics, or ends before the server does, is begun anew, after a while that grows; and each says
//! how it gets on ([`outcomes`](super::outcomes)).

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::Instant;

use super::outcomes::WELL;
use crate::app::Shared;

/// Wait before a loop that has ended is begun anew: longer each time.
const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// Something that the server does over and over, until it stops.
pub trait Loop: Send + 'static {
    /// What it is called in the log, in `/health` and in `/system/loops`.
    const NAME: &'static str;
    /// What has it do its work, for people.
    const TRIGGER: &'static str;

    /// How much it does at the same time or in one go, for people.
    fn bound() -> String;

    /// Runs until the server stops.
    fn run(app: Shared) -> impl Future<Output = ()> + Send;
}

/// Runs a loop until the server stops.
pub fn spawn<L: Loop>(app: &Shared) {
    let name = L::NAME;
    app.loops.begins(name, L::TRIGGER, L::bound());
    let app = app.clone();
    app.tasks.clone().spawn(async move {
        let mut pause = AGAIN_MIN;
        loop {
            let began = Instant::now();
            let ended = AssertUnwindSafe(L::run(app.clone())).catch_unwind().await;
            if app.stopping.is_cancelled() {
                return;
            }
            let how = if ended.is_ok() { "ended" } else { "panicked" };
            tracing::error!(name, how, "a loop of the server is begun anew");
            app.loops.failed(name);
            if began.elapsed() >= WELL {
                pause = AGAIN_MIN;
            }
            if !app.sleep(pause).await {
                return;
            }
            pause = (pause * 2).min(AGAIN_MAX);
        }
    });
}

/// Does a part of a loop's work, to its end or its panic; none after that.
pub async fn caught<T>(app: &Shared, name: &'static str, work: impl Future<Output = T>) -> Option<T> {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    if done.is_err() {
        tracing::error!(name, "a part of the work of a loop panicked");
        app.loops.failed(name);
    }
    done.ok()
}
