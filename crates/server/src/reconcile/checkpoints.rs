//! Saves workspaces.
//!
//! In two steps: first what is to be saved is fixed ([`fix`]), which takes moments and holds up the session; then it is
//! brought to the disk and measured ([`finish`]), which does not. Only after the second is a checkpoint `ready`.
//!
//! What a session writes to is a layer already, so fixing it is a matter of records: what it wrote becomes a layer that
//! never changes, and it writes to a new one from then on. A container gets the new one without noticing, if nothing but
//! its host runs in it. Otherwise it stands still while what changed is copied ([`live`](super::live)).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use raworc_core::checkpoints::Cause;
use raworc_core::ids::{AccountId, ContainerId, LayerId, SessionId};
use raworc_core::time::Time;
use raworc_runtime::{Company, ExitReason};
use raworc_store::StoreError;
use raworc_store::checkpoints::{self, CheckpointRow, Status};
use raworc_store::sessions::{self, SessionRow};
use raworc_workspace::layers::seal;
use raworc_workspace::{FileError, Stack};
use uuid::Uuid;

use super::trouble::Trouble;
use super::{layers, live, quotas};
use crate::admission::Admission;
use crate::app::Shared;
use crate::error::Failure;
use crate::hosts::Pause;
use crate::supervise::{self, Loop};
use crate::trees::{self, Hold, Turn};
use crate::verbs::observe;
use crate::verbs::save::{self, Found, Saved};

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
pub async fn take_up(app: &Shared) -> Result<(), Failure> {
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
        .for_each(|session| app.trees.ask(session, Cause::Request));
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
    const TRIGGER: &'static str = "a message that ended, a stop, a request";
    const BOUND: &'static str = "4 saved at once, 4 brought to the disk at once; accounts in turn";

    async fn run(app: Shared) {
        let places = Places { saves: Admission::new(SAVES), finishes: Admission::new(FINISHES) };
        loop {
            let asked = tokio::select! {
                biased;
                () = app.stopping.cancelled() => return,
                asked = app.trees.next_asked() => asked,
            };
            for (session, causes) in asked {
                app.tasks.spawn(look_after(app.clone(), session, causes, places.clone()));
            }
        }
    }
}

/// How much is done at the same time.
#[derive(Clone)]
struct Places {
    saves: Admission,
    finishes: Admission,
}

async fn look_after(app: Shared, session: SessionId, causes: BTreeSet<Cause>, places: Places) {
    let owner = find(&app, session).await.ok().flatten().map_or(AccountId(Uuid::nil()), |row| row.owner_id);
    let result = {
        // The session's turn first: who waits for it keeps no place from others.
        let turn = app.trees.turn(session).await;
        let _place = places.saves.enter(owner).await;
        let fixed = supervise::caught(&app, Checkpoints::NAME, fix(&app, &turn, session, &causes)).await;
        fixed.unwrap_or_else(|| Err(StoreError::Unavailable("a panic".into()).into()))
    };
    app.trees.done(session);
    // Whoever waits for it, and the host that may have its next message now.
    app.hub.notify(&[session]);
    let place = places.finishes.enter(owner).await;
    let result = match result {
        Ok(_) => {
            let finished = supervise::caught(&app, Checkpoints::NAME, finish_all(&app, session)).await;
            finished.unwrap_or_else(|| Err(StoreError::Unavailable("a panic".into()).into()))
        }
        Err(error) => Err(error),
    };
    app.loops.ran(Checkpoints::NAME, result.is_ok());
    layers::look_after(&app, session).await;
    drop(place);
    if let Err(error) = result {
        if error.damage().is_some() {
            // It is asked for again when that is mended.
            tracing::error!(%session, %error, "a workspace could not be saved");
            return;
        }
        tracing::error!(%session, %error, "a workspace could not be saved; trying again");
        tokio::select! {
            biased;
            () = app.stopping.cancelled() => {}
            () = tokio::time::sleep(RETRY) => causes.into_iter().chain([Cause::Request]).for_each(|cause| app.trees.ask(session, cause)),
        }
    }
}

