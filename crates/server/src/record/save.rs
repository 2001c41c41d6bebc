//! Record what was saved of a workspace.

use std::collections::BTreeSet;
use std::time::Duration;

use raworc_core::checkpoints::{Cause, expired};
use raworc_core::conversation::{Rewound, standing};
use raworc_core::events::{
    CheckpointCreated, CheckpointDelayed, CheckpointFailed, SessionRewindFailed, SessionRewound,
};
use raworc_core::ids::{LayerId, SessionId};
use raworc_core::session::{Container, Event};
use raworc_core::time::Time;
use raworc_store::checkpoints::{self, CheckpointRow, Status};
use raworc_store::layers::{self, LayerRow};
use raworc_store::messages;
use raworc_store::sessions::SessionRow;
use raworc_workspace::layers::seal::LayerDelta;

use super::backups;
use crate::app::Shared;
use crate::change::{Change, SYSTEM};
use crate::error::Failure;

/// What a look at a workspace brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveOutcome {
    /// Nothing was written since the last time.
    Unchanged {
        /// The last event that was stored before the look.
        seq: u64,
    },
    /// What the session wrote is a layer now.
    Sealed {
        /// What it wrote to, or the same made independent of how it was written.
        layer: LayerId,
        /// What it writes to from now on.
        next: LayerId,
    },
    /// What it wrote was copied to a layer.
    Copied {
        /// The copy.
        layer: LayerId,
        /// An earlier copy that it lies on; otherwise on what the session's workspace does.
        earlier: Option<LayerId>,
        /// The last event that was stored while it could not change any more.
        seq: u64,
    },
}

/// A look at a workspace.
#[derive(Clone, Copy, Debug)]
pub struct SaveRecord {
    /// What it brought.
    pub found: SaveOutcome,
    /// How long the container stood still.
    pub frozen: Duration,
    /// When it began.
    pub began: Time,
    /// The number of the session's newest checkpoint then: one that was asked for later may be meant to have what was written later.
    pub newest: u64,
    /// Whether one was due then: what became due later may be for what was written later, too.
    pub is_due: bool,
}

/// Records it: for every checkpoint that someone waits for, or else as a new one.
///
/// # Errors
/// Where the store fails.
pub async fn record(
    app: &Shared,
    session: SessionId,
    saved: SaveRecord,
    causes: &BTreeSet<Cause>,
) -> Result<(), Failure> {
    let (now, occasion) = (app.now(), causes.iter().find(|cause| cause.is_occasion()).copied());
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let mut change = Change::load(tx, session, now, SYSTEM).await?;
                let top = lay(&mut change, saved.found).await?;
                let open = checkpoints::open_of(change.tx(), session).await?;
                let mut pending = pending(&change.row, open);
                pending.retain(|checkpoint| checkpoint.n <= saved.newest);
                let due = if saved.is_due { change.row.save_due.take() } else { None };
                let cause = due.or(occasion);
                if let (true, Some(cause)) = (pending.is_empty(), cause) {
                    let row = new_row(&mut change.row, cause, None, SYSTEM, saved.began);
                    checkpoints::insert(change.tx(), &row).await?;
                    pending.push(row);
                }
                let rewind = pending.iter().find(|checkpoint| checkpoint.cause == Cause::Rewind).cloned();
                for checkpoint in pending {
                    fix(&mut change, checkpoint, top, saved).await?;
                }
                if let Some(rewind) = rewind {
                    go_back(&mut change, &rewind).await?;
                }
                change.save().await?;
                Ok(())
            })
        })
        .await
}

/// Records that there is nothing to save of a session.
///
/// # Errors
/// Where the store fails.
pub async fn nothing_due(app: &Shared, session: SessionId) -> Result<(), Failure> {
    let now = app.now();
    let write = app.store.write(move |tx| {
        Box::pin(async move {
            let mut change = Change::load(tx, session, now, SYSTEM).await?;
            change.row.save_due = None;
            change.save().await?;
            Ok::<_, Failure>(())
        })
    });
    write.await
}

