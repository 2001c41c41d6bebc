//! Looks for records that are damaged, sets them aside, and takes them up again once they are mended.
//!
//! All are looked through at start, now and then, and whenever another process has changed the database.

use std::collections::BTreeSet;
use std::time::Duration;

use raworc_core::checkpoints::Cause;
use raworc_core::ids::{LayerId, SessionId};
use raworc_core::session::Event;
use raworc_store::set_aside::{self, Repeated};
use raworc_store::{checkpoints, layers};
use raworc_workspace::FileError;
use tokio::time::Instant;

use crate::app::Shared;
use crate::change::{Change, SYSTEM};
use crate::error::Failure;

/// All records are looked through at least this often.
const AT_LEAST_EVERY: Duration = Duration::from_secs(3600);
/// What was found missing on the disk is believed for so long.
const LAYERS_FRESH: Duration = Duration::from_secs(2);
/// Who asks for news waits for it this long at most.
pub const NEWS_MAX: Duration = Duration::from_secs(2);

/// Looks through the records, unless nothing can have happened to them since the last time.
///
/// # Errors
/// Where the store fails.
pub async fn look(app: &Shared) -> Result<(), Failure> {
    let mut looked = app.looks.0.lock().await;
    let version = app.store.version_elsewhere().await?;
    if looked.version == Some(version) && looked.at.is_some_and(|at| at.elapsed() < AT_LEAST_EVERY) {
        return Ok(());
    }
    // Another process may have changed providers.
    app.catalog.changed();
    let found = app.store.look_through().await?;
    for damage in found.damages.iter().filter(|damage| damage.table == "sessions") {
        set_aside(app, damage.id.clone()).await?;
    }
    for (session, repeated) in &found.repeated {
        tracing::warn!(%session, "columns of a session say something else than its machine, or its log; they are written again");
        match repeat(app, *session, *repeated).await {
            Err(error) if error.damage().is_some() => {}
            repeated => repeated?,
        }
    }
    let is_news = looked.damages != found.damages || !found.repeated.is_empty();
    looked.damages = found.damages;
    if is_news && looked.version.is_some() {
        app.hub.sweep_soon();
        let mut connection = app.store.read().await?;
        for session in checkpoints::sessions_with_open(&mut connection).await? {
            app.checkpoint_queue.enqueue(session, Cause::Request);
        }
    }
    (looked.version, looked.at) = (Some(version), Some(Instant::now()));
    Ok(())
}

/// Layers whose directory is not there.
///
/// # Errors
/// Where the store or the disk fails.
pub async fn missing_layers(app: &Shared) -> Result<Vec<LayerId>, Failure> {
    let mut looked = app.looks.0.lock().await;
    if looked.missing_at.is_none_or(|at| at.elapsed() > LAYERS_FRESH) {
        looked.missing = find_missing(app).await?;
        looked.missing_at = Some(Instant::now());
    }
    Ok(looked.missing.clone())
}

async fn find_missing(app: &Shared) -> Result<Vec<LayerId>, Failure> {
    let recorded = {
        let mut connection = app.store.read().await?;
        layers::all(&mut connection).await?
    };
    let there = list(app).await?;
    let mut missing = Vec::new();
    for layer in recorded.into_iter().map(|row| row.id).filter(|id| !there.contains(id)) {
        // Its record goes first, and may have gone in between.
        let mut connection = app.store.read().await?;
        if layers::find(&mut connection, layer).await?.is_some() {
            missing.push(layer);
        }
    }
    Ok(missing)
}

async fn list(app: &Shared) -> Result<BTreeSet<LayerId>, Failure> {
    let layer_store = app.layer_store.clone();
    let all = app.work(move || layer_store.list()).await.map_err(FileError::Io)?.map_err(FileError::from)?;
    Ok(all.into_iter().collect())
}

async fn set_aside(app: &Shared, session: String) -> Result<(), Failure> {
    let write = app.store.write(move |tx| {
        Box::pin(async move {
            set_aside::set_aside(tx, &session).await?;
            Ok::<_, Failure>(())
        })
    });
    write.await
}

/// Writes what repeats something else again; and deletes a session that was deleted while its record was damaged.
async fn repeat(app: &Shared, session: SessionId, repeated: Repeated) -> Result<(), Failure> {
    let now = app.now();
    let write = app.store.write(move |tx| {
        Box::pin(async move {
            set_aside::repeat(tx, session).await?;
            tx.changed(session);
            if repeated == Repeated::Deleted {
                let mut change = Change::load(tx, session, now, SYSTEM).await?;
                match change.step(&Event::Delete).await {
                    Ok(()) => drop(change.save().await?),
                    Err(Failure::Refused(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok::<_, Failure>(())
        })
    });
    write.await
}
