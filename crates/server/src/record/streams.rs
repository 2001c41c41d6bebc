//! Streams and commands: that they begin, and that they have ended.

use std::collections::BTreeSet;

use raworc_core::ids::ContainerId;
use raworc_core::link::{Ending, WorkId};
use raworc_core::session::Event;
use raworc_store::StoreError;
use raworc_store::streams::{self, StreamRow};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::Shared;
use crate::change::{Change, SYSTEM};
use crate::error::Failure;

/// Records that a stream or a command begins, before anyone begins it.
///
/// # Errors
/// As [`Change::begin_stream`].
pub async fn record(app: &Shared, row: StreamRow, data: Value) -> Result<(), Failure> {
    let now = app.now();
    app.store
        .write(move |transaction| {
            Box::pin(async move {
                let mut change = Change::load(transaction, row.session_id, now, row.actor.clone()).await?;
                change.begin_stream(&row, data).await?;
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
    let mut data = json!({ "exit_code": null, "duration_seconds": duration_micros as f64 / 1e6 });
    match ending {
        Ending::Exited(code) => data["exit_code"] = json!(code),
        Ending::Signalled(signal) => data["signal"] = json!(signal),
        Ending::Cancelled => data["error"] = json!("closed"),
        Ending::TimedOut => data["error"] = json!("timed_out"),
        Ending::NotStarted => data["error"] = json!("not_started"),
    }
    finish(app, container, id, data).await
}

/// A stream has ended; `data` says how.
///
/// # Errors
/// Where the store fails.
pub async fn finish(app: &Shared, container: ContainerId, id: Uuid, data: Value) -> Result<(), Failure> {
    let now = app.now();
    let finished: Result<(), Failure> = app
        .store
        .write(move |transaction| {
            Box::pin(async move {
                let actor = SYSTEM;
                let mut change = Change::load(transaction, container.session, now, actor).await?;
                let rows = streams::of_session(change.connection(), container.session).await?.rows;
                if let Some(row) = rows.iter().find(|row| row.id == id) {
                    change.end_stream(row, data).await?;
                    change.step(&Event::Used).await?;
                    change.save().await?;
                }
                Ok(())
            })
        })
        .await;
    // Where it could not be recorded, the host says it again.
    if finished.is_ok() {
        app.hosts.stream_ended(container, id);
        app.hub.notify(&[container.session]);
    }
    finished
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
            .write(move |transaction| {
                Box::pin(async move {
                    let mut change = Change::load(transaction, container.session, now, SYSTEM).await?;
                    change.end_streams(|row| is_lost(&in_job, row, &works)).await?;
                    change.save().await.map(|_| ()).map_err(|error: StoreError| error.into())
                })
            })
            .await;
        ended?;
    }
    Ok(rows.iter().filter(|row| has(row, works)).map(|row| row.id).collect())
}
