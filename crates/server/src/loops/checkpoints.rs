//! Saves workspaces.
//!
//! In two steps: first what is to be saved is fixed ([`fix`]), which takes moments and holds up the session; then it is
//! brought to the disk and measured ([`finish`]), which does not. Only after the second is a checkpoint `ready`.
//!
//! What a session writes to is a layer already, so fixing it is a matter of records: what it wrote becomes a layer that
//! never changes, and it writes to a new one from then on. A container gets the new one without noticing, if nothing but
//! its host runs in it. Otherwise it stands still while what changed is copied ([`live_capture`](crate::checkpoints::live_capture)).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use raworc_core::checkpoints::Cause;
use raworc_core::ids::{AccountId, ContainerId, LayerId, SessionId};
use raworc_core::time::Time;
use raworc_runtime::{ExitReason, Occupancy};
use raworc_store::StoreError;
use raworc_store::checkpoints::{self, CheckpointRow, Status};
use raworc_store::sessions::{self, SessionRow};
use raworc_workspace::layers::seal;
use raworc_workspace::{FileError, LayerStack};
use uuid::Uuid;

use super::{admitted, layers, quotas};
use crate::app::Shared;
use crate::checkpoints::live_capture;
use crate::checkpoints::save_error::SaveError;
use crate::error::Failure;
use crate::layers::pins::LayerPin;
use crate::layers::workspace_access::{self, SessionGuard};
use crate::link::hosts::LeaseSuspension;
use crate::loops::supervise::{self, Loop};
use crate::record::observe;
use crate::record::save::{self, SaveOutcome, SaveRecord};
use crate::sync::fair_semaphore::FairSemaphore;

/// Workspaces saved at the same time.
const SAVES: usize = 4;
/// Workspaces that are brought to the disk, or whose layers are made fewer, at the same time: to go through deep trees on many
/// layers takes a descriptor for each.
const FINISHES: usize = 4;
/// Wait before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Takes up what the last server has left, before any host is let in: nothing is started in a container that was about to
/// be saved before that is done, and none where nothing may be written any more.
///
/// # Errors
/// Where the store fails.
pub async fn recover(app: &Shared) -> Result<(), Failure> {
    let (up, open, due) = {
        let mut connection = app.store.read().await?;
        let open = checkpoints::sessions_with_open(&mut connection).await?;
        (sessions::containers_up(&mut connection).await?, open, sessions::with_save_due(&mut connection).await?)
    };
    for container in &up {
        app.hosts.expect(*container);
        let writes_to = app.runtime.workspace(*container).and_then(|stack| stack.writable);
        let row = match find(app, container.session).await {
            Err(error) if error.damage().is_some() => continue,
            found => found?,
        };
        if writes_to.is_some() && row.is_some_and(|row| writes_to != Some(row.writable_id)) {
            tracing::info!(%container, "its workspace was saved, and it has no layer to write to yet; it is replaced");
            give_up(app, *container).await?;
        }
    }
    open.into_iter()
        .chain(due)
        .chain(up.into_iter().map(|container| container.session))
        .for_each(|session| app.checkpoint_queue.enqueue(session, Cause::Request));
    Ok(())
}

async fn find(app: &Shared, session: SessionId) -> Result<Option<SessionRow>, Failure> {
    let mut connection = app.store.read().await?;
    Ok(sessions::find(&mut connection, session).await?)
}

/// A container that writes where nothing may be written any more has to go; its session goes on with another.
async fn give_up(app: &Shared, container: ContainerId) -> Result<(), Failure> {
    if let Err(error) = app.runtime.stop(container, Duration::ZERO).await {
        // Its host is not listened to any more, and the next sweep tries again.
        tracing::warn!(%container, %error, "a container could not be stopped");
    }
    app.hosts.forget(container);
    observe::container_gone(app, container, ExitReason::Unknown).await?;
    Ok(())
}

/// Saves workspaces.
pub struct Checkpoints;

impl Loop for Checkpoints {
    const NAME: &'static str = "checkpoints";
    const TRIGGER: &'static str = "a message that ended, a stop, the clock, a request";

    fn bound() -> String {
        format!("{SAVES} saved and {FINISHES} brought to the disk at once; accounts in turn")
    }

    async fn run(app: Shared) {
        let places = Places { saves: FairSemaphore::new(SAVES), finishes: FairSemaphore::new(FINISHES) };
        loop {
            let asked = tokio::select! {
                biased;
                () = app.stopping.cancelled() => return,
                asked = app.checkpoint_queue.next_batch() => asked,
            };
            for (session, causes) in asked {
                app.tasks.spawn(run_save(app.clone(), session, causes, places.clone()));
            }
        }
    }
}

/// How much is done at the same time.
#[derive(Clone)]
struct Places {
    saves: FairSemaphore,
    finishes: FairSemaphore,
}

