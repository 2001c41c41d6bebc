//! Ways into workspaces: who may change one now, what of it is being saved, and what is read through.
//!
//! A workspace is changed from outside, mounted, saved or exchanged by one at a time: whoever has its [`Turn`]. Reading
//! needs none.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use raworc_api::problem::Code;
use raworc_core::checkpoints::Cause;
use raworc_core::ids::{ContainerId, LayerId, SessionId};
use raworc_core::time::Time;
use raworc_store::layers::{self, LayerRow};
use raworc_store::sessions::SessionRow;
use raworc_workspace::layers::compare::Side;
use raworc_workspace::{FileError, Stack, Workspace, Workspaces};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::app::{Shared, blocking};
use crate::error::Failure;
use crate::hub::lock;
use crate::keyed::{Held, Turns};
use crate::reconcile::every::Timed;
use crate::reconcile::live::Copied;
use crate::reconcile::quotas::Quotas;

/// How long someone waits for a checkpoint that is being taken before they go on without it.
pub const SETTLED_MAX: Duration = Duration::from_secs(60);

/// The workspaces of all sessions.
pub struct Trees {
    /// Their layers.
    pub shelf: Workspaces,
    turns: Turns<SessionId>,
    /// Sessions that are to be saved, and why; an empty set while it is being done.
    asked: Mutex<BTreeMap<SessionId, Asked>>,
    any: Notify,
    /// The last copy of what each session is writing, where it was copied while something went on running.
    copied: Mutex<HashMap<SessionId, Copied>>,
    /// Layers that something is reading, and how often. They are not removed meanwhile.
    held: Mutex<HashMap<LayerId, usize>>,
    /// Those that are saved by the clock.
    pub timed: Timed,
    /// Those whose use of the disk is limited.
    pub quotas: Quotas,
    /// Layers that may be of no use any more.
    waste: Mutex<BTreeSet<LayerId>>,
    wasted: Notify,
}

#[derive(Default)]
struct Asked {
    causes: BTreeSet<Cause>,
    is_running: bool,
    /// Something is just being recorded after which it may be asked for.
    is_expected: bool,
}

impl Asked {
    fn is_over(&self) -> bool {
        self.causes.is_empty() && !self.is_running && !self.is_expected
    }
}

/// The right to change a session's workspace from outside, or what it is made of.
pub type Turn = Held<SessionId>;

/// A workspace, or a version of one, to be looked into.
pub struct Opened {
    workspace: Workspace,
    /// What may be written to meanwhile.
    writable: Option<LayerId>,
    _hold: Hold,
}

impl Opened {
    /// To be compared.
    pub fn side(&self) -> Side<'_> {
        let side = Side::sealed(self.workspace.root());
        let Some(LayerId(writable)) = self.writable else { return side };
        // Its name says when it was made.
        let made = writable.get_timestamp().map_or((0, 0), |made| made.to_unix());
        Side { sealed_at: SystemTime::UNIX_EPOCH + Duration::new(made.0, made.1), ..side }
    }
}

impl std::ops::Deref for Opened {
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

/// Keeps layers from being removed.
pub struct Hold {
    trees: Arc<Trees>,
    layers: Vec<LayerId>,
}

impl Trees {
    /// Over the layers of a server.
    pub fn new(shelf: Workspaces) -> Arc<Self> {
        Arc::new(Self {
            shelf,
            turns: Turns::default(),
            asked: Mutex::default(),
            any: Notify::new(),
            copied: Mutex::default(),
            held: Mutex::default(),
            timed: Timed::default(),
            quotas: Quotas::default(),
            waste: Mutex::default(),
            wasted: Notify::new(),
        })
    }

    /// Waits for the turn.
    pub async fn turn(&self, session: SessionId) -> Turn {
        self.turns.wait(session).await
    }

    /// Has a session's workspace saved, if there is anything to save. Until that is done, it gets no new message.
    pub fn ask(&self, session: SessionId, cause: Cause) {
        lock(&self.asked).entry(session).or_default().causes.insert(cause);
        self.any.notify_one();
    }

    /// Says that a session may have to be saved when what is just being recorded has been: whoever learns of that waits for
    /// what follows from it. Until [`Trees::expect_no_more`].
    pub fn expect(&self, session: SessionId) {
        lock(&self.asked).entry(session).or_default().is_expected = true;
    }

    /// It has been recorded; whether anything is to be saved now.
    pub fn expect_no_more(&self, session: SessionId) -> bool {
        let mut all = lock(&self.asked);
        let Some(asked) = all.get_mut(&session) else { return false };
        asked.is_expected = false;
        if asked.is_over() {
            all.remove(&session);
            return false;
        }
        true
    }

    /// Whether a session is being saved, or waits for it.
    pub fn is_asked(&self, session: SessionId) -> bool {
        lock(&self.asked).contains_key(&session)
    }

