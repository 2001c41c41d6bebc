//! Read the audit trail, and add to it what was refused. What is done is added where it is done, in the same transaction.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use raworc_api::audit::AuditOutcome;
use raworc_core::ids::AccountId;
use raworc_core::limits::PAGE_BYTES_MAX;
use raworc_core::permissions::{Action, Actor};
use raworc_store::Batch;
use raworc_store::audit::{self, AuditRow, Filter};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::app::Shared;
use crate::error::Failure;
use crate::policy::permit;
use crate::sync::lock;

/// Refusals of one account that are recorded in a [`PERIOD`]: who is refused over and over does not fill the disk with it.
const REFUSALS_MAX: u32 = 60;
const PERIOD: Duration = Duration::from_secs(60);
/// Longest path that is recorded, in characters.
const TARGET_CHARACTERS_MAX: usize = 256;

/// How many refusals of each account were recorded in its present period.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<HashMap<AccountId, (Instant, u32)>>);

impl Refusals {
    /// Whether one more is to be recorded.
    fn counts(&self, account: AccountId) -> bool {
        let mut all = lock(&self.0);
        all.retain(|_, (since, _)| since.elapsed() < PERIOD);
        let (_, count) = all.entry(account).or_insert((Instant::now(), 0));
        *count = count.saturating_add(1);
        *count <= REFUSALS_MAX
    }
}

/// Entries that match, newest first.
///
/// # Errors
/// 403 where the actor is no administrator.
pub async fn list(
    app: &Shared,
    actor: &Actor,
    filter: Filter,
    limit: u32,
) -> Result<(Batch<AuditRow>, OwnedSemaphorePermit), Failure> {
    permit(actor, Action::ReadServer, "audit", "")?;
    let bounds = (limit, PAGE_BYTES_MAX);
    app.scan(move |connection| Box::pin(async move { Ok(audit::list(connection, &filter, bounds).await?) })).await
}

/// Records that `actor` was refused a call.
pub fn refused(app: &Shared, actor: &Actor, call: String, path: &str) {
    if !app.refusals.counts(actor.account) {
        return;
    }
    let (in_task, actor, now) = (app.clone(), actor.clone(), app.now());
    let target: String = path.chars().take(TARGET_CHARACTERS_MAX).collect();
    app.tasks.spawn(async move {
        let write = in_task.store.write(move |transaction| {
            Box::pin(async move {
                let entry = (call.as_str(), target.as_str(), AuditOutcome::Refused);
                audit::insert(transaction.connection(), now, &actor, entry).await?;
                Ok::<_, Failure>(())
            })
        });
        if let Err(error) = write.await {
            tracing::error!(%error, "what was refused could not be recorded");
        }
    });
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
