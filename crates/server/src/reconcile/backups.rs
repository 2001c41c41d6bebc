//! Sends new checkpoints to the registries of sessions that want it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raworc_core::ids::SessionId;
use raworc_oci::Reference;
use raworc_store::{checkpoints, sessions};

use crate::app::Shared;
use crate::error::Failure;
use crate::hub::lock;
use crate::images::Tell;
use crate::verbs::{backups, push};

/// How exactly times are kept.
const TICK: Duration = Duration::from_secs(1);
/// Backups on their way at the same time.
const BACKUPS: usize = 2;

/// Runs until the server stops.
pub async fn run(app: Shared) {
    let busy: Arc<Mutex<HashSet<SessionId>>> = Arc::default();
    loop {
        tokio::select! {
            biased;
            () = app.stopping.cancelled() => return,
            () = tokio::time::sleep(TICK) => {}
        }
        let due = match due(&app).await {
            Ok(due) => due,
            Err(error) => {
                tracing::error!(%error, "the backups that are due could not be looked up; trying again");
                continue;
            }
        };
        for session in due {
            let mut running = lock(&busy);
            if running.len() < BACKUPS && running.insert(session) {
                let (app, busy) = (app.clone(), Arc::clone(&busy));
                app.tasks.clone().spawn(async move {
                    look_after(&app, session).await;
                    lock(&busy).remove(&session);
                });
            }
        }
    }
}

async fn due(app: &Shared) -> Result<Vec<SessionId>, Failure> {
    let mut connection = app.store.read().await?;
    Ok(sessions::with_backup_due(&mut connection, app.now()).await?)
}

async fn look_after(app: &Shared, session: SessionId) {
    let result = tokio::select! {
        biased;
        // What has been sent is not sent again by the next server.
        () = app.stopping.cancelled() => return,
        result = back_up(app, session) => result,
    };
    if let Err(error) = result {
        tracing::error!(%session, %error, "a backup could not be looked after; trying again");
    }
}

async fn back_up(app: &Shared, session: SessionId) -> Result<(), Failure> {
    let (row, newest) = {
        let mut connection = app.store.read().await?;
        (sessions::find(&mut connection, session).await?, checkpoints::newest(&mut connection, session).await?)
    };
    let Some(row) = row else { return Ok(()) };
    let newest = newest.filter(|newest| Some(newest.n) > row.backup.checkpoint);
    let (Some(plan), Some(newest)) = (&row.settings.backup, newest) else {
        return backups::nothing(app, session).await;
    };
    let tell: Tell = Arc::new(|_| {});
    let named = |tag: String| format!("{}:{tag}", plan.registry).parse::<Reference>();
    // One tag for each, and one that always means the newest.
    let sent = async {
        let own = named(format!("{session}-{}", newest.n))?;
        let registry = app.images.registry(&own, None).await?;
        let digest = push::send(app, &row, &newest, &registry, &tell).await?;
        let registry = app.images.registry(&named(session.to_string())?, None).await?;
        push::send(app, &row, &newest, &registry, &tell).await?;
        Ok::<_, Failure>((own.to_string(), digest.to_string()))
    };
    match sent.await {
        Ok(sent) => backups::done(app, session, newest.n, sent).await,
        Err(failure) => {
            tracing::warn!(%session, n = newest.n, error = %failure, "a backup failed; it is tried again");
            backups::failed(app, session, newest.n, failure.into_problem().detail).await
        }
    }
}
