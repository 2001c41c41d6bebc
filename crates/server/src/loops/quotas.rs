//! Keeps sessions with a `disk` limit within it.
//!
//! What a workspace takes is what its layers hold together and what was written since; for a container that runs an image, also
//! what was written outside of the workspace. A session that was over its limit before may still be used, to make room: but
//! what it takes must not grow.
//!
//! Where the file system enforces limits of projects, it refuses what is too much, and here it is said so. Otherwise, and for
//! what is written outside of the workspace, those that write too much are found by looking, and stopped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raworc_core::ids::{ContainerId, LayerId, SessionId};
use raworc_core::session::Container;
use raworc_store::StoreError;
use raworc_store::layers::{self, LayerRow};
use raworc_store::sessions::{self, SessionRow};
use raworc_workspace::FileError;
use raworc_workspace::layers::seal;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::app::Shared;
use crate::error::Failure;
use crate::layers::workspace_access;
use crate::loops::supervise::Loop;
use crate::record::observe;
use crate::sync::lock;

/// Time between two looks at a session, at least.
const INTERVAL: Duration = Duration::from_secs(1);
/// A look that takes long is taken less often: so many times what it took lies between two.
const REST: u32 = 20;
/// Time between two looks, at most: whoever makes looking slow is looked at all the same.
const INTERVAL_MAX: Duration = Duration::from_secs(30);
/// Sessions that are looked at together: one with very many files does not hide what others write.
const LOOKS_MAX: usize = 4;
/// Bytes that may be written after each save, also by a session at its limit: what is removed takes a little first.
const ROOM_BYTES: u64 = 1 << 20;
/// So far above its limit, a session has no such room any more.
const ROOMS_BYTES: u64 = 16 << 20;
/// So far above twice its limit, a session is not started: about what a fast one writes before it is noticed.
const START_BYTES: u64 = 1 << 30;
/// Where so many bytes are left, the file system refuses most of what is written.
const LEFT_BYTES: u64 = 64 << 10;

/// Sessions that are watched.
#[derive(Default)]
pub struct Quotas(Mutex<HashMap<SessionId, Watch>>);

#[derive(Clone, Copy)]
struct Watch {
    container: ContainerId,
    limit: u64,
    /// What it took when it began.
    began_with: u64,
    /// What it may take: its limit, or what it took when it began, where that is more.
    ceiling: u64,
    next: Instant,
    /// It is being looked at.
    is_looked_at: bool,
    /// That the file system refuses what it writes was told.
    is_told: bool,
}

impl Watch {
    /// What it may take at most, with the room to clean up.
    fn most(&self, taken: Taken) -> u64 {
        let room = if taken.saved < self.limit.saturating_add(ROOMS_BYTES) { ROOM_BYTES } else { 0 };
        self.ceiling.max(taken.saved.saturating_add(room))
    }

    /// Room that was made does not come back.
    fn lower(&mut self, taken: Taken) {
        self.ceiling = self.limit.max(self.ceiling.min(taken.bytes()));
    }
}

/// What a session takes, in bytes.
#[derive(Clone, Copy)]
struct Taken {
    /// What its layers hold together.
    saved: u64,
    /// What was written to its workspace since.
    written: u64,
    /// What its container has written elsewhere.
    elsewhere: u64,
}

impl Taken {
    fn bytes(self) -> u64 {
        self.saved.saturating_add(self.written).saturating_add(self.elsewhere)
    }

    /// What may be written to the workspace for all not to be more than a container may take, beside a little room.
    fn left(self, watch: &Watch) -> u64 {
        watch.most(self).saturating_sub(self.saved).saturating_sub(self.elsewhere)
    }
}

/// What is to be done about a session.
enum Verdict {
    Fine,
    /// The file system refuses what it writes.
    Refused,
    /// It has to be stopped.
    Over,
}