    /// Waits for sessions that are to be saved; each is the caller's until [`Trees::done`].
    pub async fn next_asked(&self) -> Vec<(SessionId, BTreeSet<Cause>)> {
        loop {
            let mut next = Vec::new();
            for (session, asked) in lock(&self.asked).iter_mut() {
                if !asked.is_running && !asked.causes.is_empty() {
                    asked.is_running = true;
                    next.push((*session, std::mem::take(&mut asked.causes)));
                }
            }
            if !next.is_empty() {
                return next;
            }
            self.any.notified().await;
        }
    }

    /// A session that [`Trees::next_asked`] gave out is done with.
    pub fn done(&self, session: SessionId) {
        let mut all = lock(&self.asked);
        if let Some(asked) = all.get_mut(&session) {
            asked.is_running = false;
            if asked.is_over() {
                all.remove(&session);
            }
        }
        self.any.notify_one();
    }

    /// The last copy of what a session is writing.
    pub fn copied(&self, session: SessionId) -> Option<Copied> {
        lock(&self.copied).get(&session).cloned()
    }

    /// Notes a newer one, or that there is none any more; the one before.
    pub fn set_copied(&self, session: SessionId, copied: Option<Copied>) -> Option<Copied> {
        let mut all = lock(&self.copied);
        match copied {
            Some(copied) => all.insert(session, copied),
            None => all.remove(&session),
        }
    }

    /// Keeps these layers.
    pub fn hold(self: &Arc<Self>, layers: impl IntoIterator<Item = LayerId>) -> Hold {
        let layers: Vec<LayerId> = layers.into_iter().collect();
        let mut held = lock(&self.held);
        layers.iter().for_each(|layer| *held.entry(*layer).or_default() += 1);
        Hold { trees: Arc::clone(self), layers }
    }

    /// Whether anyone holds this layer.
    pub fn is_held(&self, layer: LayerId) -> bool {
        lock(&self.held).contains_key(&layer)
    }

    /// Has these layers looked at: their directories are removed if nothing needs them. What a transaction leaves is to go
    /// through [`raworc_store::Transaction::wasted`]: before its commit, it is still needed.
    pub fn waste(&self, layers: impl IntoIterator<Item = LayerId>) {
        let mut waste = lock(&self.waste);
        waste.extend(layers);
        if !waste.is_empty() {
            self.wasted.notify_one();
        }
    }

