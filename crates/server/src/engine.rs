//! A server without its sockets: what decides, records and carries out. The simulator runs it, too.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use raworc_core::layers::Lengths;
use raworc_core::time::Time;
use raworc_gateway::Gateway;
use raworc_runtime::Runtime;
use raworc_store::providers::{self, ProviderRow};
use raworc_store::{Listener, Store, StoreError, Tx, agents, settings};
use raworc_workspace::layers::OverlayXattrs;
use raworc_workspace::{LayerStore, Mounter};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::{App, COMPARISONS_MAX, Clock, FaultInjector, SCANS_MAX, Shared, UPLOADS_MAX};
use crate::checkpoints::capture_bases::CaptureBases;
use crate::checkpoints::queue::CheckpointQueue;
use crate::checkpoints::timers::CheckpointTimers;
use crate::error::StartError;
use crate::gateway::calls::RunningCalls;
use crate::gateway::ports::ServerPorts;
use crate::http::routes;
use crate::layers::garbage_queue::GarbageQueue;
use crate::layers::pins::LayerPins;
use crate::layers::quotas::Quotas;
use crate::link::{attachments, hosts};
use crate::loops::{outcomes, supervise};
use crate::models::catalog::Catalog;
use crate::policy::auth;
use crate::policy::budgets::Budgets;
use crate::policy::ceilings::Ceilings;
use crate::policy::refusals::Refusals;
use crate::reserve::Reserve;
use crate::sync::keyed_locks::{KeyedMutex, KeyedSemaphore};
use crate::transfers::images::Images;
use crate::transfers::registries::Registries;
use crate::turns::drivers::Drivers;
use crate::{admin_token, hub, link, loops, metrics, record, verbs};

/// What an engine is made of.
pub struct Parts<'p> {
    /// Everything it keeps that is no record.
    pub data_dir: &'p Path,
    /// Containers.
    pub runtime: Arc<dyn Runtime>,
    /// Outside, the id of containers' agents; workspaces belong to it.
    pub agent_owner: Option<u32>,
    /// Which extended attributes overlayfs uses here.
    pub xattrs: OverlayXattrs,
    /// Mounts workspaces; without it nothing can be looked into.
    pub mounter: Option<Mounter>,
    /// Which ids the owners of files are in containers.
    pub ids: raworc_oci::Ids,
    /// How registries are spoken to.
    pub registries: Registries,
    /// Bytes that the images of one member may have together; none: half of the disk.
    pub images_bytes_max: Option<u64>,
    /// The most that a session may be given.
    pub ceilings: Ceilings,
    /// Tells the time.
    pub clock: Clock,
    /// How many layers workspaces lie on.
    pub lengths: Lengths,
    /// What is kept for a full disk.
    pub reserve: Option<Reserve>,
    /// Injects faults into work on layers; none but in a simulation.
    pub fault_injector: Option<Arc<dyn FaultInjector>>,
}

/// An engine that runs.
pub struct Engine {
    /// What verbs, loops and routes share.
    pub(crate) app: Shared,
    /// The administrator's token.
    pub(crate) admin_token: String,
}

