//! Loops that carry out what was recorded, and record what they observe. Each can be cut off anywhere and begun again.

pub mod backups;
pub mod checkpoints;
pub mod containers;
pub mod deadlines;
pub mod exits;
pub mod layers;
pub mod leases;
pub mod outcomes;
pub mod periodic_checkpoints;
pub mod quotas;
pub mod records;
pub mod reserve;
pub mod supervise;
pub mod sweep;

use raworc_core::ids::{AccountId, SessionId};

use crate::layers::workspace_access::SessionGuard;
use crate::sync::fair_semaphore::{FairPermit, FairSemaphore};
use crate::sync::keyed_locks::KeyedMutex;

/// Waits for the right to work on a session: its lock, and a permit of what is done at the same time. While it waits for one of the two,
/// it keeps the other from nobody; what it has waited for, it keeps where the other is free.
async fn admitted(
    locks: &KeyedMutex<SessionId>,
    session: SessionId,
    owner: AccountId,
    semaphore: &FairSemaphore,
) -> (SessionGuard, FairPermit) {
    loop {
        let permit = semaphore.enter(owner).await;
        if let Some(guard) = locks.try_lock(session) {
            return (guard, permit);
        }
        drop(permit);
        let guard = locks.lock(session).await;
        if let Some(permit) = semaphore.try_enter() {
            return (guard, permit);
        }
    }
}

/// Sessions that a loop tells something at the same time: their commits become one.
const TOLD_AT_ONCE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_that_wait_for_one_session_do_not_pass_it_to_and_fro() {
        let (locks, session, owner) =
            (KeyedMutex::default(), SessionId(uuid::Uuid::nil()), AccountId(uuid::Uuid::nil()));
        let first = locks.lock(session).await;
        let waiting = [FairSemaphore::new(1), FairSemaphore::new(1)].map(|semaphore| {
            let locks = locks.clone();
            tokio::spawn(async move { drop(admitted(&locks, session, owner, &semaphore).await) })
        });
        let pass = async || {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        };
        pass().await;
        assert!(waiting.iter().all(|one| !one.is_finished()));
        drop(first);
        pass().await;
        assert!(waiting.iter().all(tokio::task::JoinHandle::is_finished));
    }
}
