//! Keeps the chains of layers short, and removes layers that nothing needs.
//!
//! A layer's row goes in the transaction that takes away the last thing that stands on it; its directory goes here, later,
//! unless it is still mounted or read. A run of layers is made one by linking to their files; then, in one transaction,
//! whatever stood on the topmost stands on the new one. Neither is noticed by who works on top.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use raworc_core::ids::{LayerId, SessionId};
use raworc_core::layers::{collapsible_run, run_to_merge};
use raworc_store::layers::{self, LayerRow};
use raworc_store::{checkpoints, sessions};
use raworc_workspace::FileError;
use raworc_workspace::layers::{seal, squash};

use super::pins::LayerPin;
use super::workspace_access;
use crate::app::Shared;
use crate::error::Failure;

/// Layers whose rows are looked up in one go.
pub const BATCH: usize = 256;

/// After a session was saved: makes its chains shorter where they are long.
pub async fn compact_if_long(app: &Shared, session: SessionId) {
    if let Err(error) = shorten(app, session, app.lengths.merged_at).await {
        tracing::warn!(%session, %error, "the layers of a workspace could not be made fewer; the next time will try again");
    }
}

/// Makes a session's chains shorter where not one layer more could be laid on them.
///
/// # Errors
/// Where the store or the disk fails.
pub async fn make_room(app: &Shared, session: SessionId) -> Result<(), Failure> {
    shorten(app, session, app.lengths.max).await
}

/// Makes chains of at least `from` layers shorter: the one that a session stands on, and that of its newest checkpoint.
///
/// While it does, more may be laid on them by whoever saves next, and then leaves the merging to us: so it looks again.
async fn shorten(app: &Shared, session: SessionId, from: usize) -> Result<(), Failure> {
    while shorten_once(app, session, from).await? {}
    Ok(())
}

/// True where a chain has become shorter.
async fn shorten_once(app: &Shared, session: SessionId, from: usize) -> Result<bool, Failure> {
    let mut tops: Vec<LayerId> = {
        let mut connection = app.store.read().await?;
        let Some(row) = sessions::find(&mut connection, session).await? else { return Ok(false) };
        let newest = checkpoints::newest(&mut connection, session).await?;
        row.layer_id.into_iter().chain(newest.and_then(|newest| newest.layer_id)).collect()
    };
    tops.dedup();
    let mut is_shorter = false;
    for top in tops {
        let chain = {
            let mut connection = app.store.read().await?;
            // It may have been replaced just now, when the other one was merged.
            let found = layers::find(&mut connection, top).await?;
            if found.is_none_or(|found| (found.depth as usize) < from) {
                continue;
            }
            layers::chain(&mut connection, Some(top)).await.unwrap_or_default()
        };
        is_shorter |= merge(app, &chain).await?;
    }
    Ok(is_shorter)
}

async fn merge(app: &Shared, chain: &[LayerRow]) -> Result<bool, Failure> {
    let entries: Vec<u64> = chain.iter().map(|layer| layer.entries).collect();
    // A copy that the next one lies on keeps its name.
    match run_to_merge(&entries, app.lengths.kept, |start| !app.layer_pins.is_pinned(chain[start].id)) {
        Some(run) => merge_run(app, chain, run).await,
        None => Ok(false),
    }
}

/// Merges, in every chain, the layers that nothing else refers to, and so frees what was overwritten in them.
///
/// # Errors
/// Where the store or the disk fails.
pub async fn collapse_all(app: &Shared) -> Result<(), Failure> {
    let tops: BTreeSet<LayerId> = {
        let mut connection = app.store.read().await?;
        layers::workspaces(&mut connection).await?.into_iter().collect()
    };
    for top in tops {
        match collapse(app, top).await {
            Err(error) if error.damage().is_some() => {
                tracing::warn!(%top, %error, "layers whose records are damaged are kept as they are");
            }
            outcome => outcome?,
        }
    }
    Ok(())
}

