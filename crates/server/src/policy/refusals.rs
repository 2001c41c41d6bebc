//! Which refusals are recorded in the audit trail: so many of each account.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use raworc_core::ids::AccountId;
use tokio::time::Instant;

use crate::sync::lock;

/// Refusals of one account that are recorded in a [`PERIOD`]: who is refused over and over does not fill the disk with it.
const REFUSALS_MAX: u32 = 60;
const PERIOD: Duration = Duration::from_secs(60);

/// How many refusals of each account were recorded in its present period.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<HashMap<AccountId, (Instant, u32)>>);

impl Refusals {
    /// Whether one more is to be recorded.
    pub fn counts(&self, account: AccountId) -> bool {
        let mut all = lock(&self.0);
        all.retain(|_, (since, _)| since.elapsed() < PERIOD);
        let (_, count) = all.entry(account).or_insert((Instant::now(), 0));
        *count = count.saturating_add(1);
        *count <= REFUSALS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_is_refused_over_and_over_fills_no_disk() {
        let (refusals, account) = (Refusals::default(), |n| AccountId(uuid::Uuid::from_u128(n)));
        assert_eq!((0..200).filter(|_| refusals.counts(account(1))).count(), REFUSALS_MAX as usize);
        assert!(refusals.counts(account(2)), "another one's are recorded");
        tokio::time::advance(PERIOD).await;
        assert!(refusals.counts(account(1)), "and so are those of another minute");
        assert_eq!(lock(&refusals.0).len(), 1);
    }
}
