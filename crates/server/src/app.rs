//! What every verb, loop and route has at hand.

use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;
use raworc_core::ids::AccountId;
use raworc_core::layers::Lengths;
use raworc_core::permissions::{Action, Actor, Decision, allow};
use raworc_core::time::Time;
use raworc_runtime::Runtime;
use raworc_store::Store;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attachments::Attachments;
use crate::auth::HostTokens;
use crate::budgets::Budgets;
use crate::ceilings::Ceilings;
use crate::error::Failure;
use crate::hosts::Hosts;
use crate::hub::Hub;
use crate::images::Images;
use crate::keyed::Places;
use crate::metrics::Metrics;
use crate::reconcile::records::Looks;
use crate::registries::Registries;
use crate::reserve::Reserve;
use crate::supervise::Loops;
use crate::trees::Trees;

/// The parts of a running server.
pub struct App {
    /// Records.
    pub store: Store,
    /// Containers.
    pub runtime: Arc<dyn Runtime>,
    /// Files.
    pub trees: Arc<Trees>,
    /// What is kept for a full disk, if anything is.
    pub reserve: Option<Reserve>,
    /// What work on them meets, in a simulation.
    pub weather: Option<Arc<dyn Weather>>,
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
    /// Connections of clients' streams that hosts are dialling.
    pub attachments: Attachments,
    /// Checks hosts' tokens.
    pub host_tokens: HostTokens,
    /// Counters.
    pub metrics: Metrics,
    /// What requests may take of the memory.
    pub budgets: Budgets,
    /// Files that an account may upload at the same time: each holds a thread, for as long as whoever sends it takes.
    pub uploads: Places<AccountId>,
    /// Versions that an account may compare at the same time: it takes a thread, and a disk's time.
    pub comparisons: Places<AccountId>,
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

/// What work on layers meets in a simulation, where a disk takes time and a server may be killed before the work and after it.
/// (Inside of it, see [`raworc_workspace::steps`].)
pub trait Weather: Send + Sync + 'static {
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
        let Some(weather) = &self.weather else { return blocking(work).await };
        weather.before().await;
        let done = blocking(work).await;
        weather.after().await;
        done
    }

    /// The time.
    pub fn now(&self) -> Time {
        (self.clock)()
    }
}

/// Runs what may wait for a disk where nobody else has to. On a runtime of one thread, as the simulator's, that is here:
/// then nothing happens at the same time, and the order is always the same.
///
/// # Errors
/// Where the work panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> std::io::Result<T> {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)
}

/// Lets the actor go on, or says why not. Every verb asks.
///
/// # Errors
/// 403, or 404 where the actor may not know that `what` is there.
pub fn permit(actor: &Actor, action: Action, what: &str, name: &str) -> Result<(), Failure> {
    match allow(actor, action) {
        Decision::Allow => Ok(()),
        Decision::Forbid => Err(Failure::new(
            raworc_api::problem::Code::Forbidden,
            format!("the account {:?} may not do this; ask an administrator", actor.name),
        )),
        Decision::Hide => Err(Failure::not_found(what, name)),
    }
}
