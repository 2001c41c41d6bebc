//! Saves the workspaces of sessions that are queued for it ([`checkpoints`](crate::checkpoints)).

use std::collections::BTreeSet;
use std::time::Duration;

use raworc_core::checkpoints::Cause;
use raworc_core::ids::{AccountId, SessionId};
use raworc_store::StoreError;
use raworc_store::checkpoints;
use raworc_store::sessions;
use uuid::Uuid;

use super::admitted;
use super::supervise::{self, Loop};
use crate::app::Shared;
use crate::checkpoints::job::{find, give_up};
use crate::checkpoints::save::{finish_all, fix};
use crate::error::Failure;
use crate::layers::chains;
use crate::record::save;
use crate::sync::fair_semaphore::FairSemaphore;

/// Workspaces saved at the same time.
const SAVES: usize = 4;
/// Workspaces that are brought to the disk, or whose layers are made fewer, at the same time: to go through deep trees on many
/// layers takes a descriptor for each.
const FINISHES: usize = 4;
/// Wait before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Takes up what the last server has left, before any host is let in: nothing is started in a container that was about to
/// be saved before that is done, and none where nothing may be written any more.
///
/// # Errors
/// Where the store fails.
pub async fn recover(app: &Shared) -> Result<(), Failure> {
    let (up, open, due) = {
        let mut connection = app.store.read().await?;
        let open = checkpoints::sessions_with_open(&mut connection).await?;
        (sessions::containers_up(&mut connection).await?, open, sessions::with_save_due(&mut connection).await?)
    };
    for container in &up {
        app.hosts.expect(*container);
        let writes_to = app.runtime.workspace(*container).and_then(|stack| stack.writable);
        let row = match find(app, container.session).await {
            Err(error) if error.damage().is_some() => continue,
            found => found?,
        };
        if writes_to.is_some() && row.is_some_and(|row| writes_to != Some(row.writable_id)) {
            tracing::info!(%container, "its workspace was saved, and it has no layer to write to yet; it is replaced");
            give_up(app, *container).await?;
        }
    }
    open.into_iter()
        .chain(due)
        .chain(up.into_iter().map(|container| container.session))
        .for_each(|session| app.checkpoint_queue.enqueue(session, Cause::Request));
    Ok(())
}

/// Saves workspaces.
pub struct Checkpoints;

impl Loop for Checkpoints {
    const NAME: &'static str = "checkpoints";
    const TRIGGER: &'static str = "a message that ended, a stop, the clock, a request";

    fn bound() -> String {
        format!("{SAVES} saved and {FINISHES} brought to the disk at once; accounts in turn")
    }

    async fn run(app: Shared) {
        let places = Places { saves: FairSemaphore::new(SAVES), finishes: FairSemaphore::new(FINISHES) };
        loop {
            let Some(asked) = app.unless_stopping(app.checkpoint_queue.next_batch()).await else { return };
            for (session, causes) in asked {
                app.tasks.spawn(run_save(app.clone(), session, causes, places.clone()));
            }
        }
    }
}

/// How much is done at the same time.
#[derive(Clone)]
struct Places {
    saves: FairSemaphore,
    finishes: FairSemaphore,
}

async fn run_save(app: Shared, session: SessionId, causes: BTreeSet<Cause>, places: Places) {
    let owner = find(&app, session).await.ok().flatten().map_or(AccountId(Uuid::nil()), |row| row.owner_id);
    let fixed = {
        let (guard, _place) = admitted(&app.session_locks, session, owner, &places.saves).await;
        caught(&app, fix(&app, &guard, session, &causes)).await
    };
    if let Err(error) = &fixed
        && error.damage().is_none()
    {
        app.loops.ran(Checkpoints::NAME, false);
        tracing::error!(%session, %error, "a workspace could not be saved; trying again");
        // It stays asked for meanwhile: no message comes before what the last one wrote is saved.
        ask_again(&app, session, causes).await;
        return app.checkpoint_queue.complete(session);
    }
    if fixed.is_err() {
        // Until its record is mended, nothing of it is saved; messages come all the same.
        let _ = save::nothing_due(&app, session).await;
    }
    app.checkpoint_queue.complete(session);
    // Whoever waits for it, and the host that may have its next message now.
    app.hub.notify(&[session]);
    let place = places.finishes.enter(owner).await;
    let finished = caught(&app, finish_all(&app, session)).await;
    chains::compact_if_long(&app, session).await;
    drop(place);
    let result = fixed.and(finished);
    app.loops.ran(Checkpoints::NAME, result.is_ok());
    match result {
        Ok(()) => {}
        // It is asked for again when that is mended.
        Err(error) if error.damage().is_some() => tracing::error!(%session, %error, "a workspace could not be saved"),
        // What it was for is captured already, and only has to reach the disk.
        Err(error) => {
            tracing::error!(%session, %error, "a workspace could not be saved; trying again");
            ask_again(&app, session, BTreeSet::new()).await;
        }
    }
}

async fn caught<T>(app: &Shared, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let done = supervise::caught(app, Checkpoints::NAME, work).await;
    done.unwrap_or_else(|| Err(StoreError::Unavailable("a panic".into()).into()))
}

async fn ask_again(app: &Shared, session: SessionId, causes: BTreeSet<Cause>) {
    if app.sleep(RETRY).await {
        causes.into_iter().chain([Cause::Request]).for_each(|cause| app.checkpoint_queue.enqueue(session, cause));
    }
}