async fn collapse(app: &Shared, mut top: LayerId) -> Result<(), Failure> {
    loop {
        let (chain, needed) = {
            let mut connection = app.store.read().await?;
            // It may have been given up, or replaced, since it was listed.
            let chain = layers::chain(&mut connection, Some(top)).await.unwrap_or_default();
            let mut needed = Vec::new();
            for layer in &chain {
                needed.push(
                    layers::has_dependents(&mut connection, layer.id).await? || app.layer_pins.is_pinned(layer.id),
                );
            }
            (chain, needed)
        };
        let Some(run) = collapsible_run(&needed) else { return Ok(()) };
        if needed[run.start] && app.layer_pins.is_pinned(chain[run.start].id) {
            return Ok(());
        }
        let next = chain.get(run.end).map(|layer| layer.id);
        merge_run(app, &chain, run).await?;
        // What is above is done; go on below.
        match next {
            Some(next) => top = next,
            None => return Ok(()),
        }
    }
}

/// False where it is no run any more.
async fn merge_run(app: &Shared, chain: &[LayerRow], run: Range<usize>) -> Result<bool, Failure> {
    let (layers, below) = (&chain[run.clone()], &chain[run.end..]);
    let new = workspace_access::new_layer();
    let hold = app.layer_pins.pin(chain.iter().map(|layer| layer.id).chain([new]));
    let layer_store = app.layer_store.clone();
    let paths = |rows: &[LayerRow]| layer_store.paths(&rows.iter().map(|layer| layer.id).collect::<Vec<_>>());
    let (from, lower) = (paths(layers), paths(below));
    let work = {
        let layer_store = layer_store.clone();
        move || -> std::io::Result<seal::LayerDelta> {
            let into = layer_store.create_empty(new)?;
            squash::squash(&from, &lower, &into, layer_store.overlay_xattrs())?;
            layer_store.detect_hard_links(new)?;
            seal::sync(&into)?;
            seal::measure(&into, &lower, layer_store.overlay_xattrs())
        }
    };
    let measured = app.work(work).await.map_err(FileError::Io)?.map_err(FileError::from);
    let merged = match measured {
        Ok(measured) => replace(app, hold, layers.to_vec(), new, measured).await,
        Err(error) => Err(error.into()),
    };
    app.garbage_queue.enqueue([new]);
    merged
}

/// Records that a run of layers is another one from now on, unless it is no run any more; whether it was.
async fn replace(
    app: &Shared,
    hold: LayerPin,
    run: Vec<LayerRow>,
    new: LayerId,
    measured: seal::LayerDelta,
) -> Result<bool, Failure> {
    let (now, hold) = (app.now(), Arc::new(hold));
    let write = app.store.write(move |tx| {
        Box::pin(async move {
            // It is recorded even if nobody waits for that any more: until then it is held.
            let _hold = hold;
            let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(false) };
            let mut found = Vec::new();
            for layer in &run {
                // What is recorded of one may have changed since; the run is one as long as they lie on one another.
                match layers::find(tx, layer.id).await? {
                    Some(now) if now.parent_id == layer.parent_id => found.push(now),
                    _ => return Ok(false),
                }
            }
            let run = found;
            let by = u32::try_from(run.len() - 1).unwrap_or(0);
            let depth = first.depth.saturating_sub(by);
            layers::replace(tx, first.id, new).await?;
            let row = LayerRow {
                id: new,
                parent_id: last.parent_id,
                depth,
                changed_bytes: measured.changed_bytes,
                entries: measured.entries,
                own_disk_bytes: measured.own_disk,
                created_at: now,
                ..*first
            };
            layers::insert(tx, &row).await?;
            layers::lift(tx, new, by).await?;
            layers::release(tx, Some(first.id)).await?;
            Ok::<_, Failure>(true)
        })
    });
    write.await
}

