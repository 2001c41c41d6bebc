//! Keeps the loops going. One that panics, or ends before the server does, is begun anew, after a while that grows; and each says
//! how it gets on.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::Instant;

use crate::app::Shared;
use crate::sync::lock;

/// Wait before a loop that has ended is begun anew: longer each time.
const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);
/// A loop that has gone on for so long works again.
const WELL: Duration = Duration::from_secs(60);

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

/// How all loops get on.
#[derive(Default)]
pub struct Loops(Mutex<BTreeMap<&'static str, LoopState>>);

/// How one does.
#[derive(Clone, Debug, Default)]
pub struct LoopState {
    /// [`Loop::TRIGGER`].
    pub trigger: &'static str,
    /// [`Loop::bound`].
    pub bound: String,
    /// How often it was begun anew.
    pub restarts: u32,
    /// When it last ended before its time, or a part of its work did.
    failed: Option<Instant>,
    /// When it last did its work.
    ran: Option<Instant>,
    /// Whether it could.
    is_failing: bool,
}

impl LoopState {
    /// Time since it last did its work.
    pub fn ran_before(&self) -> Option<Duration> {
        self.ran.map(|at| at.elapsed())
    }

    /// In a word.
    pub fn status(&self) -> &'static str {
        if self.failed.is_some_and(|at| at.elapsed() < WELL) {
            "restarted"
        } else if self.is_failing {
            "failing"
        } else {
            "ok"
        }
    }
}

impl Loops {
    /// A loop has done its work, or could not.
    pub fn ran(&self, name: &'static str, is_done: bool) {
        let mut all = lock(&self.0);
        let state = all.entry(name).or_default();
        state.is_failing = !is_done;
        if is_done {
            state.ran = Some(Instant::now());
        }
    }

    /// All of them, by name.
    pub fn all(&self) -> BTreeMap<&'static str, LoopState> {
        lock(&self.0).clone()
    }

    fn failed(&self, name: &'static str) {
        let mut all = lock(&self.0);
        let state = all.entry(name).or_default();
        state.restarts = state.restarts.saturating_add(1);
        state.failed = Some(Instant::now());
    }
}

/// Runs a loop until the server stops.
pub fn spawn<L: Loop>(app: &Shared) {
    let name = L::NAME;
    lock(&app.loops.0).insert(name, LoopState { trigger: L::TRIGGER, bound: L::bound(), ..LoopState::default() });
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
            tokio::select! {
                biased;
                () = app.stopping.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_is_told_by_how_it_did_last_and_how_lately_it_failed() {
        let loops = Loops::default();
        loops.ran("sweep", true);
        let status = || loops.all()["sweep"].status();
        assert_eq!(status(), "ok");
        loops.ran("sweep", false);
        assert_eq!(status(), "failing");
        loops.failed("sweep");
        assert_eq!((status(), loops.all()["sweep"].restarts), ("restarted", 1));
        loops.ran("sweep", true);
        assert_eq!(status(), "restarted", "it has to go on for a while first");
        tokio::time::advance(WELL).await;
        assert_eq!(status(), "ok");
    }
}