impl Quotas {
    /// Watches a session's container from now on.
    fn set(&self, container: ContainerId, limit: u64, used: u64, room: u64) -> Watch {
        let next = Instant::now() + INTERVAL;
        let watch = Watch {
            container,
            limit,
            began_with: used,
            ceiling: limit.max(used.saturating_add(room)),
            next,
            is_looked_at: false,
            is_told: false,
        };
        lock(&self.0).insert(container.session, watch);
        watch
    }

    /// Watches none of a session's containers.
    fn unset(&self, container: ContainerId) {
        lock(&self.0).remove(&container.session);
    }

    /// Whether this container is watched with this limit.
    fn has(&self, container: ContainerId, limit: u64) -> bool {
        self.of(container).is_some_and(|watch| watch.limit == limit)
    }

    fn of(&self, container: ContainerId) -> Option<Watch> {
        self.any(container.session).filter(|watch| watch.container == container)
    }

    fn any(&self, session: SessionId) -> Option<Watch> {
        lock(&self.0).get(&session).copied()
    }

    fn forget(&self, container: ContainerId) {
        let mut all = lock(&self.0);
        if all.get(&container.session).is_some_and(|watch| watch.container == container) {
            all.remove(&container.session);
        }
    }

    /// Those whose turn it is to be looked at; they are due again when that is [over](Self::looked_at).
    fn due(&self) -> Vec<ContainerId> {
        let now = Instant::now();
        let mut all = lock(&self.0);
        let due = all.values_mut().filter(|watch| watch.next <= now && !watch.is_looked_at);
        due.map(|watch| {
            watch.is_looked_at = true;
            watch.container
        })
        .collect()
    }

    fn looked_at(&self, container: ContainerId) {
        if let Some(watch) = lock(&self.0).get_mut(&container.session).filter(|watch| watch.container == container) {
            watch.is_looked_at = false;
        }
    }

    /// Notes what was saved.
    fn lower(&self, container: ContainerId, taken: Taken) {
        if let Some(watch) = lock(&self.0).get_mut(&container.session).filter(|watch| watch.container == container) {
            watch.lower(taken);
        }
    }

    /// Notes what was found.
    fn found(&self, container: ContainerId, taken: Taken, is_bounded: bool, took: Duration) -> Verdict {
        let mut all = lock(&self.0);
        let Some(watch) = all.get_mut(&container.session).filter(|watch| watch.container == container) else {
            return Verdict::Fine;
        };
        watch.next = Instant::now() + (took * REST).clamp(INTERVAL, INTERVAL_MAX);
        let most = watch.most(taken);
        let is_over = taken.bytes() > most;
        watch.lower(taken);
        let is_refused = is_bounded && taken.bytes().saturating_add(LEFT_BYTES) > watch.ceiling;
        let was_told = std::mem::replace(&mut watch.is_told, is_refused);
        match (is_over, is_refused && !was_told) {
            (true, _) => Verdict::Over,
            (false, true) => Verdict::Refused,
            (false, false) => Verdict::Fine,
        }
    }
}

/// Watches a container that is about to start, or was found, as its session says.
///
/// # Errors
/// Where what there is cannot be looked through.
pub async fn watch(app: &Shared, row: &SessionRow, container: ContainerId) -> Result<(), Failure> {
    let Some(limit) = app.ceilings.disk(row.settings.disk).map(|bytes| bytes.0) else {
        app.quotas.unset(container);
        bound(app, row, None).await?;
        return Ok(());
    };
    if !app.quotas.has(container, limit) {
        // What cannot be counted does not keep it from starting: it is over its limit when it is looked at.
        let nothing = Taken { saved: 0, written: 0, elsewhere: 0 };
        let taken = match taken(app, row, container).await {
            Err(Failure::File(error)) => {
                tracing::info!(%container, %error, "what a session takes cannot be counted");
                nothing
            }
            outcome => outcome?,
        };
        // Where nothing is refused, what was written too much may be above the limit, and is cleaned up all the same.
        let room = if app.layer_store.has_limits() { 0 } else { ROOM_BYTES };
        let watch = app.quotas.set(container, limit, taken.bytes(), room);
        bound(app, row, Some(taken.left(&watch))).await?;
    }
    Ok(())
}