/// Removes the directories of candidates that nothing refers to. Returns those that are still mounted or pinned, for the next time.
///
/// # Errors
/// Where the store or the disk fails.
pub async fn collect(app: &Shared, candidates: BTreeSet<LayerId>) -> Result<BTreeSet<LayerId>, Failure> {
    {
        let mut connection = app.store.read().await?;
        if layers::are_in_doubt(&mut connection).await? {
            tracing::warn!("no layer is removed while the record of what stands on one is damaged");
            return Ok(candidates);
        }
    }
    // The order matters. What is unknown here is not mounted any more by whoever looks for what to mount from now on, and
    // whoever looked before holds it until the runtime knows. What is being made is held until it is known.
    let unknown = unknown(app, candidates).await?;
    let (mut busy, free): (BTreeSet<LayerId>, BTreeSet<LayerId>) =
        unknown.into_iter().partition(|layer| app.layer_pins.is_pinned(*layer));
    let listed = match app.runtime.list().await {
        Ok(listed) => listed,
        Err(error) => {
            tracing::warn!(%error, "the containers could not be listed");
            busy.extend(free);
            return Ok(busy);
        }
    };
    let mut mounted = BTreeSet::new();
    for listed in listed {
        mounted.extend(listed.image);
        mounted.extend(listed.workspace.into_iter().flat_map(|stack| stack.layers.into_iter().chain(stack.writable)));
    }
    let (mounted, free): (BTreeSet<LayerId>, BTreeSet<LayerId>) =
        free.into_iter().partition(|layer| mounted.contains(layer));
    busy.extend(mounted);
    // Who looks into a container holds what it had then, while it may have got other layers.
    let (held, free): (BTreeSet<LayerId>, BTreeSet<LayerId>) =
        free.into_iter().partition(|layer| app.layer_pins.is_pinned(*layer));
    busy.extend(held);
    let unknown = self::unknown(app, free).await?;
    let layer_store = app.layer_store.clone();
    let remove = move || unknown.into_iter().try_for_each(|layer| layer_store.remove(layer));
    app.work(remove).await.map_err(FileError::Io)?.map_err(FileError::from)?;
    Ok(busy)
}

/// Removes at once a layer that another one has taken the place of by linking to its files: until it is gone, they have more
/// names than the workspace shows. The caller knows that no container has it mounted. One that is still read is left to the loop.
///
/// # Errors
/// Where the store or the disk fails.
pub async fn remove_replaced(app: &Shared, layer: LayerId) -> Result<(), Failure> {
    let is_in_doubt = layers::are_in_doubt(&mut *app.store.read().await?).await?;
    // In this order, as in `collect`.
    if is_in_doubt || unknown(app, [layer]).await?.is_empty() || app.layer_pins.is_pinned(layer) {
        return Ok(());
    }
    let layer_store = app.layer_store.clone();
    app.work(move || layer_store.remove_names(layer)).await.flatten().map_err(FileError::from)?;
    Ok(())
}

/// Those of the layers that no record names.
async fn unknown(app: &Shared, layers: impl IntoIterator<Item = LayerId>) -> Result<Vec<LayerId>, Failure> {
    let all: Vec<LayerId> = layers.into_iter().collect();
    let mut unknown = Vec::new();
    for batch in all.chunks(BATCH) {
        let mut connection = app.store.read().await?;
        for layer in batch {
            if !layers::is_known(&mut connection, *layer).await? {
                unknown.push(*layer);
            }
        }
    }
    Ok(unknown)
}

/// Looks at every directory there is: whoever was killed may have left one that nothing knows of.
///
/// # Errors
/// Where the store or the disk fails.
pub async fn collect_all(app: &Shared) -> Result<(), Failure> {
    let layer_store = app.layer_store.clone();
    let all = app.work(move || layer_store.list()).await.map_err(FileError::Io)?.map_err(FileError::from)?;
    let busy = collect(app, all.into_iter().collect()).await?;
    app.garbage_queue.enqueue(busy);
    Ok(())
}