    /// Waits for such layers; whoever takes them looks at each.
    pub async fn next_waste(&self) -> BTreeSet<LayerId> {
        loop {
            let waste = std::mem::take(&mut *lock(&self.waste));
            if !waste.is_empty() {
                return waste;
            }
            self.wasted.notified().await;
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = lock(&self.trees.held);
        for layer in &self.layers {
            if let Some(count) = held.get_mut(layer) {
                *count -= 1;
                if *count == 0 {
                    held.remove(layer);
                }
            }
        }
    }
}

/// The layers from `top` down, held.
///
/// # Errors
/// Where the store fails.
pub async fn stack(app: &Shared, top: Option<LayerId>) -> Result<(Stack, Hold), Failure> {
    let (chain, hold) = chain(app, top).await?;
    Ok((Stack { layers: chain.into_iter().map(|layer| layer.id).collect(), writable: None }, hold))
}

/// The same, with what is recorded of them.
///
/// # Errors
/// Where the store fails.
pub async fn chain(app: &Shared, top: Option<LayerId>) -> Result<(Vec<LayerRow>, Hold), Failure> {
    let ids = |rows: &[LayerRow]| rows.iter().map(|row| row.id).collect::<Vec<_>>();
    loop {
        let seen = chain_now(app, top).await?;
        let hold = app.trees.hold(ids(&seen));
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
pub async fn stack_of(app: &Shared, session: SessionId) -> Result<(Stack, Hold), Failure> {
    loop {
        let seen = stack_now(app, session).await?;
        let hold = app.trees.hold(seen.writable.into_iter().chain(seen.layers.iter().copied()));
        if seen == stack_now(app, session).await? {
            return Ok((seen, hold));
        }
    }
}

/// The layers of the image that a session's containers run, held.
///
/// # Errors
/// 404 where there is no such session.
pub async fn image_of(app: &Shared, session: SessionId) -> Result<(Stack, Hold), Failure> {
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

/// The same, and what is written to is there.
///
/// # Errors
/// 404 where there is no such session; where the directory cannot be made.
pub async fn ready_stack_of(app: &Shared, session: SessionId) -> Result<(Stack, Hold), Failure> {
    let (stack, hold) = stack_of(app, session).await?;
    let (shelf, wanted) = (app.trees.shelf.clone(), stack.clone());
    app.work(move || shelf.create(&wanted)).await.flatten().map_err(FileError::from)?;
    Ok((stack, hold))
}

/// Whether a session has written anything since it was saved.
///
/// # Errors
/// Where what it wrote cannot be read.
pub async fn is_changed(app: &Shared, row: &SessionRow) -> std::io::Result<bool> {
    let (shelf, layer, below) = (app.trees.shelf.clone(), row.writable_id, row.layer_id);
    app.work(move || shelf.is_changed(layer, below)).await.flatten()
}

async fn stack_now(app: &Shared, session: SessionId) -> Result<Stack, Failure> {
    let mut connection = app.store.read().await?;
    let row = raworc_store::sessions::find(&mut connection, session).await?;
    let row = row.ok_or_else(|| Failure::not_found("session", &session.to_string()))?;
    let chain = layers::chain(&mut connection, row.layer_id).await?;
    Ok(Stack { layers: chain.into_iter().map(|layer| layer.id).collect(), writable: Some(row.writable_id) })
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
pub async fn open_now(app: &Shared, row: &SessionRow) -> Result<Opened, Failure> {
    refuse_purged(row.purged_at)?;
    if let Some(opened) = running(app, row).await {
        return Ok(opened);
    }
    let (stack, hold) = ready_stack_of(app, row.id).await?;
    let writable = stack.writable;
    let view = move |shelf: &Workspaces| {
        shelf.gather_resting(&stack)?;
        shelf.view(&stack)
    };
    Ok(Opened { workspace: open(app, view).await?, writable, _hold: hold })
}

/// Opens these layers, the topmost first, to read what they show.
///
/// # Errors
/// Where they cannot be mounted.
pub async fn open_layers(app: &Shared, layers: Vec<LayerId>, hold: Hold) -> Result<Opened, Failure> {
    let stack = Stack { layers, writable: None };
    Ok(Opened { workspace: open(app, move |shelf| shelf.view(&stack)).await?, writable: None, _hold: hold })
}

/// Reads in a workspace, or a version of one.
///
/// # Errors
/// Where the work fails.
pub async fn read<T: Send + 'static>(
    workspace: Opened,
    work: impl FnOnce(&Workspace) -> Result<T, FileError> + Send + 'static,
) -> Result<T, Failure> {
    Ok(blocking(move || work(&workspace)).await.map_err(FileError::Io)??)
}

/// Changes a session's workspace, whose turn the caller has. It is over with the work, also where nobody waits for that.
///
/// # Errors
/// Where the work fails.
pub async fn change<T: Send + 'static>(
    app: &Shared,
    turn: Turn,
    work: impl FnOnce(&Workspace) -> Result<T, FileError> + Send + 'static,
) -> Result<T, Failure> {
    let row = {
        let mut connection = app.store.read().await?;
        raworc_store::sessions::find(&mut connection, *turn.key()).await?
    };
    let row = row.ok_or_else(|| Failure::not_found("session", &turn.key().to_string()))?;
    let workspace = match running(app, &row).await {
        Some(opened) => opened,
        None => {
            let (stack, hold) = ready_stack_of(app, row.id).await?;
            let writable = stack.writable;
            let mount = move |shelf: &Workspaces| {
                // What a container could write counts no longer: whoever writes from outside was looked at.
                writable.map_or(Ok(false), |layer| shelf.limit(layer, None))?;
                shelf.mount(&stack)
            };
            Opened { workspace: open(app, mount).await?, writable, _hold: hold }
        }
    };
    let work = move || {
        let _turn = turn;
        work(&workspace)
    };
    Ok(blocking(work).await.map_err(FileError::Io)??)
}

/// The workspace in the session's container, if that runs. What it lies on is held: the container may get other layers while
/// someone still looks.
async fn running(app: &Shared, row: &SessionRow) -> Option<Opened> {
    let container = ContainerId { session: row.id, generation: row.machine.generation };
    loop {
        let stack = app.runtime.workspace(container)?;
        let hold = app.trees.hold(stack.writable.into_iter().chain(stack.layers.iter().copied()));
        let root = app.runtime.open_workspace(container).await.ok()?;
        if app.runtime.workspace(container).as_ref() == Some(&stack) {
            let (workspace, writable) = (app.trees.shelf.workspace(root), stack.writable);
            return Some(Opened { workspace, writable, _hold: hold });
        }
    }
}

async fn open(
    app: &Shared,
    how: impl FnOnce(&Workspaces) -> std::io::Result<Workspace> + Send + 'static,
) -> Result<Workspace, Failure> {
    let shelf = app.trees.shelf.clone();
    let opened = blocking(move || how(&shelf)).await.map_err(FileError::Io)?;
    Ok(opened.map_err(FileError::from)?)
}

/// Waits until a session is not being saved any more.
pub async fn settled(app: &Shared, session: SessionId) {
    let mut changes = app.hub.subscribe(session);
    let wait = async { while app.trees.is_asked(session) && changes.changed().await.is_ok() {} };
    let _ = tokio::time::timeout(SETTLED_MAX, wait).await;
}
