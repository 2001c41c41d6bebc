//! Opens workspaces, and versions of them, for reading and changing.
//!
//! One at a time changes, mounts, saves or exchanges a session's workspace: the holder of its [`SessionGuard`]. Reading needs none;
//! what is read through is pinned.

use std::time::{Duration, SystemTime};

use raworc_api::problem::Code;
use raworc_core::ids::{ContainerId, LayerId, SessionId};
use raworc_core::time::Time;
use raworc_store::Read;
use raworc_store::layers::{self, LayerRow};
use raworc_store::sessions::SessionRow;
use raworc_workspace::layers::compare::ComparedTree;
use raworc_workspace::{FileError, LayerStack, LayerStore, Workspace};
use uuid::Uuid;

use crate::app::Shared;
use crate::error::Failure;
use crate::layers::pins::LayerPin;
use crate::sync::blocking;
use crate::sync::keyed_locks::KeyedGuard;

/// How long someone waits for a checkpoint that is being taken before they go on without it.
pub const SAVE_WAIT_MAX: Duration = Duration::from_secs(60);

/// The right to change a session's workspace from outside, or what it is made of.
pub type SessionGuard = KeyedGuard<SessionId>;

/// A workspace, or a version of one, to be looked into.
pub struct PinnedWorkspace {
    workspace: Workspace,
    /// What may be written to meanwhile.
    writable: Option<LayerId>,
    _hold: LayerPin,
}

impl PinnedWorkspace {
    /// To be compared.
    pub fn side(&self) -> ComparedTree<'_> {
        let side = ComparedTree::sealed(self.workspace.root());
        let Some(LayerId(writable)) = self.writable else { return side };
        // Its name says when it was made.
        let made = writable.get_timestamp().map_or((0, 0), |made| made.to_unix());
        ComparedTree { sealed_at: SystemTime::UNIX_EPOCH + Duration::new(made.0, made.1), ..side }
    }
}

impl std::ops::Deref for PinnedWorkspace {
    type Target = Workspace;
    fn deref(&self) -> &Workspace {
        &self.workspace
    }
}

/// An id for a layer. Ids are in the order in which they were made, so that whoever goes through many always does it in the
/// same order.
#[must_use]
pub fn new_layer() -> LayerId {
    LayerId(Uuid::now_v7())
}

/// The layers from `top` down, held.
///
/// # Errors
/// Where the store fails.
pub async fn stack(app: &Shared, top: Option<LayerId>) -> Result<(LayerStack, LayerPin), Failure> {
    let (chain, hold) = chain(app, top).await?;
    Ok((LayerStack { layers: chain.into_iter().map(|layer| layer.id).collect(), writable: None }, hold))
}

/// The same, with what is recorded of them.
///
/// # Errors
/// Where the store fails.
pub async fn chain(app: &Shared, top: Option<LayerId>) -> Result<(Vec<LayerRow>, LayerPin), Failure> {
    let ids = |rows: &[LayerRow]| rows.iter().map(|row| row.id).collect::<Vec<_>>();
    loop {
        let seen = chain_now(app, top).await?;
        let hold = app.layer_pins.pin(ids(&seen));
        // What was given up between the look and the hold is looked up again; it is something else then.
        if ids(&seen) == ids(&chain_now(app, top).await?) {
            return Ok((seen, hold));
        }
    }
}

async fn chain_now(app: &Shared, top: Option<LayerId>) -> Result<Vec<LayerRow>, Failure> {
    let mut connection = app.store.read().await?;
    Ok(layers::chain(&mut connection, top).await?)
}

/// What a session's workspace is made of, as its next container will see it.
///
/// # Errors
/// 404 where there is no such session.
pub async fn stack_of(app: &Shared, session: SessionId) -> Result<(LayerStack, LayerPin), Failure> {
    loop {
        let seen = stack_now(app, session).await?;
        let hold = app.layer_pins.pin(seen.writable.into_iter().chain(seen.layers.iter().copied()));
        if seen == stack_now(app, session).await? {
            return Ok((seen, hold));
        }
    }
}

/// The layers of the image that a session's containers run, held.
///
/// # Errors
/// 404 where there is no such session.
pub async fn image_of(app: &Shared, session: SessionId) -> Result<(LayerStack, LayerPin), Failure> {
    loop {
        let top = image_now(app, session).await?;
        match stack(app, top).await {
            // It may have been merged with others just now: then it has another layer than a moment ago.
            Err(_) if image_now(app, session).await? != top => {}
            found => return found,
        }
    }
}

async fn image_now(app: &Shared, session: SessionId) -> Result<Option<LayerId>, Failure> {
    let mut connection = app.store.read().await?;
    Ok(raworc_store::sessions::find(&mut connection, session).await?.and_then(|row| row.image_layer_id))
}

/// The session's stack, pinned; its writable layer is made where it is missing.
///
/// # Errors
/// 404 where there is no such session; where the directory cannot be made.
pub async fn ready_stack_of(app: &Shared, session: SessionId) -> Result<(LayerStack, LayerPin), Failure> {
    let (stack, hold) = stack_of(app, session).await?;
    let (layer_store, wanted) = (app.layer_store.clone(), stack.clone());
    app.work(move || layer_store.create(&wanted)).await.flatten().map_err(FileError::from)?;
    Ok((stack, hold))
}

/// Whether a session has written anything since it was saved.
///
/// # Errors
/// Where what it wrote cannot be read.
pub async fn is_changed(app: &Shared, row: &SessionRow) -> std::io::Result<bool> {
    let (layer_store, layer, below) = (app.layer_store.clone(), row.writable_id, row.layer_id);
    app.work(move || layer_store.is_changed(layer, below)).await.flatten()
}

