//! Saves workspaces.
//!
//! In two steps: first what is to be saved is fixed ([`fix`]), which takes moments and holds up the session; then it is
//! brought to the disk and measured ([`finish`]), which does not. Only after the second is a checkpoint `ready`.
//!
//! What a session writes to is a layer already, so fixing it is a matter of records: what it wrote becomes a layer that
//! never changes, and it writes to a new one from then on. A container gets the new one without noticing, if nothing but
//! its host runs in it. Otherwise it stands still while what changed is copied ([`live_capture`](super::live_capture)).

use std::collections::BTreeSet;
use std::time::Duration;

use raworc_core::checkpoints::Cause;
use raworc_core::ids::{ContainerId, LayerId, SessionId};
use raworc_runtime::Occupancy;
use raworc_store::checkpoints::{self, CheckpointRow, Status};
use raworc_store::sessions::{self, SessionRow};
use raworc_workspace::layers::seal;
use raworc_workspace::{FileError, LayerStack};

use super::job::{Job, give_up};
use super::live_capture;
use super::save_error::SaveError;
use crate::app::Shared;
use crate::error::Failure;
use crate::layers::workspace_access::{self, SessionGuard};
use crate::layers::{chains, disk_use};
use crate::record::save::{self, SaveOutcome};

/// Captures the workspace where a checkpoint is wanted; true where one was taken. What goes wrong with the workspace is recorded.
///
/// # Errors
/// Where the store fails: to be tried again.
pub async fn fix(
    app: &Shared,
    _: &SessionGuard,
    session: SessionId,
    causes: &BTreeSet<Cause>,
) -> Result<bool, Failure> {
    let room = match chains::make_room(app, session).await {
        Err(Failure::File(error)) => Err(SaveError::from(error)),
        Err(error) if error.damage().is_some() => Err(SaveError::Failure(error)),
        outcome => Ok(outcome?),
    };
    let Some((row, pending)) = load(app, session).await? else { return Ok(false) };
    let container = ContainerId { session, generation: row.machine.generation };
    let was_there = app.runtime.workspace(container).is_some();
    app.checkpoint_timers.set(session, &row.settings.checkpoints, was_there);
    let job = Job { app, row: &row, container, causes, began: app.now() };
    // What goes wrong with files is told; only the records are tried again.
    let room = match (room, was_there) {
        (Ok(()), true) => disk_use::watch(app, &row, container).await.map_err(SaveError::from),
        (room, _) => room,
    };
    let attempt = match (room, app.runtime.workspace(container)) {
        (Err(save_error), _) => Err(save_error),
        (Ok(()), Some(stack)) => job.fix_running(&stack, &pending).await,
        (Ok(()), None) => job.fix_resting(&pending).await,
    };
    match attempt {
        Ok(done) => Ok(done),
        Err(SaveError::Failure(failure @ Failure::Store(_))) if failure.damage().is_none() => Err(failure),
        // It was stopped, or has ended, in the middle of it. Who takes note of that saves what it has left.
        Err(save_error) if was_there && app.runtime.workspace(container).is_none() => {
            tracing::debug!(%session, %save_error, "a container ended while its workspace was saved; it is saved then");
            Ok(false)
        }
        Err(save_error) => {
            tracing::warn!(%session, %save_error, "a checkpoint could not be taken");
            save::failed(app, session, causes, &save_error.told()).await?;
            Ok(true)
        }
    }
}

async fn load(app: &Shared, session: SessionId) -> Result<Option<(SessionRow, Vec<CheckpointRow>)>, Failure> {
    let mut connection = app.store.read().await?;
    let Some(row) = sessions::find(&mut connection, session).await? else { return Ok(None) };
    let pending = save::pending(&row, checkpoints::open_of(&mut connection, session).await?);
    Ok(Some((row, pending)))
}

