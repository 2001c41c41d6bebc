//! One save of a session's workspace: what its steps have in common, whether something runs in it or not.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use raworc_core::checkpoints::Cause;
use raworc_core::ids::{ContainerId, LayerId, SessionId};
use raworc_core::time::Time;
use raworc_runtime::{ExitReason, Occupancy};
use raworc_store::sessions::{self, SessionRow};
use raworc_workspace::LayerStack;

use super::save_error::SaveError;
use crate::app::Shared;
use crate::error::Failure;
use crate::layers::pins::LayerPin;
use crate::layers::{chains, disk_use, workspace_access};
use crate::link::hosts::LeaseSuspension;
use crate::record::observe;
use crate::record::save::{self, SaveOutcome, SaveRecord};

/// A session, where there is one.
///
/// # Errors
/// Where the store fails.
pub async fn find(app: &Shared, session: SessionId) -> Result<Option<SessionRow>, Failure> {
    let mut connection = app.store.read().await?;
    Ok(sessions::find(&mut connection, session).await?)
}

/// Stops a container that writes where nothing may be written any more; its session goes on with another.
///
/// # Errors
/// Where the store fails.
pub async fn give_up(app: &Shared, container: ContainerId) -> Result<(), Failure> {
    if let Err(error) = app.runtime.stop(container, Duration::ZERO).await {
        // Its host is not listened to any more, and the next sweep tries again.
        tracing::warn!(%container, %error, "a container could not be stopped");
    }
    app.hosts.forget(container);
    observe::container_gone(app, container, ExitReason::Unknown).await?;
    Ok(())
}

/// One session that is being saved.
#[derive(Clone, Copy)]
pub struct Job<'j> {
    /// The server.
    pub app: &'j Shared,
    /// The session.
    pub row: &'j SessionRow,
    /// Its container, if it has one.
    pub container: ContainerId,
    /// Why.
    pub causes: &'j BTreeSet<Cause>,
    /// Since when.
    pub began: Time,
}

/// A container that stands still. Its host says nothing meanwhile, and is not missed.
#[must_use]
pub struct FrozenContainer<'j> {
    job: &'j Job<'j>,
    /// Whether anything but its host runs in it.
    pub occupancy: Occupancy,
    since: Instant,
    _pause: LeaseSuspension<'j>,
}

impl FrozenContainer<'_> {
    /// Lets it go on; how long it stood still.
    pub async fn go_on(self) -> Result<Duration, SaveError> {
        self.job.app.runtime.thaw(self.job.container).await?;
        Ok(self.since.elapsed())
    }
}