/// Those of a session's open checkpoints that can be taken now. A rewind waits until the container has gone.
pub fn pending(row: &SessionRow, mut open: Vec<CheckpointRow>) -> Vec<CheckpointRow> {
    let may_rewind = row.machine.rewind.is_some() && row.machine.container == Container::None;
    open.retain(|checkpoint| checkpoint.status == Status::Pending && (may_rewind || checkpoint.cause != Cause::Rewind));
    open
}

/// A checkpoint that is wanted.
pub fn new_row(row: &mut SessionRow, cause: Cause, label: Option<String>, by: &str, now: Time) -> CheckpointRow {
    row.checkpoints += 1;
    CheckpointRow {
        session_id: row.id,
        n: row.checkpoints,
        label,
        cause,
        status: Status::Pending,
        seq: row.last_seq,
        layer_id: None,
        bytes: 0,
        files: 0,
        changed_bytes: 0,
        took_micros: 0,
        frozen_micros: 0,
        error: None,
        created_by: by.to_owned(),
        created_at: now,
    }
}

/// Adds what was found to the layers; the topmost one of the workspace as it was then.
async fn lay(change: &mut Change<'_>, found: SaveOutcome) -> Result<Option<LayerId>, Failure> {
    let (id, parent) = match found {
        SaveOutcome::Unchanged { .. } => return Ok(change.row.layer_id),
        SaveOutcome::Sealed { layer, .. } => (layer, change.row.layer_id),
        SaveOutcome::Copied { layer, earlier, .. } => (layer, earlier.or(change.row.layer_id)),
    };
    // Until it is measured, it is taken to be as large as what it lies on.
    let below = match parent {
        Some(parent) => Some(layer(change, parent).await?),
        None => None,
    };
    let row = LayerRow {
        id,
        parent_id: parent,
        depth: below.map_or(0, |below| below.depth) + 1,
        changed_bytes: 0,
        bytes: below.map_or(0, |below| below.bytes),
        files: below.map_or(0, |below| below.files),
        entries: 0,
        own_disk_bytes: 0,
        disk_bytes: below.map_or(0, |below| below.disk_bytes),
        disk_is_exact: false,
        created_at: change.now,
    };
    layers::insert(change.tx(), &row).await?;
    if let SaveOutcome::Sealed { next, .. } = found {
        change.row.layer_id = Some(id);
        let before = std::mem::replace(&mut change.row.writable_id, next);
        change.wasted([before]);
    }
    Ok(Some(id))
}

/// Fixes what a checkpoint is. One whose layer was brought to the disk before is ready at once.
async fn fix(
    change: &mut Change<'_>,
    mut checkpoint: CheckpointRow,
    top: Option<LayerId>,
    saved: SaveRecord,
) -> Result<(), Failure> {
    if checkpoint.cause != Cause::Rewind {
        checkpoint.seq = match saved.found {
            // What has been told since may be of what was written since.
            SaveOutcome::Copied { seq, .. } | SaveOutcome::Unchanged { seq } => seq,
            SaveOutcome::Sealed { .. } => change.row.last_seq,
        };
    }
    checkpoint.layer_id = top;
    checkpoint.frozen_micros = micros(saved.frozen);
    checkpoint.status = Status::Saving;
    let open = checkpoints::open_of(change.tx(), checkpoint.session_id).await?;
    let is_saved = matches!(saved.found, SaveOutcome::Unchanged { .. })
        && !open.iter().any(|other| other.status == Status::Saving && other.layer_id == top);
    if is_saved {
        let layer = match top {
            Some(top) => layers::find(change.tx(), top).await?,
            None => None,
        };
        (checkpoint.bytes, checkpoint.files) = layer.map_or((0, 0), |layer| (layer.bytes, layer.files));
        return announce(change, checkpoint).await;
    }
    checkpoints::update(change.tx(), &checkpoint).await?;
    Ok(())
}