/// Why a watched container is not to be started, if it is not. It could write for a moment before it is stopped, as often as
/// it was started; so one that is very far over its limit is not.
pub fn refuses(app: &Shared, container: ContainerId) -> Option<String> {
    let Watch { limit, began_with, .. } = app.quotas.of(container)?;
    (began_with > limit.saturating_mul(2).saturating_add(START_BYTES)).then(|| {
        format!(
            "the session takes {began_with} bytes of the disk and may take {limit}, which is too far apart for it to clean up \
             itself: remove files (`raworc session files rm`), go back to a checkpoint, or give it more \
             (`raworc session update --disk`), then restart it"
        )
    })
}

/// Keeps a session within its limit whose container is about to get another layer to write to, or whose last one was measured.
///
/// # Errors
/// Where the file system refuses.
pub async fn go_on(app: &Shared, session: SessionId) -> Result<(), Failure> {
    let Some(watch) = app.quotas.any(session) else { return Ok(()) };
    let container = watch.container;
    let row = find(app, session).await?.filter(|row| row.machine.generation == container.generation);
    let Some(row) = row else { return Ok(()) };
    let taken = match taken(app, &row, container).await {
        // It is over its limit when it is looked at next.
        Err(Failure::File(error)) => {
            tracing::info!(%container, %error, "what a session takes cannot be counted");
            return Ok(());
        }
        outcome => outcome?,
    };
    app.quotas.lower(container, taken);
    bound(app, &row, Some(taken.left(&watch))).await?;
    Ok(())
}

/// Has the file system keep what is written to a workspace within so many bytes; false where it cannot.
async fn bound(app: &Shared, row: &SessionRow, bytes: Option<u64>) -> Result<bool, Failure> {
    let (layer_store, layer) = (app.layer_store.clone(), row.writable_id);
    if !layer_store.has_limits() {
        return Ok(false);
    }
    Ok(app.work(move || layer_store.limit(layer, bytes)).await.flatten().map_err(FileError::from)?)
}

/// What a session takes, in bytes.
///
/// # Errors
/// Where it cannot be looked through.
pub async fn used(app: &Shared, row: &SessionRow, container: ContainerId) -> Result<u64, Failure> {
    Ok(taken(app, row, container).await?.bytes())
}

async fn taken(app: &Shared, row: &SessionRow, container: ContainerId) -> Result<Taken, Failure> {
    let below = match row.layer_id {
        Some(id) => {
            let mut connection = app.store.read().await?;
            layers::find(&mut connection, id).await?
        }
        None => None,
    };
    let saved = below.as_ref().map_or(0, |layer| layer.disk_bytes);
    let inexact = below.filter(|layer| layer.entries > 0 && !layer.disk_is_exact);
    // What was sealed just now counts in full until it is measured.
    let fresh = below.filter(|layer| layer.entries == 0).map(|layer| layer.id);
    let (layer_store, layer, runtime) = (app.layer_store.clone(), row.writable_id, Arc::clone(&app.runtime));
    let work = move || {
        let hidden = runtime.hidden(container)?;
        // A file system that keeps limits counts files for as long as they are there.
        let removed = if layer_store.has_limits() { 0 } else { hidden.removed };
        let saved = saved.saturating_add(fresh.map_or(Ok(0), |layer| layer_store.written(layer))?);
        Ok(Taken { saved, written: layer_store.written(layer)?.saturating_add(removed), elsewhere: hidden.elsewhere })
    };
    let taken = app.work(work).await.flatten().map_err(FileError::from)?;
    let is_too_much = app.ceilings.disk(row.settings.disk).is_some_and(|limit| taken.bytes() > limit.0);
    match inexact.filter(|_| is_too_much) {
        Some(layer) => Ok(Taken { saved: count(app, layer.id).await?, ..taken }),
        None => Ok(taken),
    }
}

