//! Who wants to know when a session changes. A notice is only a hint to look at the rows again: it may come once for many
//! changes, and nothing is lost when it comes late.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use raworc_core::ids::{AccountId, SessionId};
use tokio::sync::{Notify, watch};

use crate::sync::lock;

/// Hands out notices.
#[derive(Default)]
pub struct Hub {
    sessions: Mutex<HashMap<SessionId, watch::Sender<()>>>,
    accounts: Mutex<HashMap<AccountId, watch::Sender<()>>>,
    revocations: AtomicU64,
    changed: Mutex<BTreeSet<SessionId>>,
    any: Notify,
    deadlines: Notify,
    sweep: Notify,
}

impl Hub {
    /// These sessions changed; called after each commit.
    pub fn notify<'i>(&self, changed: impl IntoIterator<Item = &'i SessionId> + Clone) {
        self.notify_readers(changed.clone());
        lock(&self.changed).extend(changed);
        self.any.notify_one();
        self.deadlines.notify_one();
    }

    /// The logs of these sessions grew, and nothing else: their readers are told, and no loop.
    pub fn notify_readers<'i>(&self, grown: impl IntoIterator<Item = &'i SessionId>) {
        let mut sessions = lock(&self.sessions);
        for id in grown {
            if let Some(sender) = sessions.get(id) {
                if sender.receiver_count() == 0 {
                    sessions.remove(id);
                } else {
                    sender.send_replace(());
                }
            }
        }
    }

    /// These accounts, or tokens of theirs, may do less than before; called after each commit.
    pub fn notify_revoked<'i>(&self, accounts: impl IntoIterator<Item = &'i AccountId>) {
        for id in accounts {
            self.revocations.fetch_add(1, Ordering::SeqCst);
            let mut senders = lock(&self.accounts);
            if let Some(sender) = senders.get(id) {
                if sender.receiver_count() == 0 {
                    senders.remove(id);
                } else {
                    sender.send_replace(());
                }
            }
        }
    }

    /// How often [`Hub::notify_revoked`] was told of an account. Where it is the same before a look at the rows and after
    /// [`Hub::subscribe_revoked`], nothing was missed between them.
    pub fn revocations(&self) -> u64 {
        self.revocations.load(Ordering::SeqCst)
    }

    /// Hears from now on when this account, or a token of it, may do less than before.
    pub fn subscribe_revoked(&self, account: AccountId) -> watch::Receiver<()> {
        lock(&self.accounts).entry(account).or_insert_with(|| watch::channel(()).0).subscribe()
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

    /// Has the loop of sweeps run soon. A sweep that is under way is finished first.
    pub fn sweep_soon(&self) {
        self.sweep.notify_one();
    }

    /// Waits until that is wanted; for the one loop that sweeps.
    pub async fn sweep_wanted(&self) {
        self.sweep.notified().await;
    }

    /// Waits until some deadline may have changed; for the one loop that looks after them.
    pub async fn deadlines_changed(&self) {
        self.deadlines.notified().await;
    }
}
