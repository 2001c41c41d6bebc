//! Watches what sessions with a `disk` limit write, and stops those that write more.
//!
//! What a workspace takes is what its layers hold together and what was written since; for a container that runs an image, also
//! what was written outside of the workspace. A session that was over its limit before may still be used, to make room: but
//! what it takes must not grow.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use raworc_core::ids::{ContainerId, SessionId};
use raworc_core::session::Container;
use raworc_store::layers;
use raworc_store::sessions::{self, SessionRow};
use raworc_workspace::FileError;
use raworc_workspace::layers::usage;
use tokio::time::Instant;

use crate::app::{Shared, blocking};
use crate::error::Failure;
use crate::hub::lock;
use crate::verbs::observe;

/// Time between two looks at a session, at least.
const INTERVAL: Duration = Duration::from_secs(1);
/// A look that takes long is taken less often: so many times what it took lies between two.
const REST: u32 = 20;

/// Sessions that are watched.
#[derive(Default)]
pub struct Quotas(Mutex<HashMap<SessionId, Watch>>);

#[derive(Clone, Copy)]
struct Watch {
    container: ContainerId,
    limit: u64,
    /// What it may take: its limit, or what it took when it began, where that is more.
    ceiling: u64,
    next: Instant,
}

impl Quotas {
    /// Watches a session's container from now on, or no more.
    fn set(&self, container: ContainerId, limit: Option<u64>, used: u64) {
        let mut all = lock(&self.0);
        match limit {
            Some(limit) => {
                let ceiling = limit.max(used);
                all.insert(container.session, Watch { container, limit, ceiling, next: Instant::now() + INTERVAL });
            }
            None => drop(all.remove(&container.session)),
        }
    }

    /// Whether this container is watched with this limit.
    fn has(&self, container: ContainerId, limit: Option<u64>) -> bool {
        let watched = lock(&self.0).get(&container.session).copied();
        watched.filter(|watch| watch.container == container).map(|watch| watch.limit) == limit
    }

    fn forget(&self, container: ContainerId) {
        let mut all = lock(&self.0);
        if all.get(&container.session).is_some_and(|watch| watch.container == container) {
            all.remove(&container.session);
        }
    }

    fn due(&self) -> Vec<Watch> {
        let now = Instant::now();
        lock(&self.0).values().filter(|watch| watch.next <= now).copied().collect()
    }

    /// Notes what was found; whether it is too much.
    fn found(&self, container: ContainerId, used: u64, took: Duration) -> bool {
        let mut all = lock(&self.0);
        let Some(watch) = all.get_mut(&container.session).filter(|watch| watch.container == container) else {
            return false;
        };
        watch.next = Instant::now() + INTERVAL.max(took * REST);
        let is_over = used > watch.ceiling;
        // Room that was made does not come back.
        watch.ceiling = watch.limit.max(watch.ceiling.min(used));
        is_over
    }
}

/// Watches a container that is about to start, or was found, as its session says.
///
/// # Errors
/// Where what there is cannot be looked through.
pub async fn watch(app: &Shared, row: &SessionRow, container: ContainerId) -> Result<(), Failure> {
    let limit = row.settings.disk.map(|bytes| bytes.0);
    if !app.trees.quotas.has(container, limit) {
        let used = if limit.is_some() { used(app, row, container).await? } else { 0 };
        app.trees.quotas.set(container, limit, used);
    }
    Ok(())
}

/// What a session takes, in bytes.
///
/// # Errors
/// Where it cannot be looked through.
pub async fn used(app: &Shared, row: &SessionRow, container: ContainerId) -> Result<u64, Failure> {
    let below = match row.layer_id {
        Some(id) => {
            let mut connection = app.store.read().await?;
            layers::find(&mut connection, id).await?.map_or(0, |layer| layer.bytes)
        }
        None => 0,
    };
    let places: Vec<_> =
        std::iter::once(app.trees.shelf.path(row.writable_id)).chain(app.runtime.written(container)).collect();
    let work = move || places.iter().try_fold(0_u64, |sum, place| Ok(sum.saturating_add(usage(place)?)));
    let written = blocking(work).await.flatten().map_err(FileError::from)?;
    Ok(below.saturating_add(written))
}

/// Runs until the server stops.
pub async fn run(app: Shared) {
    loop {
        tokio::select! {
            biased;
            () = app.stopping.cancelled() => return,
            () = tokio::time::sleep(INTERVAL / 2) => {}
        }
        for watch in app.trees.quotas.due() {
            if let Err(error) = look(&app, watch.container).await {
                tracing::warn!(container = %watch.container, %error, "what a session takes could not be looked through");
            }
        }
    }
}

async fn look(app: &Shared, container: ContainerId) -> Result<(), Failure> {
    let row = {
        let mut connection = app.store.read().await?;
        sessions::find(&mut connection, container.session).await?
    };
    // One that is about to start is watched already, so that nothing is written before it is known what there was.
    let is_current = |row: &SessionRow| {
        let wanted = matches!(row.machine.container, Container::Starting | Container::Up);
        wanted && row.machine.generation == container.generation
    };
    let Some(row) = row.filter(is_current) else {
        app.trees.quotas.forget(container);
        return Ok(());
    };
    let began = Instant::now();
    // What cannot be looked through, such as directories without end, is more than anything.
    let used = match used(app, &row, container).await {
        Err(Failure::File(error)) => {
            tracing::info!(%container, %error, "what a session takes cannot be counted");
            u64::MAX
        }
        outcome => outcome?,
    };
    if app.trees.quotas.found(container, used, began.elapsed()) {
        tracing::info!(%container, used, "a session is over its disk limit");
        observe::over_quota(app, container, used).await?;
    }
    Ok(())
}
