//! Keeps sessions with a `disk` limit within it.
//!
//! What a workspace takes is what its layers hold together and what was written since; for a container that runs an image, also
//! what was written outside of the workspace. A session that was over its limit before may still be used, to make room: but
//! what it takes must not grow.
//!
//! Where the file system enforces limits of projects, it refuses what is too much, and here it is said so. Otherwise, and for
//! what is written outside of the workspace, those that write too much are found by looking, and stopped.

use std::sync::Arc;

use raworc_core::ids::{ContainerId, LayerId, SessionId};
use raworc_core::session::Container;
use raworc_store::StoreError;
use raworc_store::layers::{self, LayerRow};
use raworc_store::sessions::{self, SessionRow};
use raworc_workspace::FileError;
use raworc_workspace::layers::seal;
use tokio::time::Instant;

use super::quotas::{ROOM_BYTES, Taken, Verdict, Watch};
use super::workspace_access;
use crate::app::Shared;
use crate::error::Failure;
use crate::record::observe;

/// So far above twice its limit, a session is not started: about what a fast one writes before it is noticed.
const START_BYTES: u64 = 1 << 30;

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
    let write = app.store.write(move |tx| {
        Box::pin(async move {
            if let Some(row) = layers::find(tx, layer).await? {
                let counted = LayerRow { disk_bytes: bytes, disk_is_exact: true, ..row };
                layers::set_sizes(tx, &counted).await?;
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

/// Looks at what a container takes, and has it stopped where that is too much.
///
/// # Errors
/// Where the store or the file system fails.
pub async fn look(app: &Shared, container: ContainerId) -> Result<(), Failure> {
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
