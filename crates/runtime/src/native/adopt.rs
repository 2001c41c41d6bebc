//! Containers that were running before this server was, and the watch over all of them.

use std::sync::Arc;
use std::time::Duration;

use raworc_core::ids::ContainerId;
use raworc_launcher::protocol::Status;
use tokio::sync::watch;

use super::containers::Containers;
use super::launcher::Ending;
use super::layout::container_names;
use super::process::Handle;
use crate::{Exit, ExitReason, RuntimeError};

/// How long the launcher may take to report the status of a process that has ended.
const STATUS_MAX: Duration = Duration::from_secs(5);
const SIGKILL: i32 = 9;

impl Containers {
    /// Takes over every container that runs, and reports those that have ended meanwhile.
    pub async fn adopt(self: &Arc<Self>) -> Result<(), RuntimeError> {
        let failed = |error: std::io::Error| RuntimeError::Other(error.to_string());
        let mut gone = Vec::new();
        for id in container_names(&self.layout.containers()).map_err(failed)? {
            let bundle = self.layout.bundle(id);
            match Handle::of_bundle(&bundle).map_err(failed)? {
                Some(process) if process.is_started(&bundle) => self.watch(id, process, None).await,
                // Made, but not started: whoever wants it starts it anew, otherwise it is swept away.
                Some(_) => {}
                None if bundle.join(raworc_launcher::protocol::PROCESS_FILE).exists() => gone.push(id),
                // It was never started; `list` shows it.
                None => {}
            }
        }
        let exits = self.exits.clone();
        tokio::spawn(async move {
            for id in gone {
                let _ = exits.send(Exit { id, reason: ExitReason::Unknown }).await;
            }
        });
        Ok(())
    }

    /// Notes that a container runs, and reports its exit unless it is stopped before.
    pub async fn watch(self: &Arc<Self>, id: ContainerId, process: Handle, status: Option<watch::Receiver<Ending>>) {
        let process = Arc::new(process);
        self.set_running(id, &process);
        let containers = Arc::downgrade(self);
        tokio::spawn(async move {
            let ended = process.ended().await;
            let Some(containers) = containers.upgrade() else {
                return;
            };
            if let Err(error) = ended {
                tracing::warn!(%id, %error, "the container can't be watched");
            }
            containers.ended(id, &process, status).await;
        });
    }

    async fn ended(&self, id: ContainerId, process: &Arc<Handle>, status: Option<watch::Receiver<Ending>>) {
        let reason = self.reason(id, status).await;
        if self.clear_running(id, process) {
            let _ = self.exits.send(Exit { id, reason }).await;
        }
    }

    /// Why a container ended, from what its launcher saw.
    pub async fn reason(&self, id: ContainerId, status: Option<watch::Receiver<Ending>>) -> ExitReason {
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
            Ending::Seen(Status::Signalled(SIGKILL)) if self.cgroups.oom_kills(id) > 0 => ExitReason::OutOfMemory,
            Ending::Seen(Status::Signalled(signal)) => ExitReason::Signalled(signal),
            Ending::Running | Ending::Unseen => ExitReason::Unknown,
        }
    }
}
