//! Streams and commands: that they begin, and that they have ended.

use std::collections::BTreeSet;

use raworc_core::events::{StreamEnd, StreamError, StreamStart};
use raworc_core::ids::ContainerId;
use raworc_core::link::{Ending, WorkId};
use raworc_core::session::Event;
use raworc_store::StoreError;
use raworc_store::streams::{self, StreamRow};
use uuid::Uuid;

use crate::app::Shared;
use crate::change::{Change, SYSTEM};
use crate::error::Failure;

/// Records that a stream or a command begins, before anyone begins it.
///
/// # Errors
/// As [`Change::begin_stream`].
pub async fn record(app: &Shared, row: StreamRow, start: StreamStart) -> Result<(), Failure> {
    let now = app.now();
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let mut change = Change::load(tx, row.session_id, now, row.actor.clone()).await?;
                change.begin_stream(&row, start).await?;
                change.save().await?;
                Ok(())
            })
        })
        .await
}

/// A stream has ended, as its host says.
///
/// # Errors
/// Where the store fails.
pub async fn ended(
    app: &Shared,
    container: ContainerId,
    id: Uuid,
    ending: Ending,
    duration_micros: u64,
) -> Result<(), Failure> {
    let duration_seconds = Some(duration_micros as f64 / 1e6);
    let mut end = StreamEnd { exit_code: None, duration_seconds, signal: None, error: None };
    match ending {
        Ending::Exited(code) => end.exit_code = Some(code),
        Ending::Signalled(signal) => end.signal = Some(signal),
        Ending::Cancelled => end.error = Some(StreamError::Closed),
        Ending::TimedOut => end.error = Some(StreamError::TimedOut),
        Ending::NotStarted => end.error = Some(StreamError::NotStarted),
    }
    finish(app, container, id, end).await
}

/// A stream has ended; `end` says how.
///
/// # Errors
/// Where the store fails.
pub async fn finish(app: &Shared, container: ContainerId, id: Uuid, end: StreamEnd) -> Result<(), Failure> {
    let (now, app_in_job) = (app.now(), app.clone());
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let mut change = Change::load(tx, container.session, now, SYSTEM).await?;
                // Where it could not be recorded, the host says it again.
                change.tx().after_commit(move || {
                    app_in_job.hosts.stream_ended(container, id);
                    app_in_job.hub.notify(&[container.session]);
                });
                let rows = streams::of_session(change.tx(), container.session).await?.rows;
                if let Some(row) = rows.iter().find(|row| row.id == id) {
                    change.end_stream(row, end).await?;
                    change.step(&Event::Used).await?;
                    change.save().await?;
                }
                Ok(())
            })
        })
        .await
}

/// A host says what it has: those streams of it that are recorded. Others that are recorded have ended unseen.
///
/// # Errors
/// Where the store fails.
pub async fn reconcile_streams(
    app: &Shared,
    container: ContainerId,
    works: &[WorkId],
) -> Result<BTreeSet<Uuid>, Failure> {
    let has = move |row: &StreamRow, works: &[WorkId]| {
        row.generation == container.generation && works.contains(&WorkId::Exec(row.id))
    };
    let rows = {
        let mut connection = app.store.read().await?;
        streams::of_session(&mut connection, container.session).await?.rows
    };
    let is_lost =
        move |app: &Shared, row: &StreamRow, works: &[WorkId]| !has(row, works) && !app.hosts.is_beginning(row.id);
    if rows.iter().any(|row| is_lost(app, row, works)) {
        let (in_job, works, now) = (app.clone(), works.to_vec(), app.now());
        let ended: Result<(), Failure> = app
            .store
            .write(move |tx| {
                Box::pin(async move {
                    let mut change = Change::load(tx, container.session, now, SYSTEM).await?;
                    change.end_streams(|row| is_lost(&in_job, row, &works)).await?;
                    change.save().await.map(|_| ()).map_err(|error: StoreError| error.into())
                })
            })
            .await;
        ended?;
    }
    Ok(rows.iter().filter(|row| has(row, works)).map(|row| row.id).collect())
}
