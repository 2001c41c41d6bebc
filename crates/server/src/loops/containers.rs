//! Starts and stops containers as the sessions' records want it.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raworc_core::checkpoints::Cause;
use raworc_core::ids::{ContainerId, SessionId};
use raworc_core::limits::STOP_GRACE;
use raworc_core::session::{Container, FaultCode};
use raworc_runtime::{ContainerSpec, ExitReason, Root, RuntimeError};
use raworc_store::StoreError;
use raworc_store::sessions::{self, SessionRow};
use raworc_workspace::FileError;

use super::admitted;
use crate::app::Shared;
use crate::checkpoints::save;
use crate::error::Failure;
use crate::layers::disk_use;
use crate::layers::workspace_access::{self, SessionGuard};
use crate::loops::supervise::{self, Loop};
use crate::record::observe;
use crate::sync::fair_semaphore::{FairPermit, FairSemaphore};
use crate::sync::lock;

/// Containers being started at the same time.
const STARTS: usize = 16;
/// Containers being stopped at the same time. Most of them are given time to end by themselves; starts don't wait for that.
const STOPS: usize = 64;
/// A start that has waited for so long says so, and again after as long: before it would count as one that takes too long.
const WAITING_TOLD: Duration = Duration::from_secs(20);
/// Wait before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How much is done at the same time.
#[derive(Clone)]
struct Places {
    starts: FairSemaphore,
    stops: FairSemaphore,
}

#[derive(Default)]
struct InFlight {
    sessions: HashSet<SessionId>,
    /// Changed while in flight: to be looked at again.
    again: HashSet<SessionId>,
    /// Containers that were started, so that a change of something else does not start them again.
    started: HashMap<SessionId, u32>,
}

/// Starts and stops containers as the sessions' records want it.
pub struct Containers;

impl Loop for Containers {
    const NAME: &'static str = "containers";
    const TRIGGER: &'static str = "a session that changed";

    fn bound() -> String {
        format!("{STARTS} starts and {STOPS} stops at once; accounts in turn")
    }

    async fn run(app: Shared) {
        let in_flight = Arc::new(Mutex::new(InFlight::default()));
        let places = Places { starts: FairSemaphore::new(STARTS), stops: FairSemaphore::new(STOPS) };
        match wanted(&app).await {
            Ok(wanted) => wanted.into_iter().for_each(|id| app.hub.look_again(id)),
            Err(error) => tracing::error!(%error, "the containers that are wanted could not be read"),
        }
        loop {
            let Some(changed) = app.unless_stopping(app.hub.next_changed()).await else { return };
            for session in changed {
                let mut state = lock(&in_flight);
                if state.sessions.insert(session) {
                    app.tasks.spawn(reconcile_container(app.clone(), session, Arc::clone(&in_flight), places.clone()));
                } else {
                    state.again.insert(session);
                }
            }
        }
    }
}

async fn wanted(app: &Shared) -> Result<Vec<SessionId>, Failure> {
    let mut connection = app.store.read().await?;
    Ok(sessions::with_wanted_container(&mut connection).await?)
}

async fn reconcile_container(app: Shared, session: SessionId, in_flight: Arc<Mutex<InFlight>>, places: Places) {
    loop {
        let looked = Box::pin(look(&app, session, &in_flight, &places));
        let looked = supervise::caught(&app, Containers::NAME, looked).await;
        app.loops.ran(Containers::NAME, matches!(looked, Some(Ok(()))));
        if !matches!(looked, Some(Ok(()))) {
            let error = looked.and_then(Result::err).map_or_else(|| "a panic".to_owned(), |error| error.to_string());
            tracing::error!(%session, error, "a container could not be looked after; trying again");
            if !app.sleep(RETRY).await {
                return;
            }
            lock(&in_flight).again.insert(session);
        }
        let mut state = lock(&in_flight);
        if !state.again.remove(&session) {
            state.sessions.remove(&session);
            return;
        }
    }
}

