//! Loops that carry out what was recorded, and record what they observe. Each can be cut off anywhere and begun again.

pub mod backups;
pub mod checkpoints;
pub mod containers;
pub mod deadlines;
pub mod exits;
pub mod layers;
pub mod leases;
pub mod live_capture;
pub mod periodic_checkpoints;
pub mod quotas;
pub mod records;
mod save_error;
pub mod sweep;

use raworc_core::ids::{AccountId, SessionId};

use crate::app::Shared;
use crate::fair_semaphore::{FairPermit, FairSemaphore};
use crate::workspace_access::SessionGuard;

/// Waits for the right to work on a session: its turn, and a place among what is done at the same time. While it waits for one of the two,
/// it keeps the other from nobody.
async fn admitted(
    app: &Shared,
    session: SessionId,
    owner: AccountId,
    fair_semaphore: &FairSemaphore,
) -> (SessionGuard, FairPermit) {
    loop {
        let place = fair_semaphore.enter(owner).await;
        if let Some(guard) = app.session_locks.try_lock(session) {
            return (guard, place);
        }
        drop(place);
        drop(app.session_locks.lock(session).await);
    }
}

/// Sessions that a loop tells something at the same time: their commits become one.
const TOLD_AT_ONCE: usize = 64;