/// Fixes what is to be saved, if anything is; true where something was. What goes wrong with the workspace is recorded.
///
/// # Errors
/// Where the store fails: to be tried again.
pub async fn fix(app: &Shared, _: &Turn, session: SessionId, causes: &BTreeSet<Cause>) -> Result<bool, Failure> {
    let room = match layers::make_room(app, session).await {
        Err(Failure::File(error)) => Err(Trouble::from(error)),
        Err(error) if error.damage().is_some() => Err(Trouble::Failure(error)),
        outcome => Ok(outcome?),
    };
    let Some((row, pending)) = load(app, session).await? else { return Ok(false) };
    let container = ContainerId { session, generation: row.machine.generation };
    let was_there = app.runtime.workspace(container).is_some();
    app.trees.timed.set(session, &row.settings.checkpoints, app.runtime.workspace(container).is_some());
    if app.runtime.workspace(container).is_some() {
        quotas::watch(app, &row, container).await?;
    }
    let job = Job { app, row: &row, container, causes, began: app.now() };
    let attempt = match (room, app.runtime.workspace(container)) {
        (Err(trouble), _) => Err(trouble),
        (Ok(()), Some(stack)) => job.fix_running(&stack, &pending).await,
        (Ok(()), None) => job.fix_resting(&pending).await,
    };
    match attempt {
        Ok(done) => Ok(done),
        Err(Trouble::Failure(failure)) if failure.damage().is_none() => Err(failure),
        // It was stopped, or has ended, in the middle of it. Who takes note of that saves what it has left.
        Err(trouble) if was_there && app.runtime.workspace(container).is_none() => {
            tracing::debug!(%session, %trouble, "a container ended while its workspace was saved; it is saved then");
            Ok(false)
        }
        Err(trouble) => {
            tracing::warn!(%session, %trouble, "a checkpoint could not be taken");
            save::failed(app, session, causes, &trouble.told()).await?;
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

/// One session's turn.
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
pub struct Standstill<'j> {
    job: &'j Job<'j>,
    /// Whether anything but its host runs in it.
    pub company: Company,
    since: Instant,
    _pause: Pause<'j>,
}

impl Standstill<'_> {
    /// Lets it go on; how long it stood still.
    pub async fn go_on(self) -> Result<Duration, Trouble> {
        self.job.app.runtime.thaw(self.job.container).await?;
        Ok(self.since.elapsed())
    }
}

impl Job<'_> {
    /// Nothing runs: what was written is a layer as it is.
    async fn fix_resting(&self, pending: &[CheckpointRow]) -> Result<bool, Trouble> {
        live::forget(&self.app.trees, self.row.id);
        let is_changed = trees::is_changed(self.app, self.row).await?;
        if !self.is_wanted(pending, is_changed) {
            return self.leave(is_changed).await;
        }
        if !is_changed {
            self.record(Found::Unchanged, Duration::ZERO).await?;
            return Ok(true);
        }
        let (layer, _settled) = self.settle().await?;
        self.record(Found::Sealed { layer, next: trees::new_layer() }, Duration::ZERO).await?;
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

    async fn fix_running(&self, stack: &Stack, pending: &[CheckpointRow]) -> Result<bool, Trouble> {
        if stack.writable != Some(self.row.writable_id) {
            // What it writes to was sealed, though nobody could be told.
            give_up(self.app, self.container).await?;
            return self.fix_resting(pending).await;
        }
        let is_changed = trees::is_changed(self.app, self.row).await?;
        if !self.is_wanted(pending, is_changed) {
            return self.leave(is_changed).await;
        }
        if !is_changed {
            self.record(Found::Unchanged, Duration::ZERO).await?;
            return Ok(true);
        }
        let stands = self.stand_still().await?;
        match stands.company {
            Company::Alone => self.seal_frozen(stands).await?,
            Company::Others => {
                stands.go_on().await?;
                live::copy(self).await?;
            }
        }
        Ok(true)
    }

    /// Freezes the container.
    pub async fn stand_still(&self) -> Result<Standstill<'_>, Trouble> {
        let (since, pause) = (Instant::now(), self.app.hosts.pause(self.container));
        let company = self.app.runtime.freeze(self.container).await?;
        Ok(Standstill { job: self, company, since, _pause: pause })
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

    /// Leaves the workspace as it is. Where there is nothing to save, nothing is due.
    async fn leave(&self, is_changed: bool) -> Result<bool, Trouble> {
        if !is_changed && self.row.save_due.is_some() {
            save::nothing_due(self.app, self.row.id).await?;
        }
        Ok(false)
    }

    /// Records what was found.
    pub async fn record(&self, found: Found, frozen: Duration) -> Result<(), Failure> {
        let saved = Saved { found, frozen, began: self.began, newest: self.row.checkpoints };
        save::record(self.app, self.row.id, saved, self.causes).await
    }

    /// What was written becomes a layer, and the container gets another one to write to, and goes on.
    pub async fn seal_frozen(&self, stands: Standstill<'_>) -> Result<(), Trouble> {
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

    async fn seal(&self, since: Instant) -> Result<LayerId, Trouble> {
        let (layer, _settled) = self.settle().await?;
        // What it will write to is there before it is settled that it does: where there is no room, nothing has happened.
        let next = trees::new_layer();
        let _hold = self.app.trees.hold([next]);
        let shelf = self.app.trees.shelf.clone();
        let made = self.app.work(move || shelf.create(&Stack { layers: vec![layer], writable: Some(next) })).await?;
        let recorded = match made {
            Ok(()) => self.record(Found::Sealed { layer, next }, since.elapsed()).await.map_err(Trouble::from),
            Err(error) => Err(error.into()),
        };
        live::forget(&self.app.trees, self.row.id);
        if recorded.is_err() {
            self.app.trees.waste([next]);
        }
        recorded.map(|()| layer)
    }

    /// Gives a container the layer that its session writes to now.
    async fn remount(&self) -> Result<(), Trouble> {
        let (stack, _hold) = trees::ready_stack_of(self.app, self.row.id).await?;
        quotas::go_on(self.app, self.row.id).await?;
        Ok(self.app.runtime.remount(self.container, &stack).await?)
    }

    async fn without_layer(&self, error: impl std::fmt::Display) -> Trouble {
        tracing::error!(container = %self.container, %error, "a container could not get its new layer and is stopped");
        match give_up(self.app, self.container).await {
            Ok(()) => Trouble::Workspace("the container could not get its new layer".into()),
            Err(failure) => failure.into(),
        }
    }

    /// The layer that what the session wrote becomes, held: the one that it wrote to, or, where that depends on how it is mounted,
    /// another one that does not.
    async fn settle(&self) -> Result<(LayerId, Hold), Trouble> {
        let (stack, _hold) = trees::stack(self.app, self.row.layer_id).await?;
        let (shelf, written, settled) = (self.app.trees.shelf.clone(), self.row.writable_id, trees::new_layer());
        let hold = self.app.trees.hold([settled]);
        let (looked, is_mounted) = (shelf.clone(), self.app.runtime.workspace(self.container).is_some());
        let lacks_names = !self.app.work(move || looked.touched(written)).await.flatten()?.is_empty();
        let root = match is_mounted && lacks_names {
            true => Some(self.app.runtime.open_workspace(self.container).await?),
            false => None,
        };
        let work = move || -> std::io::Result<LayerId> {
            // It is not the session that writes to it now.
            shelf.limit(written, None)?;
            shelf.seal(&Stack { layers: stack.layers, writable: Some(written) }, root, settled)
        };
        let done = self.app.work(work).await.flatten();
        // If it does not become a layer of the session.
        self.app.trees.waste([settled]);
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
    let (stack, _hold) = trees::stack(app, Some(layer)).await?;
    let shelf = app.trees.shelf.clone();
    let work = move || {
        let paths = shelf.paths(&stack.layers);
        let (own, lower) = paths.split_first().ok_or(std::io::ErrorKind::NotFound)?;
        seal::sync(own)?;
        seal::measure(own, lower, shelf.marks())
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
pub async fn save_for(app: &Shared, turn: &Turn, session: SessionId, cause: Cause) -> Result<(), Failure> {
    if fix(app, turn, session, &BTreeSet::from([cause])).await? {
        app.trees.ask(session, Cause::Request);
    }
    Ok(())
}
