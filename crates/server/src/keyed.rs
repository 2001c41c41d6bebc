//! One at a time, or so many, for each key.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedMutexGuard, Semaphore};

use crate::hub::lock;

/// Hands out turns. Keys that nobody has or waits for take no memory.
#[derive(Clone, Debug)]
pub struct Turns<K> {
    all: Arc<Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>>,
}

/// A turn; the next one's when it is dropped.
#[derive(Debug)]
pub struct Held<K: Eq + Hash> {
    turns: Turns<K>,
    key: K,
    guard: Option<OwnedMutexGuard<()>>,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self { all: Arc::default() }
    }
}

impl<K: Clone + Eq + Hash> Turns<K> {
    /// Waits for the turn.
    pub async fn wait(&self, key: K) -> Held<K> {
        let turn = Arc::clone(lock(&self.all).entry(key.clone()).or_default());
        // Dropped while it waits, it leaves nothing behind either.
        let mut held = Held { turns: self.clone(), key, guard: None };
        held.guard = Some(turn.lock_owned().await);
        held
    }
}

impl<K: Eq + Hash> Held<K> {
    /// Whose it is.
    pub fn key(&self) -> &K {
        &self.key
    }
}

impl<K: Eq + Hash> Drop for Held<K> {
    fn drop(&mut self) {
        let mut all = lock(&self.turns.all);
        self.guard = None;
        // New holders come through this map only, which is locked: at 1 nobody waits.
        if all.get(&self.key).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            all.remove(&self.key);
        }
    }
}

/// Places: so many at a time for each key. Keys are remembered, so there must not be many.
#[derive(Debug)]
pub struct Places<K> {
    all: Mutex<HashMap<K, Arc<Semaphore>>>,
    each: usize,
}

impl<K: Eq + Hash> Places<K> {
    /// So many for each.
    pub fn new(each: usize) -> Self {
        Self { all: Mutex::default(), each }
    }

    /// Those of one.
    pub fn of(&self, key: K) -> Arc<Semaphore> {
        let mut all = lock(&self.all);
        Arc::clone(all.entry(key).or_insert_with(|| Arc::new(Semaphore::new(self.each))))
    }
}