impl Engine {
    /// Opens the records, finds the containers that are there, and starts the loops.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(
        parts: Parts<'_>,
        open: impl FnOnce(Listener) -> Result<Store, StoreError>,
    ) -> Result<Self, StartError> {
        let hub = Arc::new(hub::Hub::default());
        let layer_store = LayerStore::open(parts.data_dir, parts.agent_owner, parts.xattrs, parts.mounter)
            .map_err(|error| StartError::File(parts.data_dir.to_owned(), error))?;
        let (capture_bases, garbage_queue) = (Arc::new(CaptureBases::default()), Arc::new(GarbageQueue::default()));
        let catalog = Arc::new(Catalog::of(parts.data_dir));
        let store = open(listener(&hub, &capture_bases, &garbage_queue, &catalog))?;
        let now = (parts.clock)();
        let admin_token = admin_token::find_or_make(&store, &parts.data_dir.join("admin.token"), now).await?;
        let host_secret = first_records(&store, now).await?;
        let format = raworc_oci::Format { xattrs: parts.xattrs, ids: parts.ids };
        let images = Images::open(parts.data_dir, format, parts.images_bytes_max)
            .map_err(|error| StartError::Other(format!("the images cannot be opened: {error}")))?;
        let ports = Arc::new(ServerPorts::new());
        let gateway = Gateway::new(Arc::<ServerPorts>::clone(&ports));
        let gateway =
            gateway.map_err(|error| StartError::Other(format!("providers of models cannot be reached: {error}")))?;
        let app: Shared = Arc::new(App {
            gateway: Arc::new(gateway),
            gateway_connections: Arc::default(),
            running_calls: RunningCalls::default(),
            turn_drivers: Drivers::default(),
            store,
            runtime: parts.runtime,
            layer_store,
            session_locks: KeyedMutex::default(),
            checkpoint_queue: CheckpointQueue::default(),
            checkpoint_timers: CheckpointTimers::default(),
            capture_bases,
            layer_pins: Arc::new(LayerPins::default()),
            garbage_queue,
            quotas: Quotas::default(),
            reserve: parts.reserve,
            fault_injector: parts.fault_injector,
            lengths: parts.lengths,
            images,
            registries: parts.registries,
            ceilings: parts.ceilings,
            hub,
            hosts: hosts::Hosts::default(),
            attachments: attachments::Attachments::default(),
            host_tokens: auth::HostTokens::new(&host_secret),
            catalog,
            metrics: metrics::Metrics::default(),
            budgets: Budgets::default(),
            uploads: KeyedSemaphore::new(UPLOADS_MAX),
            scans: Arc::new(Semaphore::new(SCANS_MAX)),
            comparisons: KeyedSemaphore::new(COMPARISONS_MAX),
            refusals: Refusals::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            started: Instant::now(),
            loops: outcomes::Loops::default(),
            looks: record::looks::Looks::default(),
            clock: parts.clock,
        });
        ports.connect(&app);
        // Whether their keys can be decrypted is in the log from the beginning.
        app.catalog.inspect(&app.store).await?;
        loops::checkpoints::recover(&app).await?;
        loops::sweep::once(&app).await?;
        supervise::spawn::<loops::backups::Backups>(&app);
        supervise::spawn::<loops::checkpoints::Checkpoints>(&app);
        supervise::spawn::<loops::containers::Containers>(&app);
        supervise::spawn::<loops::deadlines::Deadlines>(&app);
        supervise::spawn::<loops::periodic_checkpoints::PeriodicCheckpoints>(&app);
        supervise::spawn::<loops::exits::Exits>(&app);
        supervise::spawn::<loops::layers::Layers>(&app);
        supervise::spawn::<loops::leases::Leases>(&app);
        supervise::spawn::<loops::quotas::QuotaLoop>(&app);
        supervise::spawn::<loops::records::Records>(&app);
        supervise::spawn::<loops::sweep::Sweep>(&app);
        supervise::spawn::<loops::reserve::ReserveLoop>(&app);
        Ok(Self { app, admin_token })
    }

    /// The administrator's token, as in `admin.token`.
    pub fn admin_token(&self) -> &str {
        &self.admin_token
    }

    /// What answers requests.
    pub fn router(&self) -> axum::Router {
        routes::router(self.app.clone())
    }

    /// A host dials: `stream` leads to it.
    pub fn accept_host(&self, stream: impl attachments::Stream) {
        self.app.tasks.spawn(link::serve(self.app.clone(), Box::new(stream)));
    }
}

/// What has to be in the records before anyone calls: the built-in agents and provider, and the secret behind hosts' tokens.
async fn first_records(store: &Store, now: Time) -> Result<String, StartError> {
    let (agents, provider) = (verbs::agents::builtin(now), verbs::providers::builtin(now));
    let secret = auth::new_secret();
    Ok(store
        .write(move |tx| {
            Box::pin(async move {
                for agent in agents {
                    match agents::find(tx, &agent.definition.name).await {
                        Ok(None) if !agents::any_damaged(tx).await? => {
                            agents::insert(tx, &agent).await?;
                        }
                        // One that is damaged may be it. What stood in its place would be in the way of who mends it.
                        Ok(_) | Err(StoreError::Damaged(_)) => {}
                        Err(error) => return Err(error),
                    }
                }
                insert_provider(tx, provider).await?;
                settings::get_or_insert(tx, "host_secret", secret, auth::is_secret).await
            })
        })
        .await?)
}

async fn insert_provider(tx: &mut Tx, provider: ProviderRow) -> Result<(), StoreError> {
    match providers::find(tx, &provider.name).await {
        Ok(None) if providers::all(tx).await?.damaged.is_empty() => providers::insert(tx, &provider).await,
        // As with agents: one that is damaged may be it.
        Ok(_) | Err(StoreError::Damaged(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Who hears of commits.
fn listener(
    hub: &Arc<hub::Hub>,
    bases: &Arc<CaptureBases>,
    garbage: &Arc<GarbageQueue>,
    catalog: &Arc<Catalog>,
) -> Listener {
    let (hub, capture_bases, garbage_queue) = (Arc::clone(hub), Arc::clone(bases), Arc::clone(garbage));
    let catalog = Arc::clone(catalog);
    Arc::new(move |news| {
        // Before anyone hears of it.
        if news.providers {
            catalog.changed();
        }
        hub.notify(&news.sessions);
        hub.notify_readers(&news.logs);
        hub.notify_revoked(&news.revoked);
        for (session, layers) in &news.given_up {
            capture_bases.forget_given_up(*session, layers);
        }
        garbage_queue.enqueue(news.wasted);
    })
}