impl Job<'_> {
    /// Nothing runs: what was written is a layer as it is.
    async fn fix_resting(&self, pending: &[CheckpointRow]) -> Result<bool, SaveError> {
        self.app.capture_bases.forget(self.row.id);
        if let Some(done) = self.save_unchanged(pending).await? {
            return Ok(done);
        }
        let (layer, _settled) = self.seal_writable().await?;
        self.record(SaveOutcome::Sealed { layer, next: workspace_access::new_layer() }, Duration::ZERO).await?;
        self.forget_written(layer).await;
        Ok(true)
    }

    /// Does all there is to do where nothing is to be captured, and says whether a checkpoint was taken; none where something is.
    async fn save_unchanged(&self, pending: &[CheckpointRow]) -> Result<Option<bool>, SaveError> {
        let is_changed = workspace_access::is_changed(self.app, self.row).await?;
        if !self.is_wanted(pending, is_changed) {
            return self.leave().await.map(Some);
        }
        if is_changed {
            return Ok(None);
        }
        self.record(SaveOutcome::Unchanged { seq: self.row.last_seq }, Duration::ZERO).await?;
        Ok(Some(true))
    }

    async fn fix_running(&self, stack: &LayerStack, pending: &[CheckpointRow]) -> Result<bool, SaveError> {
        if stack.writable != Some(self.row.writable_id) {
            // What it writes to was sealed, though nobody could be told.
            give_up(self.app, self.container).await?;
            return self.fix_resting(pending).await;
        }
        if let Some(done) = self.save_unchanged(pending).await? {
            return Ok(done);
        }
        let stands = self.freeze_container().await?;
        match stands.occupancy {
            Occupancy::HostOnly => self.seal_frozen(stands).await?,
            Occupancy::OtherProcesses => {
                stands.go_on().await?;
                live_capture::copy(self).await?;
            }
        }
        Ok(true)
    }

    fn is_wanted(&self, pending: &[CheckpointRow], is_changed: bool) -> bool {
        // One that is about to go back is saved when its container has gone.
        let may_ask = self.row.machine.rewind.is_none();
        let asks = |cause: &Cause| may_ask && cause.is_occasion() && self.row.settings.checkpoints.wants(*cause);
        !pending.is_empty() || (is_changed && self.causes.iter().chain(&self.row.save_due).any(asks))
    }

    /// Leaves the workspace as it is, and forgets that a checkpoint was due: nothing was written, or the session's plan has changed.
    async fn leave(&self) -> Result<bool, SaveError> {
        if self.row.save_due.is_some() {
            save::nothing_due(self.app, self.row.id).await?;
        }
        Ok(false)
    }
}

/// Brings to the disk what was fixed, and tells.
///
/// # Errors
/// Where the store or the disk fails.
pub async fn finish_all(app: &Shared, session: SessionId) -> Result<(), Failure> {
    let open = {
        let mut connection = app.store.read().await?;
        checkpoints::open_of(&mut connection, session).await?
    };
    for checkpoint in open.into_iter().filter(|checkpoint| checkpoint.status == Status::Saving) {
        let Some(layer) = checkpoint.layer_id else { continue };
        finish(app, session, layer).await?;
    }
    Ok(())
}

async fn finish(app: &Shared, session: SessionId, layer: LayerId) -> Result<(), Failure> {
    let (stack, _hold) = workspace_access::stack(app, Some(layer)).await?;
    let layer_store = app.layer_store.clone();
    let work = move || {
        let paths = layer_store.paths(&stack.layers);
        let (own, lower) = paths.split_first().ok_or(std::io::ErrorKind::NotFound)?;
        seal::sync(own)?;
        seal::measure(own, lower, layer_store.overlay_xattrs())
    };
    match app.work(work).await.flatten() {
        Ok(change) => {
            save::ready(app, session, layer, change).await?;
            disk_use::go_on(app, session).await
        }
        Err(error) => {
            tracing::error!(%session, %layer, %error, "a layer could not be brought to the disk");
            save::delayed(app, session, layer).await?;
            Err(FileError::from(error).into())
        }
    }
}

/// Saves what was written since the last time, for `cause`, if the session's plan says so.
///
/// # Errors
/// Where the store fails.
pub async fn save_for(app: &Shared, guard: &SessionGuard, session: SessionId, cause: Cause) -> Result<(), Failure> {
    if fix(app, guard, session, &BTreeSet::from([cause])).await? {
        app.checkpoint_queue.enqueue(session, Cause::Request);
    }
    Ok(())
}
