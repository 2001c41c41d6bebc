//! Record how backups get on.

use raworc_core::checkpoints::backup_retry;
use raworc_core::events::{CheckpointBackedUp, CheckpointBackupFailed};
use raworc_core::ids::SessionId;

use crate::app::Shared;
use crate::change::{Change, SYSTEM};
use crate::error::Failure;

/// A session has a checkpoint more: it is to be sent when its time has come.
pub fn want(change: &mut Change<'_>) {
    let Some(plan) = &change.row.settings.backup else { return };
    let earliest = change.row.backup.at.map_or(change.now, |at| at + plan.every);
    change.row.backup_at = Some(change.row.backup_at.unwrap_or(earliest.max(change.now)));
}

/// Checkpoint `n` is in the registry that the session named when it was sent.
///
/// # Errors
/// Where the store fails.
pub async fn done(
    app: &Shared,
    session: SessionId,
    (n, registry): (u64, &str),
    (reference, digest): (String, String),
) -> Result<(), Failure> {
    let (now, registry) = (app.now(), registry.to_owned());
    let write = app.store.write(move |tx| {
        Box::pin(async move {
            let mut change = Change::load(tx, session, now, SYSTEM).await?;
            // Where another is wanted by now, what is to be sent there is still to come.
            if is_wanted(&change, &registry) {
                let backup = &mut change.row.backup;
                (backup.checkpoint, backup.at) = (Some(n), Some(now));
                (backup.failures, backup.error) = (0, None);
                change.row.backup_at = None;
                want_newer(&mut change).await?;
            }
            change.log(CheckpointBackedUp { n, reference, digest }).await?;
            change.save().await?;
            Ok::<_, Failure>(())
        })
    });
    write.await
}

fn is_wanted(change: &Change<'_>, registry: &str) -> bool {
    change.row.settings.backup.as_ref().is_some_and(|plan| plan.registry == registry)
}

async fn want_newer(change: &mut Change<'_>) -> Result<(), Failure> {
    let session = change.row.id;
    let newest = raworc_store::checkpoints::newest(change.tx(), session).await?;
    if newest.is_some_and(|newest| Some(newest.n) > change.row.backup.checkpoint) {
        want(change);
    }
    Ok(())
}

/// There was nothing to send any more when it was looked up.
///
/// # Errors
/// Where the store fails.
pub async fn nothing(app: &Shared, session: SessionId) -> Result<(), Failure> {
    let now = app.now();
    let write = app.store.write(move |tx| {
        Box::pin(async move {
            let mut change = Change::load(tx, session, now, SYSTEM).await?;
            change.row.backup_at = None;
            want_newer(&mut change).await?;
            change.save().await?;
            Ok::<_, Failure>(())
        })
    });
    write.await
}

/// It could not be sent, and will be tried again. The first time in a row is an event.
///
/// # Errors
/// Where the store fails.
pub async fn failed(
    app: &Shared,
    session: SessionId,
    (n, registry): (u64, &str),
    error: String,
) -> Result<(), Failure> {
    let (now, registry) = (app.now(), registry.to_owned());
    let write = app.store.write(move |tx| {
        Box::pin(async move {
            let mut change = Change::load(tx, session, now, SYSTEM).await?;
            if !is_wanted(&change, &registry) {
                return Ok(());
            }
            let backup = &mut change.row.backup;
            backup.failures = backup.failures.saturating_add(1);
            let is_first = backup.failures == 1;
            backup.error = Some(error.clone());
            change.row.backup_at = Some(now + backup_retry(change.row.backup.failures));
            if is_first {
                change.log(CheckpointBackupFailed { n, error }).await?;
            }
            change.save().await?;
            Ok::<_, Failure>(())
        })
    });
    write.await
}
