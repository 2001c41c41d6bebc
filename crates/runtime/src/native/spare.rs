//! Spare containers: prepared ahead of need, since preparing is nearly all of what a start takes.
//!
//! A spare one is complete but for what makes it a session's: workspace, host name, token. Its first process waits for
//! the token and knows nothing. It serves one session, then it is thrown away like any other. It ends with its launcher,
//! and therefore with its server, so that a crash leaves only directories, which the next start removes.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use raworc_launcher::protocol::{Action, Outcome, Prepare};
use tokio::sync::{Notify, watch};

use super::containers::Containers;
use super::launcher::Ending;
use super::layout::Slot;
use super::process::Handle;
use super::{blocking, bundle, image};
use crate::{Resources, Root, RuntimeError};

/// The stock is filled up when nothing has been taken for so long: a session that has just begun is not to share the
/// processors with preparations for the next.
const QUIET: Duration = Duration::from_millis(40);
/// Wait after a container could not be prepared.
const RETRY: Duration = Duration::from_secs(5);

/// A container that waits to be assigned.
pub struct Spare {
    /// What it is called.
    pub slot: Slot,
    /// Its first process.
    pub process: Arc<Handle>,
    /// How that ends.
    pub ending: watch::Receiver<Ending>,
}

/// Those that are kept ready, all with the same resources.
pub struct SparePool {
    resources: Resources,
    spares: Mutex<VecDeque<Spare>>,
    changed: Arc<Notify>,
    /// How many there are to be; held while one is made or all are given up.
    wanted: tokio::sync::Mutex<usize>,
}

impl SparePool {
    /// An empty one that [`keep_full`] fills with `size` containers.
    pub fn new(size: usize, resources: Resources) -> Self {
        let wanted = tokio::sync::Mutex::new(size);
        Self { resources, spares: Mutex::default(), changed: Arc::default(), wanted }
    }

    /// One of these resources, if there is one.
    pub fn take(&self, resources: &Resources) -> Option<Spare> {
        if *resources != self.resources {
            return None;
        }
        self.changed.notify_one();
        self.spares().pop_front()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.spares().len()
    }

    fn take_dead(&self) -> Vec<Spare> {
        let mut spares = self.spares();
        let (dead, alive) = spares.drain(..).partition(|spare| spare.process.has_ended());
        *spares = alive;
        Vec::from(dead)
    }

    fn spares(&self) -> MutexGuard<'_, VecDeque<Spare>> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fills the stock, now and whenever something has been taken, for as long as there is one.
pub async fn keep_full(containers: Weak<Containers>) {
    let Some(changed) = containers.upgrade().map(|containers| Arc::clone(&containers.stock.changed)) else { return };
    loop {
        let Some(containers) = containers.upgrade() else { return };
        let wait = match containers.add_spare().await {
            Ok(true) => continue,
            Ok(false) => None,
            Err(error) => {
                tracing::warn!(%error, "no container could be prepared ahead of need");
                Some(RETRY)
            }
        };
        drop(containers);
        match wait {
            Some(wait) => tokio::time::sleep(wait).await,
            None => {
                changed.notified().await;
                while tokio::time::timeout(QUIET, changed.notified()).await.is_ok() {}
            }
        }
    }
}

impl Containers {
    /// Prepares one more for the stock; false where that is full.
    async fn add_spare(&self) -> Result<bool, RuntimeError> {
        let wanted = self.stock.wanted.lock().await;
        for dead in self.stock.take_dead() {
            self.discard(&dead.slot).await;
        }
        if self.stock.len() >= *wanted {
            return Ok(false);
        }
        let spare = self.prepare(Slot::new(), &self.stock.resources, None).await?;
        // All of them end when their launcher does.
        let (process, changed) = (Arc::clone(&spare.process), Arc::clone(&self.stock.changed));
        tokio::spawn(async move {
            let _ = process.ended().await;
            changed.notify_one();
        });
        self.stock.spares().push_back(spare);
        Ok(true)
    }

    /// Prepares a container; where that fails, nothing of it is left.
    pub async fn prepare(
        &self,
        slot: Slot,
        resources: &Resources,
        image: Option<&Root>,
    ) -> Result<Spare, RuntimeError> {
        let prepared = self.try_prepare(&slot, resources, image).await;
        if prepared.is_err() {
            self.discard(&slot).await;
        }
        prepared
    }

    async fn try_prepare(
        &self,
        slot: &Slot,
        resources: &Resources,
        image: Option<&Root>,
    ) -> Result<Spare, RuntimeError> {
        let failed = |error: io::Error| RuntimeError::Start(error.to_string());
        let stage = self.launcher.stage().await?;
        if image.is_none() && self.layout.rootfs.is_outdated() {
            let rootfs = Arc::clone(&self.layout.rootfs);
            blocking(move || rootfs.renew()).await?;
        }
        bundle::write(&self.layout, slot, resources, image, &stage).map_err(failed)?;
        let root = match image {
            Some(image) => Some(self.mount_image(slot, image).await?),
            None => None,
        };
        let ending = self.launcher.expect(slot);
        let prepare = Prepare {
            container: slot.to_string(),
            bundle: self.layout.spare(slot),
            cgroup: self.layout.cgroup(slot),
            limits: bundle::limits(resources),
            has_root: root.is_some(),
            // An image has programs of its own.
            programs: if image.is_none() { self.layout.rootfs.mounted() } else { Vec::new() },
            users: bundle::users(&self.layout, slot),
        };
        let process = match self.launcher.request(Action::Prepare(prepare), root).await? {
            Outcome::Prepared(process) => process,
            Outcome::Failed(message) => return Err(RuntimeError::Start(message)),
            other => return Err(RuntimeError::Start(format!("the launcher answered {other:?}"))),
        };
        let process = Handle::open(process).map_err(failed)?;
        let process = process.ok_or_else(|| RuntimeError::Start("its first process ended at once".into()))?;
        Ok(Spare { slot: slot.clone(), process: Arc::new(process), ending })
    }

    async fn mount_image(&self, slot: &Slot, image: &Root) -> Result<OwnedFd, RuntimeError> {
        let (mounter, bundle) = (self.mounter.clone(), self.layout.spare(slot));
        let (image, ids) = (image.clone(), self.layout.ids);
        let mounted = blocking(move || image::mount(&mounter, &bundle, &image, ids)).await;
        mounted.map_err(|error| RuntimeError::Start(format!("its image can't be mounted: {error}")))
    }

    /// Removes a container that became nobody's.
    pub async fn discard(&self, slot: &Slot) {
        if let Err(error) = self.remove_slot(slot, &self.layout.spare(slot)).await {
            tracing::warn!(%slot, %error, "something of a container that was not used is left until the next start");
        }
    }

    /// Removes the stock, for good.
    pub async fn close(&self) {
        *self.stock.wanted.lock().await = 0;
        let spares: Vec<Spare> = self.stock.spares().drain(..).collect();
        for spare in spares {
            self.discard(&spare.slot).await;
        }
    }
}
