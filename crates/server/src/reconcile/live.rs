//! Copies what changed in a workspace in which something goes on running.
//!
//! In rounds. In the first ones everything goes on, so what they copy may be torn; in the last one the container stands still,
//! and only what has changed since the one before is copied. Together they are one layer. What a session copied before is
//! remembered while it writes to the same layer, so that the next copy is of what changed since then.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use raworc_core::ids::{LayerId, SessionId};
use raworc_runtime::Company;
use raworc_workspace::layers::capture::{Captured, How};
use raworc_workspace::layers::links::Touched;
use raworc_workspace::layers::{capture, seal, squash};

use super::checkpoints::Job;
use super::trouble::Trouble;
use crate::trees::{self, Hold, Trees};
use crate::verbs::save::Found;

/// Rounds in which everything goes on, at most.
const MOVING_MAX: usize = 4;
/// After a round that copied less than this, in entries and bytes, the next one is short enough to stand still for.
const SHORT_ENTRIES: u64 = 1000;
const SHORT_BYTES: u64 = 16 << 20;

/// The last copy of what a session writes.
#[derive(Clone)]
pub struct Copied {
    /// What it writes to: a copy of something else says nothing.
    pub writable: LayerId,
    /// The copy, which lies on earlier ones of the same.
    pub layer: LayerId,
    /// What was seen then.
    pub listing: PathBuf,
    /// Files that had all of their names in what is written to then; it does not become fewer.
    gathered: BTreeSet<Touched>,
    /// The next copy lies on this one.
    _hold: Arc<Hold>,
}

/// Saves the workspace of a container in which not only its host runs.
pub async fn copy(job: &Job<'_>) -> Result<(), Trouble> {
    let layers = [(); MOVING_MAX + 2].map(|()| trees::new_layer());
    let hold = job.app.trees.hold(layers);
    let result = copy_to(job, layers).await;
    drop(hold);
    // What did not become a layer of the session.
    job.app.trees.waste(layers);
    result
}

async fn copy_to(job: &Job<'_>, layers: [LayerId; MOVING_MAX + 2]) -> Result<(), Trouble> {
    let (app, row) = (job.app, job.row);
    let [rounds @ .., whole] = &layers;
    let before = app.trees.copied(row.id).filter(|copied| copied.writable == row.writable_id);
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
    let stands = job.stand_still().await?;
    if stands.company == Company::Alone {
        // They have ended meanwhile.
        return job.seal_frozen(stands).await;
    }
    let last = match gather(job, &mut gathered).await {
        Ok(()) => round(job, rounds[done], listing, true).await,
        Err(trouble) => Err(trouble),
    };
    // What is told from now on may be of what was written after it.
    let seq = job.last_seq().await;
    let frozen = stands.go_on().await?;
    let ((listing, _), seq) = (last?, seq?);
    let earlier = before.map(|copied| copied.layer);
    join(job, &rounds[..=done], *whole, earlier).await?;
    let copied = Copied {
        writable: row.writable_id,
        layer: *whole,
        listing,
        gathered,
        _hold: Arc::new(app.trees.hold([*whole])),
    };
    job.record(Found::Copied { layer: copied.layer, earlier, seq }, frozen).await?;
    drop_listing(app.trees.set_copied(row.id, Some(copied)));
    Ok(())
}

/// The next copy is of everything: nothing runs any more, or what a session writes to is a layer itself now.
pub fn forget(trees: &Trees, session: SessionId) {
    drop_listing(trees.set_copied(session, None));
}

/// The next copy cannot lie on one that was given up.
pub fn forget_given_up(trees: &Trees, session: SessionId, given_up: &[LayerId]) {
    if trees.copied(session).is_some_and(|copied| given_up.contains(&copied.layer)) {
        forget(trees, session);
    }
}

fn drop_listing(before: Option<Copied>) {
    if let Some(before) = before {
        let _ = std::fs::remove_file(before.listing);
    }
}

/// Gives files that are written to all of their names there, but for those that have them already. What the container does meanwhile may
/// keep one from being found; when it stands still, nothing does.
async fn gather(job: &Job<'_>, gathered: &mut BTreeSet<Touched>) -> Result<(), Trouble> {
    let (shelf, writable) = (job.app.trees.shelf.clone(), job.row.writable_id);
    let found = job.app.work(move || shelf.touched(writable)).await??;
    let files: BTreeSet<Touched> = found.difference(gathered).cloned().collect();
    if !files.is_empty() {
        let root = job.app.runtime.open_workspace(job.container).await?;
        let (shelf, wanted) = (job.app.trees.shelf.clone(), files.clone());
        job.app.work(move || shelf.gather(root, writable, &wanted)).await??;
    }
    gathered.extend(files);
    Ok(())
}

/// Copies what changed since `before` into `layer`; the new listing, and what was copied.
async fn round(
    job: &Job<'_>,
    layer: LayerId,
    before: Option<PathBuf>,
    is_still: bool,
) -> Result<(PathBuf, Captured), Trouble> {
    let (shelf, from) = (job.app.trees.shelf.clone(), job.row.writable_id);
    // In a simulation time is made up, and what the file system says of it means nothing.
    let doubtful = if job.app.weather.is_some() { Duration::MAX } else { capture::DOUBTFUL };
    let how = How { marks: shelf.marks(), is_still, doubtful };
    let copy = move || -> io::Result<(PathBuf, Captured)> {
        let into = shelf.begin(layer)?;
        let listing = shelf.beside(from, &format!("{}.listing", layer.0.as_simple()));
        let captured = capture::capture(&shelf.path(from), &into, &listing, before.as_deref(), how)?;
        Ok((listing, captured))
    };
    Ok(job.app.work(copy).await??)
}

/// Makes one layer of `rounds` (the first one first), to lie on an earlier copy or what the workspace does. What was copied
/// refers to what lies below what the session writes to, whatever earlier copies there are.
async fn join(job: &Job<'_>, rounds: &[LayerId], whole: LayerId, earlier: Option<LayerId>) -> Result<(), Trouble> {
    let (stack, _hold): (_, Hold) = trees::stack_of(job.app, job.row.id).await?;
    let (below, _held): (_, Hold) = trees::stack(job.app, earlier.or(job.row.layer_id)).await?;
    let shelf = job.app.trees.shelf.clone();
    let newest_first: Vec<LayerId> = rounds.iter().rev().copied().collect();
    let work = move || -> io::Result<()> {
        let (lower, parts, marks) = (shelf.paths(&stack.layers), shelf.paths(&newest_first), shelf.marks());
        parts.iter().try_for_each(|part| seal::settle(part, &lower, marks))?;
        squash::squash(&parts, &shelf.paths(&below.layers), &shelf.begin(whole)?, marks)?;
        shelf.look_for_links(whole)
    };
    Ok(job.app.work(work).await??)
}
