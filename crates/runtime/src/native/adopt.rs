//! Containers that were running before this server was, and the watch over all of them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use raworc_core::ids::ContainerId;
use raworc_launcher::protocol::{ASSIGNED_FILE, Status};
use tokio::sync::watch;

use super::containers::{Containers, Owned};
use super::launcher::Ending;
use super::layout::{Slot, names, remove};
use super::process::Handle;
use super::{image, workspace};
use crate::{Exit, ExitReason, RuntimeError};

/// How long the launcher may take to report the status of a process that has ended.
const STATUS_MAX: Duration = Duration::from_secs(5);
const SIGKILL: i32 = 9;

impl Containers {
    /// Takes over every container that runs, reports those that have ended meanwhile, and removes what is nobody's: the
    /// spare ones of the server before, and what a crash has left of others.
    pub async fn adopt(self: &Arc<Self>) -> Result<(), RuntimeError> {
        let failed = |error: std::io::Error| RuntimeError::Other(error.to_string());
        let mut nobodys: BTreeSet<Slot> = self.cgroups.list().map_err(failed)?;
        nobodys.extend(names::<Slot>(&self.layout.state()).map_err(failed)?);
        nobodys.extend(names::<Slot>(&self.layout.containers()).map_err(failed)?);
        let mut gone = Vec::new();
        for id in names::<ContainerId>(&self.layout.containers()).map_err(failed)? {
            let bundle = self.layout.bundle(id);
            // A bundle is renamed when it is complete, so one without a slot is none.
            let Some(slot) = Slot::of_bundle(&bundle) else {
                remove(&bundle).map_err(failed)?;
                continue;
            };
            nobodys.remove(&slot);
            let is_assigned = bundle.join(ASSIGNED_FILE).exists();
            let (workspace, image) = (workspace::noted(&bundle), image::noted(&bundle));
            match self.found(&bundle, &slot).await.map_err(failed)? {
                Some(process) if is_assigned && workspace.is_some() => {
                    let owned = Owned { process: Some(Arc::new(process)), ..Owned::new(slot, workspace, image) };
                    self.watch(id, owned, None);
                }
                _ => {
                    // What runs all the same, without a record or with half of one, ends before its session gets another:
                    // two would write to one workspace.
                    if let Err(error) = self.cgroups.remove(&slot).await {
                        tracing::error!(%id, %slot, %error, "a container of which too little is known does not end");
                    }
                    self.set_owned(id, Owned::new(slot, workspace, image));
                    if is_assigned {
                        gone.push(id);
                    }
                }
            }
        }
        for slot in nobodys {
            self.discard(&slot).await;
        }
        let exits = self.exits.clone();
        tokio::spawn(async move {
            for id in gone {
                let _ = exits.send(Exit { id, reason: ExitReason::Unknown }).await;
            }
        });
        Ok(())
    }

    /// The process of a container that runs. One whose cgroup has gone is on its way out, and helped along: one container
    /// never keeps the others from being looked after.
    async fn found(&self, bundle: &Path, slot: &Slot) -> std::io::Result<Option<Handle>> {
        let Some(process) = self.process_of(bundle, slot)? else { return Ok(None) };
        // The server before may have been killed while it held it.
        if let Err(error) = self.cgroups.set_frozen(slot, false).await {
            tracing::warn!(?slot, %error, "a container cannot go on, and is ended");
            process.kill().await?;
            return Ok(None);
        }
        Ok(Some(process))
    }

    /// Notes that a container runs, and reports its exit unless it is stopped before.
    pub fn watch(self: &Arc<Self>, id: ContainerId, owned: Owned, ending: Option<watch::Receiver<Ending>>) {
        let Some(process) = owned.process.clone() else { return };
        let slot = owned.slot.clone();
        self.set_owned(id, owned);
        let containers = Arc::downgrade(self);
        tokio::spawn(async move {
            let ended = process.ended().await;
            let Some(containers) = containers.upgrade() else {
                return;
            };
            if let Err(error) = ended {
                tracing::warn!(%id, %error, "the container can't be watched");
            }
            let reason = containers.reason(&slot, ending).await;
            if containers.clear_running(id, &process) {
                let _ = containers.exits.send(Exit { id, reason }).await;
            }
        });
    }

    /// Why a container ended, from what its launcher saw.
    async fn reason(&self, slot: &Slot, status: Option<watch::Receiver<Ending>>) -> ExitReason {
        let Some(mut status) = status else {
            return ExitReason::Unknown;
        };
        let seen = tokio::time::timeout(STATUS_MAX, status.wait_for(|ending| *ending != Ending::Running)).await;
        let ending = match seen {
            Ok(Ok(ending)) => *ending,
            Ok(Err(_)) | Err(_) => Ending::Unseen,
        };
        match ending {
            Ending::Seen(Status::Exited(status)) => ExitReason::Exited(status),
            // A process inside can be killed for memory and the container live on: both signs are needed.
            Ending::Seen(Status::Signalled(SIGKILL)) if self.cgroups.oom_kills(slot) > 0 => ExitReason::OutOfMemory,
            Ending::Seen(Status::Signalled(signal)) => ExitReason::Signalled(signal),
            Ending::Running | Ending::Unseen => ExitReason::Unknown,
        }
    }
}
