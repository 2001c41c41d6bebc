//! Compares what is there with what is meant to be there: at start, and from time to time.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use raworc_core::ids::ContainerId;
use raworc_core::limits::STOP_GRACE;
use raworc_runtime::ExitReason;
use raworc_store::{StoreError, idempotency, sessions};
use tokio::time::Instant;

use super::TOLD_AT_ONCE;
use crate::app::Shared;
use crate::error::Failure;
use crate::layers::chains;
use crate::loops::supervise::Loop;
use crate::record::observe;
use crate::sync::blocking;

/// Time between two sweeps.
const INTERVAL: Duration = Duration::from_secs(60);
/// Time between two sweeps that look at every layer's directory. The first one is at start.
const THOROUGH_INTERVAL: Duration = Duration::from_secs(3600);
/// How long an `Idempotency-Key` is remembered.
const KEYS_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Compares what the records say with what is there.
pub struct Sweep;

impl Loop for Sweep {
    const NAME: &'static str = "sweep";
    const TRIGGER: &'static str = "every minute, and where something has become nobody's";

    fn bound() -> String {
        format!("one sweep at a time, {TOLD_AT_ONCE} containers at once")
    }

    async fn run(app: Shared) {
        let mut thorough: Option<Instant> = None;
        loop {
            if thorough.is_none_or(|last| last.elapsed() >= THOROUGH_INTERVAL) {
                thorough = Some(Instant::now());
                leftovers(&app).await;
                if let Err(error) = chains::collect_all(&app).await {
                    tracing::error!(%error, "layers could not be looked through; a later sweep tries again");
                }
            }
            // Early, where something has become nobody's.
            let next = tokio::time::timeout(INTERVAL, app.hub.sweep_wanted());
            if app.unless_stopping(next).await.is_none() {
                return;
            }
            let swept = once(&app).await;
            app.loops.ran(Sweep::NAME, swept.is_ok());
            if let Err(error) = swept {
                tracing::error!(%error, "a sweep failed; the next one tries again");
            }
        }
    }
}

/// Removes what transfers have left.
async fn leftovers(app: &Shared) {
    let images = app.clone();
    match blocking(move || images.images.collect(false)).await.map_err(raworc_oci::Error::Io).flatten() {
        Ok(0) => {}
        Ok(bytes) => tracing::info!(bytes, "removed what transfers have left"),
        Err(error) => tracing::error!(%error, "what transfers have left could not be removed"),
    }
}

/// One sweep.
///
/// # Errors
/// Where the records or the runtime fail; whatever was not done is done by the next one.
pub async fn once(app: &Shared) -> Result<(), Failure> {
    let before = meant_to_be(app).await?;
    let there = match app.runtime.list().await {
        Ok(list) => list,
        Err(error) => {
            tracing::warn!(%error, "the containers could not be listed");
            return Ok(());
        }
    };
    // One that came to be wanted after the first look is no orphan, one that was listed before it was wanted cannot be.
    let after = meant_to_be(app).await?;
    let all: BTreeSet<ContainerId> = there.iter().map(|listed| listed.id).collect();
    let orphans: Vec<ContainerId> = all.difference(&after).copied().collect();
    let removed = futures::stream::iter(orphans).for_each_concurrent(TOLD_AT_ONCE, async |orphan| {
        tracing::info!(container = %orphan, "removing a container that no session owns");
        app.hosts.forget(orphan);
        if let Err(error) = app.runtime.stop(orphan, STOP_GRACE).await {
            tracing::warn!(container = %orphan, %error, "it could not be removed; the next sweep tries again");
        }
    });
    removed.await;
    let running = there.iter().filter(|listed| listed.is_running).map(|listed| listed.id).collect();
    let missing: Vec<ContainerId> = before.difference(&running).copied().collect();
    let told = futures::stream::iter(missing).map(Ok::<_, Failure>);
    let told = told.try_for_each_concurrent(TOLD_AT_ONCE, async |missing| {
        if is_up(app, missing).await? {
            app.hosts.forget(missing);
            observe::container_gone(app, missing, ExitReason::Unknown).await?;
        }
        Ok(())
    });
    told.await?;
    // Nothing that is wanted is forgotten, whatever became of the first attempt.
    let wanted = {
        let mut connection = app.store.read().await?;
        sessions::with_wanted_container(&mut connection).await?
    };
    wanted.into_iter().for_each(|id| app.hub.look_again(id));
    let until = app.now() - KEYS_KEPT;
    app.store
        .write(move |tx| {
            Box::pin(async move {
                idempotency::prune(tx, until).await?;
                Ok::<_, Failure>(())
            })
        })
        .await
}

async fn meant_to_be(app: &Shared) -> Result<BTreeSet<ContainerId>, Failure> {
    let mut connection = app.store.read().await?;
    Ok(sessions::containers(&mut connection).await?.into_iter().collect())
}

async fn is_up(app: &Shared, container: ContainerId) -> Result<bool, Failure> {
    let mut connection = app.store.read().await?;
    let row = match sessions::find(&mut connection, container.session).await {
        Err(StoreError::Damaged(_)) => None,
        found => found?,
    };
    Ok(row.is_some_and(|row| {
        row.machine.generation == container.generation && row.machine.container == raworc_core::session::Container::Up
    }))
}