/// Why a container is not yet as it is wanted.
#[derive(Debug, thiserror::Error)]
enum ReconcileError {
    #[error(transparent)]
    Failure(#[from] Failure),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

async fn look(
    app: &Shared,
    session: SessionId,
    in_flight: &Mutex<InFlight>,
    places: &Places,
) -> Result<(), ReconcileError> {
    let row = {
        let mut connection = app.store.read().await.map_err(Failure::from)?;
        match sessions::find(&mut connection, session).await {
            // It is set aside; the sweep stops its container.
            Err(StoreError::Damaged(_)) => None,
            found => found.map_err(Failure::from)?,
        }
    };
    let Some(row) = row else { return Ok(()) };
    let container = ContainerId { session, generation: row.machine.generation };
    match row.machine.container {
        Container::None if row.machine.rewind.is_some() => {
            app.checkpoint_queue.enqueue(session, Cause::Rewind);
            Ok(())
        }
        Container::None | Container::Up => Ok(()),
        Container::Starting => {
            if lock(in_flight).started.get(&session) == Some(&container.generation) {
                return Ok(());
            }
            let Some((guard, _place)) = when_wanted(app, &row, container, places).await? else { return Ok(()) };
            match start(app, guard, &row, container).await {
                // A full disk passes. What else is wrong with files does not, and someone has to know.
                Err(ReconcileError::Failure(Failure::File(error))) if !matches!(error, FileError::DiskFull) => {
                    tracing::error!(%container, %error, "a container could not be started");
                    let told = match error {
                        FileError::LayerMissing(_) => error.to_string(),
                        _ => "its workspace could not be made ready; the server's log says why".to_owned(),
                    };
                    observe::start_failed(app, container, FaultCode::StartFailed, told).await?;
                }
                // Nor does a record that is damaged.
                Err(ReconcileError::Failure(failure)) if failure.damage().is_some() => {
                    tracing::error!(%container, %failure, "a container could not be started");
                    observe::start_failed(app, container, FaultCode::StartFailed, failure.into_problem().detail)
                        .await?;
                }
                outcome => outcome?,
            }
            lock(in_flight).started.insert(session, container.generation);
            Ok(())
        }
        Container::Stopping => {
            let place = places.stops.enter(row.owner_id).await;
            app.runtime.stop(container, STOP_GRACE).await?;
            drop(place);
            lock(in_flight).started.remove(&session);
            app.hosts.forget(container);
            let guard = app.session_locks.lock(session).await;
            match save::save_for(app, &guard, session, Cause::Stop).await {
                // What it wrote stays where it is, and is saved when that is mended.
                Err(error) if error.damage().is_some() => {
                    tracing::error!(%container, %error, "a workspace could not be saved");
                }
                saved => saved?,
            }
            drop(guard);
            observe::container_gone(app, container, ExitReason::Unknown).await?;
            Ok(())
        }
    }
}

/// Waits until the container may be started, and says so where that takes long; none where it is not wanted any more.
async fn when_wanted(
    app: &Shared,
    row: &SessionRow,
    container: ContainerId,
    places: &Places,
) -> Result<Option<(SessionGuard, FairPermit)>, Failure> {
    let mut admitted = pin!(admitted(&app.session_locks, row.id, row.owner_id, &places.starts));
    let admitted = loop {
        match tokio::time::timeout(WAITING_TOLD, admitted.as_mut()).await {
            Ok(admitted) => break admitted,
            Err(_) if observe::start_waits(app, container).await? => {}
            Err(_) => return Ok(None),
        }
    };
    let now = {
        let mut connection = app.store.read().await?;
        sessions::find(&mut connection, row.id).await?
    };
    let is_wanted = |row: &SessionRow| {
        row.machine.generation == container.generation && row.machine.container == Container::Starting
    };
    Ok(now.is_some_and(|row| is_wanted(&row)).then_some(admitted))
}

async fn start(
    app: &Shared,
    guard: SessionGuard,
    row: &SessionRow,
    container: ContainerId,
) -> Result<(), ReconcileError> {
    save::save_for(app, &guard, row.id, Cause::Start).await?;
    let (stack, _hold) = workspace_access::ready_stack_of(app, row.id).await?;
    // What it writes to may be another layer since.
    let now = {
        let mut connection = app.store.read().await.map_err(Failure::from)?;
        sessions::find(&mut connection, row.id).await.map_err(Failure::from)?
    };
    let row = now.as_ref().unwrap_or(row);
    let image = match &row.settings.image {
        Some(image) => Some((workspace_access::image_of(app, row.id).await?, &image.env)),
        None => None,
    };
    let spec = ContainerSpec {
        id: container,
        image: image.as_ref().map(|((stack, _), env)| Root { layers: stack.layers.clone(), env: (*env).clone() }),
        workspace: stack,
        resources: app.ceilings.of(row),
        token: app.host_tokens.make(container),
        hostname: hostname(row),
    };
    disk_use::watch(app, row, container).await?;
    if let Some(told) = disk_use::refuses(app, container) {
        tracing::info!(%container, told, "a session is not started");
        observe::start_failed(app, container, FaultCode::DiskQuotaExceeded, told).await?;
        return Ok(());
    }
    let begun = std::time::Instant::now();
    match app.runtime.start(&spec).await {
        Ok(()) => {
            app.metrics.container_start(begun.elapsed());
            app.checkpoint_timers.set(row.id, &row.settings.checkpoints, true);
            tracing::debug!(%container, took = ?begun.elapsed(), "a container was started");
            Ok(())
        }
        Err(RuntimeError::Start(message) | RuntimeError::Other(message)) => {
            tracing::warn!(%container, message, "a container could not be started");
            let told = "the container could not be started; the server's log says why".to_owned();
            observe::start_failed(app, container, FaultCode::StartFailed, told).await?;
            Ok(())
        }
        Err(error @ RuntimeError::Unavailable(_)) => Err(error.into()),
    }
}

/// The session's name as far as it can be one for a machine (RFC 1123), or its id.
fn hostname(row: &SessionRow) -> String {
    let allowed = |c: char| {
        if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }
    };
    let name: String = row.name.chars().map(allowed).take(63).collect();
    let name = name.trim_matches('-');
    if name.is_empty() { row.id.to_string() } else { name.to_owned() }
}