async fn find(connection: &mut Read, session: SessionId) -> Result<SessionRow, Failure> {
    let row = raworc_store::sessions::find(connection, session).await?;
    row.ok_or_else(|| Failure::not_found("session", &session.to_string()))
}

async fn stack_now(app: &Shared, session: SessionId) -> Result<LayerStack, Failure> {
    let mut connection = app.store.read().await?;
    loop {
        let row = find(&mut connection, session).await?;
        match layers::chain(&mut connection, row.layer_id).await {
            // It may have been merged with others just now: then it has another layer than a moment ago.
            Err(_) if find(&mut connection, session).await?.layer_id != row.layer_id => {}
            chain => {
                let layers = chain?.into_iter().map(|layer| layer.id).collect();
                return Ok(LayerStack { layers, writable: Some(row.writable_id) });
            }
        }
    }
}

/// Refuses what a session cannot do any more whose files are gone.
///
/// # Errors
/// 409.
pub fn refuse_purged(purged_at: Option<Time>) -> Result<(), Failure> {
    match purged_at {
        None => Ok(()),
        Some(_) => {
            let detail = "the session was deleted and its files were removed to free space; only its conversation and its log are left";
            Err(Failure::new(Code::SessionDeleted, detail))
        }
    }
}

/// Opens a session's workspace as it is now, to read it.
///
/// # Errors
/// 409 where it is gone; where it cannot be mounted.
pub async fn open_now(app: &Shared, row: &SessionRow) -> Result<PinnedWorkspace, Failure> {
    refuse_purged(row.purged_at)?;
    if let Some(opened) = running(app, row).await {
        return Ok(opened);
    }
    let (stack, hold) = ready_stack_of(app, row.id).await?;
    let writable = stack.writable;
    let view = move |layer_store: &LayerStore| {
        layer_store.restore_hard_links_unmounted(&stack)?;
        layer_store.mount_read_only(&stack)
    };
    Ok(PinnedWorkspace { workspace: open(app, view).await?, writable, _hold: hold })
}

/// Opens these layers, the topmost first, to read what they show.
///
/// # Errors
/// Where they cannot be mounted.
pub async fn open_layers(app: &Shared, layers: Vec<LayerId>, hold: LayerPin) -> Result<PinnedWorkspace, Failure> {
    let stack = LayerStack { layers, writable: None };
    Ok(PinnedWorkspace {
        workspace: open(app, move |layer_store| layer_store.mount_read_only(&stack)).await?,
        writable: None,
        _hold: hold,
    })
}

/// Reads in a workspace, or a version of one.
///
/// # Errors
/// Where the work fails.
pub async fn read<T: Send + 'static>(
    workspace: PinnedWorkspace,
    work: impl FnOnce(&Workspace) -> Result<T, FileError> + Send + 'static,
) -> Result<T, Failure> {
    Ok(blocking(move || work(&workspace)).await.map_err(FileError::Io)??)
}

/// Changes a session's workspace, whose lock the caller has. It is over with the work, also where nobody waits for that.
///
/// # Errors
/// Where the work fails.
pub async fn change<T: Send + 'static>(
    app: &Shared,
    guard: SessionGuard,
    work: impl FnOnce(&Workspace) -> Result<T, FileError> + Send + 'static,
) -> Result<T, Failure> {
    let row = {
        let mut connection = app.store.read().await?;
        raworc_store::sessions::find(&mut connection, *guard.key()).await?
    };
    let row = row.ok_or_else(|| Failure::not_found("session", &guard.key().to_string()))?;
    let workspace = match running(app, &row).await {
        Some(opened) => opened,
        None => {
            let (stack, hold) = ready_stack_of(app, row.id).await?;
            let writable = stack.writable;
            let mount = move |layer_store: &LayerStore| {
                // What a container could write counts no longer: whoever writes from outside was looked at.
                writable.map_or(Ok(false), |layer| layer_store.limit(layer, None))?;
                layer_store.mount(&stack)
            };
            PinnedWorkspace { workspace: open(app, mount).await?, writable, _hold: hold }
        }
    };
    let work = move || {
        let _guard = guard;
        work(&workspace)
    };
    Ok(blocking(work).await.map_err(FileError::Io)??)
}

/// The workspace in the session's container, if that runs. What it lies on is held: the container may get other layers while
/// someone still looks.
async fn running(app: &Shared, row: &SessionRow) -> Option<PinnedWorkspace> {
    let container = ContainerId { session: row.id, generation: row.machine.generation };
    loop {
        let stack = app.runtime.workspace(container)?;
        let hold = app.layer_pins.pin(stack.writable.into_iter().chain(stack.layers.iter().copied()));
        let root = app.runtime.open_workspace(container).await.ok()?;
        if app.runtime.workspace(container).as_ref() == Some(&stack) {
            let (workspace, writable) = (app.layer_store.workspace(root), stack.writable);
            return Some(PinnedWorkspace { workspace, writable, _hold: hold });
        }
    }
}

async fn open(
    app: &Shared,
    how: impl FnOnce(&LayerStore) -> std::io::Result<Workspace> + Send + 'static,
) -> Result<Workspace, Failure> {
    let layer_store = app.layer_store.clone();
    let opened = blocking(move || how(&layer_store)).await.map_err(FileError::Io)?;
    Ok(opened.map_err(FileError::from)?)
}

/// Waits until a session is not being saved any more.
pub async fn wait_until_saved(app: &Shared, session: SessionId) {
    let mut changes = app.hub.subscribe(session);
    let wait = async { while app.checkpoint_queue.is_pending(session) && changes.changed().await.is_ok() {} };
    let _ = tokio::time::timeout(SAVE_WAIT_MAX, wait).await;
}
