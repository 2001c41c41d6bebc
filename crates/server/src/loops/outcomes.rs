//! How the loops get on, for `/health` and `/system/loops`.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::sync::lock;

/// A loop that has gone on for so long works again.
pub const WELL: Duration = Duration::from_secs(60);

/// How all loops get on.
#[derive(Default)]
pub struct Loops(Mutex<BTreeMap<&'static str, LoopState>>);

/// How one does.
#[derive(Clone, Debug, Default)]
pub struct LoopState {
    /// What has it do its work, for people.
    pub trigger: &'static str,
    /// How much it does at the same time or in one go, for people.
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

    /// A loop begins.
    pub fn begins(&self, name: &'static str, trigger: &'static str, bound: String) {
        lock(&self.0).insert(name, LoopState { trigger, bound, ..LoopState::default() });
    }

    /// All of them, by name.
    pub fn all(&self) -> BTreeMap<&'static str, LoopState> {
        lock(&self.0).clone()
    }

    /// A loop, or a part of its work, has ended before its time.
    pub fn failed(&self, name: &'static str) {
        let mut all = lock(&self.0);
        let state = all.entry(name).or_default();
        state.restarts = state.restarts.saturating_add(1);
        state.failed = Some(Instant::now());
    }
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
