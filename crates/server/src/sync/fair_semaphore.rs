//! A semaphore whose permits go to the accounts that wait for one in turn, so that one account's burst holds up another's single session
//! by one permit only.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Mutex};

use raworc_core::ids::AccountId;
use tokio::sync::oneshot;

use crate::sync::lock;

/// Places for one kind of work.
#[derive(Clone, Debug)]
pub struct FairSemaphore(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    /// Accounts that wait, the next one first; each has at least one waiting.
    queues: VecDeque<(AccountId, VecDeque<oneshot::Sender<FairPermit>>)>,
}

/// A place; another's when it is dropped.
#[derive(Debug)]
#[must_use]
pub struct FairPermit(FairSemaphore);

impl FairSemaphore {
    /// So many places.
    pub fn new(places: usize) -> Self {
        Self(Arc::new(Mutex::new(State { free: places, queues: VecDeque::new() })))
    }

    /// Waits for a place.
    pub async fn enter(&self, account: AccountId) -> FairPermit {
        let waiting = {
            let mut state = lock(&self.0);
            if state.free > 0 {
                state.free -= 1;
                return FairPermit(self.clone());
            }
            let (sender, receiver) = oneshot::channel();
            match state.queues.iter_mut().find(|(other, _)| *other == account) {
                Some((_, queue)) => queue.push_back(sender),
                None => state.queues.push_back((account, VecDeque::from([sender]))),
            }
            receiver
        };
        match waiting.await {
            Ok(place) => place,
            // Senders are dropped with the state only, which this handle keeps.
            Err(_) => std::future::pending().await,
        }
    }

    /// A permit, where one is free: then nobody waits.
    pub fn try_enter(&self) -> Option<FairPermit> {
        let mut state = lock(&self.0);
        state.free = state.free.checked_sub(1)?;
        Some(FairPermit(self.clone()))
    }

    /// Gives a permit to the next account that waits.
    fn leave(&self) {
        let mut state = lock(&self.0);
        while let Some((account, mut queue)) = state.queues.pop_front() {
            while let Some(next) = queue.pop_front() {
                match next.send(FairPermit(self.clone())) {
                    Ok(()) if queue.is_empty() => return,
                    Ok(()) => return state.queues.push_back((account, queue)),
                    // It no longer waits: the place is given to another one here, not by being dropped.
                    Err(place) => mem::forget(place),
                }
            }
        }
        state.free += 1;
    }
}

impl Drop for FairPermit {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use uuid::Uuid;

    use super::*;

    fn account(n: u128) -> AccountId {
        AccountId(Uuid::from_u128(n))
    }

    #[test]
    fn accounts_that_wait_are_served_in_turn() {
        let fair_semaphore = FairSemaphore::new(2);
        let mut inside: Vec<FairPermit> =
            (0..2).map(|_| fair_semaphore.enter(account(1)).now_or_never().unwrap()).collect();
        let names = [1, 1, 1, 2, 1, 3, 2];
        let mut waiting: Vec<_> = names.iter().map(|n| (*n, Box::pin(fair_semaphore.enter(account(*n))))).collect();
        // Each is asked once, so that it waits.
        assert!(waiting.iter_mut().all(|(_, place)| place.now_or_never().is_none()));
        let mut served = Vec::new();
        while !waiting.is_empty() {
            drop(inside.remove(0));
            let next = waiting.iter_mut().position(|(_, place)| match place.now_or_never() {
                Some(place) => {
                    inside.push(place);
                    true
                }
                None => false,
            });
            served.push(waiting.remove(next.unwrap()).0);
        }
        assert_eq!(served, [1, 2, 3, 1, 2, 1, 1]);
        drop(inside);
        assert_eq!(lock(&fair_semaphore.0).free, 2);
    }

    #[test]
    fn who_no_longer_waits_takes_no_place() {
        let fair_semaphore = FairSemaphore::new(1);
        let first = fair_semaphore.enter(account(1)).now_or_never().unwrap();
        let mut gone = Box::pin(fair_semaphore.enter(account(1)));
        let mut late = Box::pin(fair_semaphore.enter(account(2)));
        let mut given = Box::pin(fair_semaphore.enter(account(3)));
        for waiting in [&mut gone, &mut late, &mut given] {
            assert!(waiting.as_mut().now_or_never().is_none());
        }
        let mut other = Box::pin(fair_semaphore.enter(account(1)));
        assert!(other.as_mut().now_or_never().is_none());
        drop(gone);
        drop(first);
        let other = other.as_mut().now_or_never();
        assert!(other.is_some(), "who no longer waits does not use up the turn of its account");
        drop(other);
        // The second one has its place by now, though nobody asked it yet; it goes on to the third.
        drop(late);
        assert!(given.now_or_never().is_some());
        assert_eq!(lock(&fair_semaphore.0).free, 1);
    }
}