/// A checkpoint can be used from now on.
async fn announce(change: &mut Change<'_>, mut checkpoint: CheckpointRow) -> Result<(), Failure> {
    checkpoint.status = Status::Ready;
    checkpoint.took_micros = micros(change.now.since(checkpoint.created_at));
    checkpoints::update(change.tx(), &checkpoint).await?;
    let created = CheckpointCreated {
        n: checkpoint.n,
        label: checkpoint.label.clone(),
        cause: checkpoint.cause,
        seq: checkpoint.seq,
        size_bytes: checkpoint.bytes,
        changed_bytes: checkpoint.changed_bytes,
        files: checkpoint.files,
    };
    change.log_as(&checkpoint.created_by, created).await?;
    backups::want(change);
    forget_old(change).await
}

/// Gives up checkpoints that the session's plan keeps no longer.
async fn forget_old(change: &mut Change<'_>) -> Result<(), Failure> {
    let session = change.row.id;
    let kept = checkpoints::kept(change.tx(), session).await?;
    for n in expired(&kept, change.row.settings.checkpoints.keep_last) {
        if change.row.machine.rewind != Some(n) {
            forget(change, n).await?;
        }
    }
    Ok(())
}

/// Gives up a checkpoint of this session.
///
/// # Errors
/// Where the store fails.
pub async fn forget(change: &mut Change<'_>, n: u64) -> Result<(), Failure> {
    let session = change.row.id;
    let Some(row) = checkpoints::find(change.tx(), session, n).await? else { return Ok(()) };
    checkpoints::delete(change.tx(), session, n).await?;
    let given_up = change.release(row.layer_id).await?;
    change.given_up(given_up);
    Ok(())
}

/// The workspace and the conversation become those of the checkpoint that the session goes back to.
async fn go_back(change: &mut Change<'_>, saved_as: &CheckpointRow) -> Result<(), Failure> {
    let session = change.row.id;
    let Some(n) = change.row.machine.rewind else { return Ok(()) };
    let target = checkpoints::find(change.tx(), session, n).await?;
    change.step(&Event::Rewound).await?;
    let Some(target) = target else {
        change.log(SessionRewindFailed { checkpoint: n, error: "it is gone".into() }).await?;
        return Ok(());
    };
    let rewound = Rewound { at: saved_as.seq + 1, to: target.seq };
    let ranges = standing(target.seq, &change.row.rewinds);
    messages::rewind(change.tx(), session, &ranges, rewound.at).await?;
    change.row.rewinds.push(rewound);
    // What it lies on so far is kept by the checkpoint that was taken before it goes back.
    change.row.layer_id = target.layer_id;
    let next = LayerId(change.tx().new_id());
    let before = std::mem::replace(&mut change.row.writable_id, next);
    change.wasted([before]);
    change.log(SessionRewound { checkpoint: n, saved_as: saved_as.n }).await?;
    Ok(())
}

/// The layer of checkpoints of this session is on the disk, and this is what it changes.
///
/// # Errors
/// Where the store fails.
pub async fn ready(app: &Shared, session: SessionId, layer: LayerId, measured: LayerDelta) -> Result<(), Failure> {
    let now = app.now();
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let mut change = Change::load(tx, session, now, SYSTEM).await?;
                let open = checkpoints::open_of(change.tx(), session).await?;
                let of_layer = open
                    .into_iter()
                    .filter(|checkpoint| checkpoint.status == Status::Saving && checkpoint.layer_id == Some(layer));
                let sizes = store_sizes(&mut change, layer, measured).await?;
                for mut checkpoint in of_layer {
                    checkpoint.error = None;
                    (checkpoint.bytes, checkpoint.files) = (sizes.bytes, sizes.files);
                    checkpoint.changed_bytes = sizes.changed_bytes;
                    announce(&mut change, checkpoint).await?;
                }
                change.save().await?;
                Ok(())
            })
        })
        .await
}

