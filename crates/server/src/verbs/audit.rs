//! Read the audit trail, and add to it what was refused. What is done is added where it is done, in the same transaction.

use raworc_api::audit::AuditOutcome;
use raworc_core::limits::PAGE_BYTES_MAX;
use raworc_core::permissions::{Action, Actor};
use raworc_store::Batch;
use raworc_store::audit::{self, AuditRow, Filter};
use tokio::sync::OwnedSemaphorePermit;

use crate::app::Shared;
use crate::error::Failure;
use crate::policy::permit;

/// Longest path that is recorded, in characters.
const TARGET_CHARACTERS_MAX: usize = 256;

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
        let write = in_task.store.write(move |tx| {
            Box::pin(async move {
                let entry = (call.as_str(), target.as_str(), AuditOutcome::Refused);
                audit::insert(tx, now, &actor, entry).await?;
                Ok::<_, Failure>(())
            })
        });
        if let Err(error) = write.await {
            tracing::error!(%error, "what was refused could not be recorded");
        }
    });
}
