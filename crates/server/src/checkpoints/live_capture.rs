//! Copies what changed in a workspace in which something goes on running.
//!
//! In rounds. In the first ones everything goes on, so what they copy may be torn; in the last one the container stands still,
//! and only what has changed since the one before is copied. Together they are one layer. What a session copied before is
//! remembered while it writes to the same layer, so that the next copy is of what changed since then.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use raworc_core::ids::LayerId;
use raworc_runtime::Occupancy;
use raworc_workspace::layers::capture::{CaptureOptions, CaptureStats};
use raworc_workspace::layers::links::CopiedUpFile;
use raworc_workspace::layers::{capture, seal, squash};

use super::capture_bases::{CaptureBase, Listing};
use super::job::Job;
use super::save_error::SaveError;
use crate::layers::pins::LayerPin;
use crate::layers::workspace_access;
use crate::record::save::SaveOutcome;

/// Rounds in which everything goes on, at most.
const MOVING_MAX: usize = 4;
/// After a round that copied less than this, in entries and bytes, the next one is short enough to stand still for.
const SHORT_ENTRIES: u64 = 1000;
const SHORT_BYTES: u64 = 16 << 20;

/// Saves the workspace of a container in which not only its host runs.
pub async fn copy(job: &Job<'_>) -> Result<(), SaveError> {
    let layers = [(); MOVING_MAX + 2].map(|()| workspace_access::new_layer());
    let hold = job.app.layer_pins.pin(layers);
    let result = copy_to(job, layers).await;
    drop(hold);
    // What did not become a layer of the session.
    job.app.garbage_queue.enqueue(layers);
    result
}

async fn copy_to(job: &Job<'_>, layers: [LayerId; MOVING_MAX + 2]) -> Result<(), SaveError> {
    let (app, row) = (job.app, job.row);
    let [rounds @ .., whole] = &layers;
    let before = app.capture_bases.get(row.id).filter(|copied| copied.writable == row.writable_id);
    let mut listing = before.as_ref().map(|copied| copied.listing.clone());
    let mut gathered = before.as_ref().map(|copied| copied.gathered.clone()).unwrap_or_default();
    gather(job, &mut gathered.clone()).await?;
    let mut done = 0;
    while done < MOVING_MAX {
        let (seen, captured) = round(job, rounds[done], listing, false).await?;
        listing = Some(seen);
        done += 1;
        if captured.entries < SHORT_ENTRIES && captured.bytes < SHORT_BYTES {
            break;
        }
    }
    let stands = job.freeze_container().await?;
    if stands.occupancy == Occupancy::HostOnly {
        // They have ended meanwhile.
        return job.seal_frozen(stands).await;
    }
    let last = match gather(job, &mut gathered).await {
        Ok(()) => round(job, rounds[done], listing, true).await,
        Err(save_error) => Err(save_error),
    };
    // What is told from now on may be of what was written after it.
    let seq = job.last_seq().await;
    let frozen = stands.go_on().await?;
    let ((listing, _), seq) = (last?, seq?);
    let earlier = before.map(|copied| copied.layer);
    join(job, &rounds[..=done], *whole, earlier).await?;
    let copied = CaptureBase {
        writable: row.writable_id,
        layer: *whole,
        listing,
        gathered,
        _hold: Arc::new(app.layer_pins.pin([*whole])),
    };
    job.record(SaveOutcome::Copied { layer: copied.layer, earlier, seq }, frozen).await?;
    app.capture_bases.set(row.id, copied);
    Ok(())
}

/// Gives files that are written to all of their names there, but for those that have them already. What the container does meanwhile may
/// keep one from being found; when it stands still, nothing does.
async fn gather(job: &Job<'_>, gathered: &mut BTreeSet<CopiedUpFile>) -> Result<(), SaveError> {
    let (layer_store, writable) = (job.app.layer_store.clone(), job.row.writable_id);
    let found = job.app.work(move || layer_store.copied_up_files(writable)).await??;
    let files: BTreeSet<CopiedUpFile> = found.difference(gathered).cloned().collect();
    if !files.is_empty() {
        let root = job.app.runtime.open_workspace(job.container).await?;
        let (layer_store, wanted) = (job.app.layer_store.clone(), files.clone());
        job.app.work(move || layer_store.restore_hard_links(root, writable, &wanted)).await??;
    }
    gathered.extend(files);
    Ok(())
}

/// Copies what changed since `before` into `layer`; the new listing, and what was copied.
async fn round(
    job: &Job<'_>,
    layer: LayerId,
    before: Option<Arc<Listing>>,
    is_still: bool,
) -> Result<(Arc<Listing>, CaptureStats), SaveError> {
    let (layer_store, from) = (job.app.layer_store.clone(), job.row.writable_id);
    // In a simulation time is made up, and what the file system says of it means nothing.
    let doubtful = if job.app.fault_injector.is_some() { Duration::MAX } else { capture::TIMESTAMP_GRANULARITY };
    let how = CaptureOptions { xattrs: layer_store.overlay_xattrs(), is_still, doubtful };
    let copy = move || -> io::Result<(Arc<Listing>, CaptureStats)> {
        let into = layer_store.create_empty(layer)?;
        let listing = Listing(layer_store.sibling(from, &format!("{}.listing", layer.0.as_simple())));
        let captured = capture::capture(
            &layer_store.path(from),
            &into,
            &listing.0,
            before.as_ref().map(|before| &*before.0),
            how,
        )?;
        Ok((Arc::new(listing), captured))
    };
    Ok(job.app.work(copy).await??)
}

/// Makes one layer of `rounds` (the first one first), to lie on an earlier copy or what the workspace does. What was copied
/// refers to what lies below what the session writes to, whatever earlier copies there are.
async fn join(job: &Job<'_>, rounds: &[LayerId], whole: LayerId, earlier: Option<LayerId>) -> Result<(), SaveError> {
    let (stack, _hold): (_, LayerPin) = workspace_access::stack_of(job.app, job.row.id).await?;
    let below = match earlier {
        Some(_) => Some(workspace_access::stack(job.app, earlier).await?),
        None => None,
    };
    let layer_store = job.app.layer_store.clone();
    let newest_first: Vec<LayerId> = rounds.iter().rev().copied().collect();
    let work = move || -> io::Result<()> {
        let (lower, parts, xattrs) =
            (layer_store.paths(&stack.layers), layer_store.paths(&newest_first), layer_store.overlay_xattrs());
        parts.iter().try_for_each(|part| seal::resolve_redirects(part, &lower, xattrs))?;
        let below = below.as_ref().map_or(lower.clone(), |(below, _held)| layer_store.paths(&below.layers));
        squash::squash(&parts, &below, &layer_store.create_empty(whole)?, xattrs)?;
        layer_store.detect_hard_links(whole)
    };
    Ok(job.app.work(work).await??)
}
