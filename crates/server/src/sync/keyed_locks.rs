//! Provides a mutex and a semaphore for each key.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedMutexGuard, Semaphore};

use crate::sync::lock;

/// A mutex for each key. Keys that nobody has locked or waits for take no memory.
#[derive(Clone, Debug)]
pub struct KeyedMutex<K> {
    all: Arc<Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>>,
}

/// The lock of one key; dropped, it is the next waiter's.
#[derive(Debug)]
pub struct KeyedGuard<K: Eq + Hash> {
    mutex: KeyedMutex<K>,
    key: K,
    guard: Option<OwnedMutexGuard<()>>,
}

impl<K> Default for KeyedMutex<K> {
    fn default() -> Self {
        Self { all: Arc::default() }
    }
}

impl<K: Clone + Eq + Hash> KeyedMutex<K> {
    /// Waits for the lock of a key.
    pub async fn lock(&self, key: K) -> KeyedGuard<K> {
        let inner = Arc::clone(lock(&self.all).entry(key.clone()).or_default());
        // Dropped while it waits, it leaves nothing behind either.
        let mut held = KeyedGuard { mutex: self.clone(), key, guard: None };
        held.guard = Some(inner.lock_owned().await);
        held
    }
}

impl<K: Clone + Eq + Hash> KeyedMutex<K> {
    /// The lock of a key, where nobody has it or waits for it.
    pub fn try_lock(&self, key: K) -> Option<KeyedGuard<K>> {
        let inner = Arc::clone(lock(&self.all).entry(key.clone()).or_default());
        let mut held = KeyedGuard { mutex: self.clone(), key, guard: None };
        held.guard = Some(inner.try_lock_owned().ok()?);
        Some(held)
    }
}

impl<K: Eq + Hash> KeyedGuard<K> {
    /// The key.
    pub fn key(&self) -> &K {
        &self.key
    }
}

impl<K: Eq + Hash> Drop for KeyedGuard<K> {
    fn drop(&mut self) {
        let mut all = lock(&self.mutex.all);
        self.guard = None;
        // New holders come through this map only, which is locked: at 1 nobody waits.
        if all.get(&self.key).is_some_and(|inner| Arc::strong_count(inner) == 1) {
            all.remove(&self.key);
        }
    }
}

/// A semaphore for each key. Keys are remembered, so there must not be many.
#[derive(Debug)]
pub struct KeyedSemaphore<K> {
    all: Mutex<HashMap<K, Arc<Semaphore>>>,
    each: usize,
}

impl<K: Eq + Hash> KeyedSemaphore<K> {
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
