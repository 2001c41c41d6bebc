//! Who wants to know when a session changes. A notice is only a hint to look at the rows again: it may come once for many
//! changes, and nothing is lost when it comes late.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use raworc_core::ids::SessionId;
use tokio::sync::{Notify, watch};

/// Hands out notices.
#[derive(Default)]
pub struct Hub {
    sessions: Mutex<HashMap<SessionId, watch::Sender<()>>>,
    changed: Mutex<BTreeSet<SessionId>>,
    any: Notify,
    deadlines: Notify,
}

impl Hub {
    /// These sessions changed; called after each commit.
    pub fn notify<'i>(&self, changed: impl IntoIterator<Item = &'i SessionId> + Clone) {
        let mut sessions = lock(&self.sessions);
        for id in changed.clone() {
            if let Some(sender) = sessions.get(id) {
                if sender.receiver_count() == 0 {
                    sessions.remove(id);
                } else {
                    sender.send_replace(());
                }
            }
        }
        drop(sessions);
        lock(&self.changed).extend(changed);
        self.any.notify_one();
        self.deadlines.notify_one();
    }

    /// Hears of changes of one session from now on.
    pub fn subscribe(&self, session: SessionId) -> watch::Receiver<()> {
        lock(&self.sessions).entry(session).or_insert_with(|| watch::channel(()).0).subscribe()
    }

    /// Waits for changes of any session; for the one loop that looks after containers.
    pub async fn next_changed(&self) -> BTreeSet<SessionId> {
        loop {
            let changed = std::mem::take(&mut *lock(&self.changed));
            if !changed.is_empty() {
                return changed;
            }
            self.any.notified().await;
        }
    }

    /// Puts a session before the loop that looks after containers although nothing changed.
    pub fn look_again(&self, session: SessionId) {
        lock(&self.changed).insert(session);
        self.any.notify_one();
    }

    /// Waits until some deadline may have changed; for the one loop that looks after them.
    pub async fn deadlines_changed(&self) {
        self.deadlines.notified().await;
    }
}

/// A lock that cannot be poisoned in a way that matters: what it guards is whole after every statement.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
