//! Tell what takes space, and give it back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use raworc_api::disk::{DiskUsage, LayerUsage, Limits, Prune, Pruned};
use raworc_core::events::SessionPurged;
use raworc_core::ids::{LayerId, SessionId};
use raworc_core::permissions::{Action, Actor};
use raworc_core::session::Container;
use raworc_store::images::ImageRow;
use raworc_store::layers::{self, LayerRow, Root};
use raworc_store::{Read, agents, audit, checkpoints, images, sessions};
use raworc_workspace::FileError;

use crate::app::Shared;
use crate::change::Change;
use crate::error::Failure;
use crate::layers::chains;
use crate::policy::permit;
use crate::record::save;
use crate::sync::blocking;

/// How long a deleted session's container may take to go.
const GONE_MAX: Duration = Duration::from_secs(15);

/// What takes space.
///
/// # Errors
/// 403 where the actor is no administrator.
pub async fn usage(app: &Shared, actor: &Actor) -> Result<DiskUsage, Failure> {
    permit(actor, Action::ReadServer, "disk", "")?;
    let records_bytes = app.store.bytes().await?;
    let read = app.scan(|connection| {
        Box::pin(async move {
            Ok((layers::all(connection).await?, layers::roots(connection).await?, unused(connection).await?))
        })
    });
    let ((all, roots, unused), _place) = read.await?;
    let unused: BTreeSet<LayerId> = unused.into_iter().filter_map(|image| image.layer_id).collect();
    let by_id: BTreeMap<LayerId, &LayerRow> = all.iter().map(|row| (row.id, row)).collect();
    let below = |wanted: &dyn Fn(&Root) -> bool| reachable(&by_id, roots.iter().filter(|root| wanted(root)));
    let used = below(&|root| match root {
        Root::Session { is_deleted, .. } => !is_deleted,
        // One that only agents name is theirs.
        Root::Image(layer) => !unused.contains(layer),
        Root::Imported(_) => false,
    });
    let kept = below(&|root| matches!(root, Root::Image(_)));
    let imported = below(&|root| matches!(root, Root::Imported(_)));
    let deleted = below(&|root| matches!(root, Root::Session { is_deleted: true, .. }));
    let count = |ids: &mut dyn Iterator<Item = &LayerId>| {
        ids.filter_map(|id| by_id.get(id)).fold(LayerUsage::default(), |sum, row| LayerUsage {
            layers: sum.layers + 1,
            bytes: sum.bytes.saturating_add(row.own_disk_bytes),
        })
    };
    let images = app.clone();
    let disk = move || -> Result<(u64, u64, u64), Failure> {
        let found = images.layer_store.space().map_err(FileError::from)?;
        Ok((found.total_bytes, found.free_bytes, images.images.bytes()?))
    };
    let (total_bytes, free_bytes, transfers_bytes) = blocking(disk).await.map_err(FileError::Io)??;
    let layers_bytes = all.iter().fold(0_u64, |sum, row| sum.saturating_add(row.own_disk_bytes));
    let told_bytes = layers_bytes.saturating_add(records_bytes).saturating_add(transfers_bytes);
    Ok(DiskUsage {
        total_bytes,
        free_bytes,
        records_bytes,
        other_bytes: total_bytes.saturating_sub(free_bytes).saturating_sub(told_bytes),
        sessions: count(&mut used.iter()),
        deleted_sessions: count(
            &mut deleted.difference(&used).filter(|id| !kept.contains(id) && !imported.contains(id)),
        ),
        unused_images: count(&mut kept.difference(&used).filter(|id| !deleted.contains(id) && !imported.contains(id))),
        imported_checkpoints: count(&mut imported.difference(&used).filter(|id| !deleted.contains(id))),
        transfers_bytes,
        limits: if app.layer_store.has_limits() { Limits::FileSystem } else { Limits::Stopping },
    })
}

/// The layers that these stand on.
fn reachable<'r>(by_id: &BTreeMap<LayerId, &LayerRow>, roots: impl Iterator<Item = &'r Root>) -> BTreeSet<LayerId> {
    let mut found = BTreeSet::new();
    for root in roots {
        let mut next = Some(root.layer());
        while let Some(row) = next.and_then(|id| by_id.get(&id)) {
            if !found.insert(row.id) {
                break;
            }
            next = row.parent_id;
        }
    }
    found
}