/// Counts exactly what a layer and all below it show, once, and notes it.
async fn count(app: &Shared, layer: LayerId) -> Result<u64, Failure> {
    let (stack, _hold) = workspace_access::stack(app, Some(layer)).await?;
    let layer_store = app.layer_store.clone();
    let work = move || seal::shown_usage(&layer_store.paths(&stack.layers), layer_store.overlay_xattrs());
    let bytes = app.work(work).await.flatten().map_err(FileError::from)?;
    let write = app.store.write(move |transaction| {
        Box::pin(async move {
            if let Some(row) = layers::find(transaction.connection(), layer).await? {
                let counted = LayerRow { disk_bytes: bytes, disk_is_exact: true, ..row };
                layers::set_sizes(transaction.connection(), &counted).await?;
            }
            Ok::<_, Failure>(())
        })
    });
    write.await?;
    Ok(bytes)
}

async fn find(app: &Shared, session: SessionId) -> Result<Option<SessionRow>, Failure> {
    let mut connection = app.store.read().await?;
    match sessions::find(&mut connection, session).await {
        // Nobody knows what it may take; its container is stopped by the sweep.
        Err(StoreError::Damaged(_)) => Ok(None),
        found => Ok(found?),
    }
}

/// Looks at what sessions take of the disk.
pub struct QuotaLoop;

impl Loop for QuotaLoop {
    const NAME: &'static str = "quotas";
    const TRIGGER: &'static str = "every half second";

    fn bound() -> String {
        format!("{LOOKS_MAX} sessions looked through at once")
    }

    async fn run(app: Shared) {
        let slots = Arc::new(Semaphore::new(LOOKS_MAX));
        loop {
            tokio::select! {
                biased;
                () = app.stopping.cancelled() => return,
                () = tokio::time::sleep(INTERVAL / 2) => {}
            }
            app.loops.ran(QuotaLoop::NAME, true);
            for container in app.quotas.due() {
                app.tasks.spawn(check_quota(app.clone(), Arc::clone(&slots), container));
            }
        }
    }
}

async fn check_quota(app: Shared, slots: Arc<Semaphore>, container: ContainerId) {
    let _looked = Looked { quotas: &app.quotas, container };
    let Ok(_slot) = slots.acquire().await else { return };
    if let Err(error) = look(&app, container).await {
        tracing::warn!(%container, %error, "what a session takes could not be looked through");
    }
}

/// A look that is over when this is dropped, however it ended.
struct Looked<'q> {
    quotas: &'q Quotas,
    container: ContainerId,
}

impl Drop for Looked<'_> {
    fn drop(&mut self) {
        self.quotas.looked_at(self.container);
    }
}

async fn look(app: &Shared, container: ContainerId) -> Result<(), Failure> {
    let row = find(app, container.session).await?;
    // One that is about to start is watched already, so that nothing is written before it is known what there was.
    let is_current = |row: &SessionRow| {
        let wanted = matches!(row.machine.container, Container::Starting | Container::Up);
        wanted && row.machine.generation == container.generation
    };
    let Some(row) = row.filter(is_current) else {
        app.quotas.forget(container);
        return Ok(());
    };
    let began = Instant::now();
    // What cannot be looked through, such as directories without end, is more than anything.
    let taken = match taken(app, &row, container).await {
        Err(Failure::File(error)) => {
            tracing::info!(%container, %error, "what a session takes cannot be counted");
            observe::over_quota(app, container, None).await?;
            return Ok(());
        }
        outcome => outcome?,
    };
    let is_bounded = match app.quotas.of(container) {
        Some(watch) => bound(app, &row, Some(taken.left(&watch))).await?,
        None => false,
    };
    match app.quotas.found(container, taken, is_bounded, began.elapsed()) {
        Verdict::Fine => {}
        Verdict::Refused => observe::at_quota(app, container, taken.bytes()).await?,
        Verdict::Over => {
            tracing::info!(%container, used = taken.bytes(), "a session is over its disk limit");
            observe::over_quota(app, container, Some(taken.bytes())).await?;
        }
    }
    Ok(())
}