async fn run_save(app: Shared, session: SessionId, causes: BTreeSet<Cause>, places: Places) {
    let owner = find(&app, session).await.ok().flatten().map_or(AccountId(Uuid::nil()), |row| row.owner_id);
    let fixed = {
        let (guard, _place) = admitted(&app.session_locks, session, owner, &places.saves).await;
        caught(&app, fix(&app, &guard, session, &causes)).await
    };
    if let Err(error) = &fixed
        && error.damage().is_none()
    {
        app.loops.ran(Checkpoints::NAME, false);
        tracing::error!(%session, %error, "a workspace could not be saved; trying again");
        // It stays asked for meanwhile: no message comes before what the last one wrote is saved.
        ask_again(&app, session, causes).await;
        return app.checkpoint_queue.complete(session);
    }
    if fixed.is_err() {
        // Until its record is mended, nothing of it is saved; messages come all the same.
        let _ = save::nothing_due(&app, session).await;
    }
    app.checkpoint_queue.complete(session);
    // Whoever waits for it, and the host that may have its next message now.
    app.hub.notify(&[session]);
    let place = places.finishes.enter(owner).await;
    let finished = caught(&app, finish_all(&app, session)).await;
    layers::compact_if_long(&app, session).await;
    drop(place);
    let result = fixed.and(finished);
    app.loops.ran(Checkpoints::NAME, result.is_ok());
    match result {
        Ok(()) => {}
        // It is asked for again when that is mended.
        Err(error) if error.damage().is_some() => tracing::error!(%session, %error, "a workspace could not be saved"),
        // What it was for is captured already, and only has to reach the disk.
        Err(error) => {
            tracing::error!(%session, %error, "a workspace could not be saved; trying again");
            ask_again(&app, session, BTreeSet::new()).await;
        }
    }
}

async fn caught<T>(app: &Shared, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let done = supervise::caught(app, Checkpoints::NAME, work).await;
    done.unwrap_or_else(|| Err(StoreError::Unavailable("a panic".into()).into()))
}

async fn ask_again(app: &Shared, session: SessionId, causes: BTreeSet<Cause>) {
    tokio::select! {
        biased;
        () = app.stopping.cancelled() => {}
        () = tokio::time::sleep(RETRY) => {
            causes.into_iter().chain([Cause::Request]).for_each(|cause| app.checkpoint_queue.enqueue(session, cause));
        }
    }
}

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
    let room = match layers::make_room(app, session).await {
        Err(Failure::File(error)) => Err(SaveError::from(error)),
        Err(error) if error.damage().is_some() => Err(SaveError::Failure(error)),
        outcome => Ok(outcome?),
    };
    let Some((row, pending)) = load(app, session).await? else { return Ok(false) };
    let container = ContainerId { session, generation: row.machine.generation };
    let was_there = app.runtime.workspace(container).is_some();
    app.checkpoint_timers.set(session, &row.settings.checkpoints, app.runtime.workspace(container).is_some());
    let job = Job { app, row: &row, container, causes, began: app.now() };
    // What goes wrong with files is told; only the records are tried again.
    let room = match (room, was_there) {
        (Ok(()), true) => quotas::watch(app, &row, container).await.map_err(SaveError::from),
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
    /// Nothing runs: what was written is a layer as it is.
    async fn fix_resting(&self, pending: &[CheckpointRow]) -> Result<bool, SaveError> {
        self.app.capture_bases.forget(self.row.id);
        let is_changed = workspace_access::is_changed(self.app, self.row).await?;
        if !self.is_wanted(pending, is_changed) {
            return self.leave().await;
        }
        if !is_changed {
            self.record(SaveOutcome::Unchanged, Duration::ZERO).await?;
            return Ok(true);
        }
        let (layer, _settled) = self.seal_writable().await?;
        self.record(SaveOutcome::Sealed { layer, next: workspace_access::new_layer() }, Duration::ZERO).await?;
        self.forget_written(layer).await;
        Ok(true)
    }

    /// Removes the old writable layer once `sealed` has replaced it.
    async fn forget_written(&self, sealed: LayerId) {
        if sealed == self.row.writable_id {
            return;
        }
        if let Err(error) = layers::remove_replaced(self.app, self.row.writable_id).await {
            // It is waste by now, and removed when that is collected.
            tracing::debug!(layer = %self.row.writable_id, %error, "a layer that another one replaces could not be removed");
        }
    }

    async fn fix_running(&self, stack: &LayerStack, pending: &[CheckpointRow]) -> Result<bool, SaveError> {
        if stack.writable != Some(self.row.writable_id) {
            // What it writes to was sealed, though nobody could be told.
            give_up(self.app, self.container).await?;
            return self.fix_resting(pending).await;
        }
        let is_changed = workspace_access::is_changed(self.app, self.row).await?;
        if !self.is_wanted(pending, is_changed) {
            return self.leave().await;
        }
        if !is_changed {
            self.record(SaveOutcome::Unchanged, Duration::ZERO).await?;
            return Ok(true);
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
        quotas::go_on(self.app, self.row.id).await?;
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
    async fn seal_writable(&self) -> Result<(LayerId, LayerPin), SaveError> {
        let (stack, _hold) = workspace_access::stack(self.app, self.row.layer_id).await?;
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

/// Brings to the disk what was fixed, and tells.
async fn finish_all(app: &Shared, session: SessionId) -> Result<(), Failure> {
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
            quotas::go_on(app, session).await
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
