//! When a session's workspace is saved, and which of its checkpoints are kept.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What makes the server take checkpoints by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The end of each message that changed the workspace, and every stop.
    #[default]
    EachMessage,
    /// Every stop of its container.
    OnStop,
    /// So many seconds have passed ([`Plan::every`]), and every stop.
    Every,
    /// Nothing: only who asks gets one.
    Manual,
}

/// Why a checkpoint was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A message ended.
    Message,
    /// The container was stopped, or ended.
    Stop,
    /// Its time had come.
    Every,
    /// Files were changed from outside while nothing ran, and a container was about to start.
    Start,
    /// Someone asked for it.
    Request,
    /// The session was about to go back to an earlier one.
    Rewind,
    /// It came with the session, from the one it was made from.
    Remix,
}

impl Cause {
    /// Whether it comes about by itself. Where someone wants a checkpoint, that is a record of its own.
    #[must_use]
    pub fn is_occasion(self) -> bool {
        match self {
            Self::Message | Self::Stop | Self::Every | Self::Start => true,
            Self::Request | Self::Rewind | Self::Remix => false,
        }
    }
}

/// A session's plan for its checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// When.
    pub policy: Policy,
    /// Time between two of them with [`Policy::Every`].
    pub every: Option<Duration>,
    /// How many of the newest are kept, beside those that have a label.
    pub keep_last: u32,
}

impl Default for Plan {
    fn default() -> Self {
        Self { policy: Policy::default(), every: None, keep_last: crate::limits::CHECKPOINTS_KEPT_DEFAULT }
    }
}

impl Plan {
    /// Whether this cause alone, nobody having asked, is enough.
    #[must_use]
    pub fn wants(&self, cause: Cause) -> bool {
        match cause {
            Cause::Request | Cause::Rewind | Cause::Remix => true,
            Cause::Message => self.policy == Policy::EachMessage,
            Cause::Every => self.policy == Policy::Every,
            Cause::Stop | Cause::Start => self.policy != Policy::Manual,
        }
    }
}

/// Where a session's checkpoints are sent by themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// `REGISTRY/REPOSITORY`; each gets a tag.
    pub registry: String,
    /// Least time between two of them.
    pub every: Duration,
}

/// How long to wait before a backup that has failed so many times in a row is tried again: a minute, twice as long each time,
/// an hour at most.
#[must_use]
pub fn backup_retry(failures: u32) -> Duration {
    let minutes = 1_u64 << failures.saturating_sub(1).min(6);
    Duration::from_secs(60 * minutes.min(60))
}

/// Which of a session's checkpoints (number and whether it has a label, oldest first) are no longer kept.
#[must_use]
pub fn expired(checkpoints: &[(u64, bool)], keep_last: u32) -> Vec<u64> {
    let old = checkpoints.len().saturating_sub(keep_last.max(1) as usize);
    checkpoints[..old].iter().filter(|(_, has_label)| !has_label).map(|(n, _)| *n).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_and_the_labelled_are_kept() {
        let all = [(1, false), (2, true), (3, false), (4, false), (5, false)];
        assert_eq!(expired(&all, 2), [1, 3]);
        assert_eq!(expired(&all, 5), [0_u64; 0]);
        // What a session stands on is never given up.
        assert_eq!(expired(&all, 0), [1, 3, 4]);
        assert_eq!(expired(&[], 3), [0_u64; 0]);
    }

    #[test]
    fn a_registry_that_is_away_is_asked_less_and_less_often() {
        let minutes = [0, 1, 2, 3, 6, 7, 100, u32::MAX].map(|failures| backup_retry(failures).as_secs() / 60);
        assert_eq!(minutes, [1, 1, 2, 4, 32, 60, 60, 60]);
    }

    #[test]
    fn a_policy_decides_what_happens_by_itself() {
        let wanted = |policy| {
            let plan = Plan { policy, ..Plan::default() };
            [Cause::Message, Cause::Stop, Cause::Every, Cause::Start, Cause::Request].map(|cause| plan.wants(cause))
        };
        assert_eq!(wanted(Policy::EachMessage), [true, true, false, true, true]);
        assert_eq!(wanted(Policy::OnStop), [false, true, false, true, true]);
        assert_eq!(wanted(Policy::Every), [false, true, true, true, true]);
        assert_eq!(wanted(Policy::Manual), [false, false, false, false, true]);
    }
}
