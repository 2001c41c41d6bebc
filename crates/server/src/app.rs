//! What every verb, loop and route has at hand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use raworc_core::ids::{AccountId, SessionId};
use raworc_core::layers::Lengths;
use raworc_core::time::Time;
use raworc_gateway::Gateway;
use raworc_runtime::Runtime;
use raworc_store::{Read, Store, StoreError};
use raworc_workspace::{FileError, LayerStore};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::checkpoints::capture_bases::CaptureBases;
use crate::checkpoints::queue::CheckpointQueue;
use crate::checkpoints::timers::CheckpointTimers;
use crate::error::Failure;
use crate::gateway::calls::RunningCalls;
use crate::gateway::connections::GatewayConnections;
use crate::hub::Hub;
use crate::layers::garbage_queue::GarbageQueue;
use crate::layers::pins::LayerPins;
use crate::layers::quotas::Quotas;
use crate::link::attachments::Attachments;
use crate::link::hosts::Hosts;
use crate::loops::outcomes::Loops;
use crate::metrics::Metrics;
use crate::models::catalog::Catalog;
use crate::policy::auth::HostTokens;
use crate::policy::budgets::Budgets;
use crate::policy::ceilings::Ceilings;
use crate::policy::refusals::Refusals;
use crate::record::looks::Looks;
use crate::reserve::Reserve;
use crate::sync::blocking;
use crate::sync::keyed_locks::{KeyedMutex, KeyedSemaphore};
use crate::transfers::images::Images;
use crate::transfers::registries::Registries;
use crate::turns::drivers::Drivers;

/// The parts of a running server.
pub struct App {
    /// Records.
    pub store: Store,
    /// Containers.
    pub runtime: Arc<dyn Runtime>,
    /// The layers of workspaces.
    pub layer_store: LayerStore,
    /// Who may change a session's workspace now.
    pub session_locks: KeyedMutex<SessionId>,
    /// Sessions that are to be saved.
    pub checkpoint_queue: CheckpointQueue,
    /// Sessions that are saved by the clock.
    pub checkpoint_timers: CheckpointTimers,
    /// The last copies of workspaces that are written to.
    pub capture_bases: Arc<CaptureBases>,
    /// Layers that are being read.
    pub layer_pins: Arc<LayerPins>,
    /// Layers that may be of no use any more.
    pub garbage_queue: Arc<GarbageQueue>,
    /// Sessions whose use of the disk is limited.
    pub quotas: Quotas,
    /// What is kept for a full disk, if anything is.
    pub reserve: Option<Reserve>,
    /// What work on them meets, in a simulation.
    pub fault_injector: Option<Arc<dyn FaultInjector>>,
    /// How many layers workspaces lie on.
    pub lengths: Lengths,
    /// Images on their way.
    pub images: Images,
    /// Where they go to and come from.
    pub registries: Registries,
    /// The most that a session may be given.
    pub ceilings: Ceilings,
    /// Notices of change.
    pub hub: Arc<Hub>,
    /// Hosts that are connected.
    pub hosts: Hosts,
    /// The gateway of programs in containers to models.
    pub gateway: Arc<Gateway>,
    /// Connections to it.
    pub gateway_connections: Arc<GatewayConnections>,
    /// Calls of models that are being made.
    pub running_calls: RunningCalls,
    /// Turns that run in the server.
    pub turn_drivers: Drivers,
    /// Connections of clients' streams that hosts are dialling.
    pub attachments: Attachments,
    /// Checks hosts' tokens.
    pub host_tokens: HostTokens,
    /// Models, and the keys of their providers.
    pub catalog: Arc<Catalog>,
    /// Counters.
    pub metrics: Metrics,
    /// What requests may take of the memory.
    pub budgets: Budgets,
    /// Files that an account may upload at the same time: each holds a thread, for as long as whoever sends it takes.
    pub uploads: KeyedSemaphore<AccountId>,
    /// Reads of many rows at the same time.
    pub scans: Arc<Semaphore>,
    /// Versions that an account may compare at the same time: it takes a thread, and a disk's time.
    pub comparisons: KeyedSemaphore<AccountId>,
    /// What was refused lately, for the audit trail.
    pub refusals: Refusals,
    /// Everything that has to end before the records are closed.
    pub tasks: TaskTracker,
    /// Ends streams and loops.
    pub stopping: CancellationToken,
    /// When it started.
    pub started: Instant,
    /// How the loops get on.
    pub loops: Loops,
    /// When the records were looked through.
    pub looks: Looks,
    /// Tells the time.
    pub clock: Clock,
}

/// Uploads of one account at the same time.
pub const UPLOADS_MAX: usize = 32;
/// Reads of many rows at the same time; more wait. The store has more readers, so that who looks up one row never waits for these.
pub const SCANS_MAX: usize = 2;
/// Comparisons of one account at the same time; more wait.
pub const COMPARISONS_MAX: usize = 2;

/// What tells the time of day. It may jump.
pub type Clock = Arc<dyn Fn() -> Time + Send + Sync>;

/// The machine's clock.
pub fn system_clock() -> Clock {
    Arc::new(|| jiff::Timestamp::now().into())
}

/// A shared [`App`].
pub type Shared = Arc<App>;

/// Delays work on layers, and has the server die before or after it. Only the simulator has one.
/// (Inside of it, see [`raworc_workspace::failpoints`].)
pub trait FaultInjector: Send + Sync + 'static {
    /// Before some work. Where this never ends, nothing has been done.
    fn before(&self) -> BoxFuture<'_, ()>;

    /// After it. Where this never ends, nobody hears what has been done.
    fn after(&self) -> BoxFuture<'_, ()>;
}

impl App {
    /// Works on layers, where nobody else has to wait for it.
    ///
    /// # Errors
    /// Where the work panicked.
    pub async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> std::io::Result<T> {
        let Some(fault_injector) = &self.fault_injector else { return blocking(work).await };
        fault_injector.before().await;
        let done = blocking(work).await;
        fault_injector.after().await;
        done
    }

    /// Reads what may be many rows, where nobody else has to wait for it; its place, to be kept for as long as what was read is in memory.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn scan<T: Send + 'static>(
        &self,
        work: impl for<'c> FnOnce(&'c mut Read) -> BoxFuture<'c, Result<T, Failure>> + Send + 'static,
    ) -> Result<(T, OwnedSemaphorePermit), Failure> {
        let place = Arc::clone(&self.scans).acquire_owned().await;
        let place = place.map_err(|_| StoreError::Unavailable("the store is closed".into()))?;
        let mut reader = self.store.read().await?;
        // The place is given back when the reader is, also where nobody waits for what it reads any more.
        let read = move || {
            let found = futures::executor::block_on(work(&mut reader));
            drop(reader);
            (found, place)
        };
        let (found, place) = blocking(read).await.map_err(FileError::Io)?;
        Ok((found?, place))
    }

    /// Does this, unless the server stops first: then nothing.
    pub async fn unless_stopping<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => None,
            done = work => Some(done),
        }
    }

    /// Sleeps; false where the server stops meanwhile. What every loop that has a tick waits with.
    pub async fn sleep(&self, duration: Duration) -> bool {
        self.unless_stopping(tokio::time::sleep(duration)).await.is_some()
    }

    /// The time.
    pub fn now(&self) -> Time {
        (self.clock)()
    }
}