impl Job<'_> {
    /// Removes the old writable layer once `sealed` has replaced it.
    pub async fn forget_written(&self, sealed: LayerId) {
        if sealed == self.row.writable_id {
            return;
        }
        if let Err(error) = chains::remove_replaced(self.app, self.row.writable_id).await {
            // It is waste by now, and removed when that is collected.
            tracing::debug!(layer = %self.row.writable_id, %error, "a layer that another one replaces could not be removed");
        }
    }

    /// Freezes the container.
    pub async fn freeze_container(&self) -> Result<FrozenContainer<'_>, SaveError> {
        let (since, pause) = (Instant::now(), self.app.hosts.pause(self.container));
        let occupancy = self.app.runtime.freeze(self.container).await?;
        Ok(FrozenContainer { job: self, occupancy, since, _pause: pause })
    }

    /// The last event of the session that is stored.
    pub async fn last_seq(&self) -> Result<u64, Failure> {
        let row = find(self.app, self.row.id).await?;
        Ok(row.map_or(self.row.last_seq, |row| row.last_seq))
    }

    /// Records what was found.
    pub async fn record(&self, found: SaveOutcome, frozen: Duration) -> Result<(), Failure> {
        let newest = self.row.checkpoints;
        let saved = SaveRecord { found, frozen, began: self.began, newest, is_due: self.row.save_due.is_some() };
        save::record(self.app, self.row.id, saved, self.causes).await
    }

    /// What was written becomes a layer, and the container gets another one to write to, and goes on.
    pub async fn seal_frozen(&self, stands: FrozenContainer<'_>) -> Result<(), SaveError> {
        let sealed = self.seal(stands.since).await;
        if sealed.is_ok()
            && let Err(error) = self.remount().await
        {
            // One that is stopped, or has ended, needs no layer any more: the next one gets it. Only its host is in it, which
            // writes nothing, and cannot end while it stands still.
            if self.app.runtime.workspace(self.container).is_none() {
                tracing::debug!(container = %self.container, %error, "a container ended while its workspace was saved");
                return stands.go_on().await.map(drop);
            }
            return Err(self.without_layer(error).await);
        }
        if let Ok(layer) = sealed {
            self.forget_written(layer).await;
        }
        stands.go_on().await?;
        sealed.map(drop)
    }

    async fn seal(&self, since: Instant) -> Result<LayerId, SaveError> {
        let (layer, _settled) = self.seal_writable().await?;
        // What it will write to is there before it is settled that it does: where there is no room, nothing has happened.
        let next = workspace_access::new_layer();
        let _hold = self.app.layer_pins.pin([next]);
        let layer_store = self.app.layer_store.clone();
        let made = self
            .app
            .work(move || layer_store.create(&LayerStack { layers: vec![layer], writable: Some(next) }))
            .await?;
        let recorded = match made {
            Ok(()) => self.record(SaveOutcome::Sealed { layer, next }, since.elapsed()).await.map_err(SaveError::from),
            Err(error) => Err(error.into()),
        };
        self.app.capture_bases.forget(self.row.id);
        if recorded.is_err() {
            self.app.garbage_queue.enqueue([next]);
        }
        recorded.map(|()| layer)
    }

    /// Gives a container the layer that its session writes to now.
    async fn remount(&self) -> Result<(), SaveError> {
        let (stack, _hold) = workspace_access::ready_stack_of(self.app, self.row.id).await?;
        disk_use::go_on(self.app, self.row.id).await?;
        Ok(self.app.runtime.remount(self.container, &stack).await?)
    }

    async fn without_layer(&self, error: impl std::fmt::Display) -> SaveError {
        tracing::error!(container = %self.container, %error, "a container could not get its new layer and is stopped");
        match give_up(self.app, self.container).await {
            Ok(()) => SaveError::Workspace("the container could not get its new layer".into()),
            Err(failure) => failure.into(),
        }
    }

    /// The layer that what the session wrote becomes, held: the one that it wrote to, or, where that depends on how it is mounted,
    /// another one that does not.
    pub async fn seal_writable(&self) -> Result<(LayerId, LayerPin), SaveError> {
        // What it lies on may have been merged since the session was looked up.
        let (stack, _hold) = workspace_access::stack_of(self.app, self.row.id).await?;
        let (layer_store, written, settled) =
            (self.app.layer_store.clone(), self.row.writable_id, workspace_access::new_layer());
        let hold = self.app.layer_pins.pin([settled]);
        let (looked, is_mounted) = (layer_store.clone(), self.app.runtime.workspace(self.container).is_some());
        let lacks_names = !self.app.work(move || looked.copied_up_files(written)).await.flatten()?.is_empty();
        let root = match is_mounted && lacks_names {
            true => Some(self.app.runtime.open_workspace(self.container).await?),
            false => None,
        };
        let work = move || -> std::io::Result<LayerId> {
            // It is not the session that writes to it now.
            layer_store.limit(written, None)?;
            layer_store.seal(&LayerStack { layers: stack.layers, writable: Some(written) }, root, settled)
        };
        let done = self.app.work(work).await.flatten();
        // If it does not become a layer of the session.
        self.app.garbage_queue.enqueue([settled]);
        Ok((done?, hold))
    }
}