/// Gives space back.
///
/// # Errors
/// 403 where the actor is no administrator.
pub async fn prune(app: &Shared, actor: &Actor, body: Prune) -> Result<Pruned, Failure> {
    permit(actor, Action::ManageServer, "disk", "")?;
    let before = layer_bytes(app).await?;
    let mut pruned = Pruned::default();
    if let Some(seconds) = body.deleted_sessions_after_seconds {
        let until = app.now() - Duration::from_secs(seconds);
        let deleted = {
            let mut connection = app.store.read().await?;
            sessions::to_purge(&mut connection, until).await?
        };
        for session in deleted {
            match purge_soon(app, actor, session).await {
                Err(error) if error.damage().is_some() => {
                    tracing::warn!(%session, %error, "the files of a session whose records are damaged are kept");
                }
                purged => pruned.sessions += u64::from(purged?),
            }
        }
    }
    if body.unused_images {
        pruned.images = remove_unused(app, actor).await?;
    }
    chains::collapse_all(app).await?;
    let after = layer_bytes(app).await?;
    let images = app.clone();
    let transfers = blocking(move || images.images.collect(true)).await.map_err(FileError::Io)??;
    chains::collect_all(app).await?;
    pruned.bytes = before.saturating_sub(after).saturating_add(transfers);
    Ok(pruned)
}

async fn layer_bytes(app: &Shared) -> Result<u64, Failure> {
    let mut connection = app.store.read().await?;
    Ok(layers::all(&mut connection).await?.iter().fold(0, |sum, row| sum.saturating_add(row.own_disk_bytes)))
}

/// The same as [`purge`], but a container that is on its way out is waited for.
async fn purge_soon(app: &Shared, actor: &Actor, session: SessionId) -> Result<bool, Failure> {
    let mut changes = app.hub.subscribe(session);
    let wait = async {
        loop {
            match purge(app, actor, session).await? {
                Purged::Done => return Ok(true),
                Purged::Needless => return Ok(false),
                Purged::Running if changes.changed().await.is_err() => return Ok(false),
                Purged::Running => {}
            }
        }
    };
    tokio::time::timeout(GONE_MAX, wait).await.unwrap_or(Ok(false))
}

enum Purged {
    Done,
    /// Someone else has done it, or it is deleted no longer.
    Needless,
    /// Something of it still runs.
    Running,
}

/// Gives up the files of a deleted session.
async fn purge(app: &Shared, actor: &Actor, session: SessionId) -> Result<Purged, Failure> {
    let (actor, now) = (actor.clone(), app.now());
    // It is locked until the transaction has ended, even if nobody waits for that any more.
    let lock = Arc::new(app.session_locks.lock(session).await);
    let write = app.store.write(move |tx| {
        Box::pin(async move {
            let _lock = lock;
            let mut change = Change::load(tx, session, now, actor.name.clone()).await?;
            let row = &change.row;
            if row.machine.deleted_at.is_none() || row.purged_at.is_some() {
                return Ok(Purged::Needless);
            }
            if row.machine.container != Container::None {
                return Ok(Purged::Running);
            }
            audit::append(change.tx(), now, &actor, "session.purge", &session.to_string()).await?;
            for (n, _) in checkpoints::all(change.tx(), session).await? {
                save::forget(&mut change, n).await?;
            }
            let stood_on = [change.row.layer_id.take(), change.row.image_layer_id.take()];
            let next = LayerId(change.tx().new_id());
            let before = std::mem::replace(&mut change.row.writable_id, next);
            change.wasted([before]);
            change.row.purged_at = Some(now);
            change.row.save_due = None;
            change.row.backup_at = None;
            change.log(SessionPurged {}).await?;
            let tx = change.save_first().await?;
            for layer in stood_on {
                layers::release(tx, layer).await?;
            }
            Ok::<_, Failure>(Purged::Done)
        })
    });
    write.await
}

/// Images that no session runs and no agent names.
async fn unused(connection: &mut Read) -> Result<Vec<ImageRow>, Failure> {
    let mut unused = images::unused(connection).await?;
    let named = agents::images(connection).await?;
    unused.retain(|image| !named.contains(&image.name));
    Ok(unused)
}

async fn remove_unused(app: &Shared, actor: &Actor) -> Result<u64, Failure> {
    let (actor, now) = (actor.clone(), app.now());
    let write = app.store.write(move |tx| {
        Box::pin(async move {
            let unused = unused(tx).await?;
            for image in &unused {
                audit::append(tx, now, &actor, "image.delete", &image.id.to_string()).await?;
                images::delete(tx, image.id).await?;
                layers::release(tx, image.layer_id).await?;
            }
            Ok::<_, Failure>(unused.len() as u64)
        })
    });
    write.await
}