/// The layer of checkpoints of this session cannot be brought to the disk for now, which is tried until it can; said once.
///
/// # Errors
/// Where the store fails.
pub async fn delayed(app: &Shared, session: SessionId, layer: LayerId) -> Result<(), Failure> {
    let now = app.now();
    let write = app.store.write(move |tx| {
        Box::pin(async move {
            let mut change = Change::load(tx, session, now, SYSTEM).await?;
            let open = checkpoints::open_of(change.tx(), session).await?;
            let of_layer = open.into_iter().filter(|checkpoint| {
                checkpoint.status == Status::Saving && checkpoint.layer_id == Some(layer) && checkpoint.error.is_none()
            });
            for mut checkpoint in of_layer {
                let error = "the server's disk does not take it; it is tried again until it does".to_owned();
                let delayed = CheckpointDelayed { n: checkpoint.n, error: error.clone() };
                checkpoint.error = Some(error);
                checkpoints::update(change.tx(), &checkpoint).await?;
                change.log_as(&checkpoint.created_by, delayed).await?;
            }
            change.save().await?;
            Ok::<_, Failure>(())
        })
    });
    write.await
}

/// A layer that has to be there.
async fn layer(change: &mut Change<'_>, id: LayerId) -> Result<LayerRow, Failure> {
    let found = layers::find(change.tx(), id).await?;
    found.ok_or_else(|| Failure::not_found("layer", &id.to_string()))
}

async fn store_sizes(change: &mut Change<'_>, id: LayerId, measured: LayerDelta) -> Result<LayerRow, Failure> {
    let mut layer = layer(change, id).await?;
    let below = match layer.parent_id {
        Some(parent) => layers::find(change.tx(), parent).await?,
        None => None,
    };
    let (bytes, files) = below.map_or((0, 0), |below| (below.bytes, below.files));
    layer.changed_bytes = measured.changed_bytes;
    layer.bytes = bytes.saturating_add_signed(measured.bytes);
    layer.files = files.saturating_add_signed(measured.files);
    layer.entries = measured.entries;
    layer.own_disk_bytes = measured.own_disk;
    layer.disk_bytes = below.map_or(0, |below| below.disk_bytes).saturating_add_signed(measured.disk);
    layers::set_sizes(change.tx(), &layer).await?;
    Ok(layer)
}

/// A workspace could not be saved.
///
/// # Errors
/// Where the store fails.
pub async fn failed(app: &Shared, session: SessionId, causes: &BTreeSet<Cause>, error: &str) -> Result<(), Failure> {
    let error = error.to_owned();
    let (now, cause) = (app.now(), causes.iter().next().copied());
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let mut change = Change::load(tx, session, now, SYSTEM).await?;
                let mut open = checkpoints::open_of(change.tx(), session).await?;
                let is_gone = change.row.machine.container == Container::None;
                open.retain(|checkpoint| {
                    checkpoint.status == Status::Pending && (is_gone || checkpoint.cause != Cause::Rewind)
                });
                // It is told, and what was not saved is with the next one.
                change.row.save_due = None;
                if open.is_empty() {
                    change.log(CheckpointFailed { n: None, cause, error: error.clone() }).await?;
                }
                for mut checkpoint in open {
                    checkpoint.status = Status::Failed;
                    checkpoint.error = Some(error.clone());
                    checkpoints::update(change.tx(), &checkpoint).await?;
                    let (n, cause) = (Some(checkpoint.n), Some(checkpoint.cause));
                    let failed = CheckpointFailed { n, cause, error: error.clone() };
                    change.log_as(&checkpoint.created_by, failed).await?;
                    if checkpoint.cause == Cause::Rewind {
                        give_up_rewind(&mut change, &error).await?;
                    }
                }
                change.save().await?;
                Ok(())
            })
        })
        .await
}

/// A session that cannot save what it has does not go back: nothing is lost, and it is not held up.
async fn give_up_rewind(change: &mut Change<'_>, error: &str) -> Result<(), Failure> {
    let Some(checkpoint) = change.row.machine.rewind else { return Ok(()) };
    match change.step(&Event::Rewound).await {
        Ok(()) => {
            change.log(SessionRewindFailed { checkpoint, error: error.to_owned() }).await?;
            Ok(())
        }
        // Its container is still there: it is tried again when that has gone.
        Err(Failure::Refused(_)) => Ok(()),
        Err(other) => Err(other),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
