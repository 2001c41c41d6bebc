//! Copies what changed in a workspace in which something goes on running.
//!
//! In two rounds. In the first everything goes on, so what it copies may be torn; in the second the container stands still,
//! and only what has changed since the first is copied. Together they are one layer. What a session copied before is
//! remembered while it writes to the same layer, so that the next copy is of what changed since then.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use raworc_core::ids::{LayerId, SessionId};
use raworc_runtime::Company;
use raworc_workspace::layers::{capture, seal, squash};

use super::checkpoints::{Job, Trouble};
use crate::trees::{self, Hold, Trees};
use crate::verbs::save::Found;

/// The last copy of what a session writes.
#[derive(Clone)]
pub struct Copied {
    /// What it writes to: a copy of something else says nothing.
    pub writable: LayerId,
    /// The copy, which lies on earlier ones of the same.
    pub layer: LayerId,
    /// What was seen then.
    pub listing: PathBuf,
    /// The next copy lies on this one.
    _hold: Arc<Hold>,
}

/// Saves the workspace of a container in which not only its host runs.
pub async fn copy(job: &Job<'_>) -> Result<(), Trouble> {
    let rounds = [(); 3].map(|()| trees::new_layer());
    let hold = job.app.trees.hold(rounds);
    let result = copy_to(job, rounds).await;
    drop(hold);
    // What did not become a layer of the session.
    job.app.trees.waste(rounds);
    result
}

async fn copy_to(job: &Job<'_>, rounds: [LayerId; 3]) -> Result<(), Trouble> {
    let (app, row, container) = (job.app, job.row, job.container);
    let before = app.trees.copied(row.id).filter(|copied| copied.writable == row.writable_id);
    let first = round(job, rounds[0], before.as_ref().map(|copied| copied.listing.clone())).await?;
    let frozen = Instant::now();
    if app.runtime.freeze(container).await? == Company::Alone {
        // They have ended meanwhile.
        return job.seal_frozen(frozen).await;
    }
    let second = round(job, rounds[1], Some(first)).await;
    app.runtime.thaw(container).await?;
    let frozen = frozen.elapsed();
    let listing = second?;
    let earlier = before.map(|copied| copied.layer);
    join(job, rounds, earlier).await?;
    let copied =
        Copied { writable: row.writable_id, layer: rounds[2], listing, _hold: Arc::new(app.trees.hold([rounds[2]])) };
    job.record(Found::Copied { layer: copied.layer, earlier }, frozen).await?;
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

/// Copies what changed since `before` into `layer`; the new listing.
async fn round(job: &Job<'_>, layer: LayerId, before: Option<PathBuf>) -> Result<PathBuf, Trouble> {
    let (shelf, from) = (job.app.trees.shelf.clone(), job.row.writable_id);
    let copy = move || -> io::Result<PathBuf> {
        let into = shelf.begin(layer)?;
        let listing = shelf.beside(from, &format!("{}.listing", layer.0.as_simple()));
        capture::capture(&shelf.path(from), &into, &listing, before.as_deref(), shelf.marks())?;
        Ok(listing)
    };
    Ok(job.app.work(copy).await??)
}

/// Makes one layer, the last of `rounds`, of the first two, to lie on an earlier copy or what the workspace does.
/// What was copied refers to what lies below what the session writes to, whatever earlier copies there are.
async fn join(job: &Job<'_>, rounds: [LayerId; 3], earlier: Option<LayerId>) -> Result<(), Trouble> {
    let (stack, _hold): (_, Hold) = trees::stack_of(job.app, job.row.id).await?;
    let shelf = job.app.trees.shelf.clone();
    let [first, second, both] = rounds;
    let work = move || -> io::Result<()> {
        let lower = shelf.paths(&stack.layers);
        let (marks, is_bottom) = (shelf.marks(), lower.is_empty() && earlier.is_none());
        seal::settle(&shelf.path(first), &lower, marks)?;
        seal::settle(&shelf.path(second), &lower, marks)?;
        let into = shelf.begin(both)?;
        squash::squash(&[shelf.path(second), shelf.path(first)], is_bottom, &into, marks)
    };
    Ok(job.app.work(work).await??)
}
