//! The queue of sessions that are to be saved. It is in memory only: what outlives a crash is in the records (`save_due`, and
//! checkpoints that are pending).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use raworc_core::checkpoints::Cause;
use raworc_core::ids::SessionId;
use tokio::sync::Notify;

use crate::sync::lock;

/// Sessions that are to be saved, one request for each.
#[derive(Default)]
pub struct CheckpointQueue {
    requests: Mutex<BTreeMap<SessionId, Request>>,
    added: Notify,
}

/// What is asked for of one session.
#[derive(Default)]
struct Request {
    /// Why; empty while it is being done.
    causes: BTreeSet<Cause>,
    is_running: bool,
    /// A transaction under way may ask for a checkpoint when it has committed.
    is_expected: bool,
}

impl Request {
    fn is_over(&self) -> bool {
        self.causes.is_empty() && !self.is_running && !self.is_expected
    }
}

impl CheckpointQueue {
    /// Has a session's workspace saved, if there is anything to save. Until that is done, it gets no new message.
    pub fn enqueue(&self, session: SessionId, cause: Cause) {
        lock(&self.requests).entry(session).or_default().causes.insert(cause);
        self.added.notify_one();
    }

    /// Announces that a transaction under way may ask for a checkpoint. Readers of its commit wait until
    /// [`CheckpointQueue::release_expectation`].
    pub fn expect(&self, session: SessionId) {
        lock(&self.requests).entry(session).or_default().is_expected = true;
    }

    /// Takes the announcement back; true where a checkpoint is asked for or being taken.
    pub fn release_expectation(&self, session: SessionId) -> bool {
        let mut all = lock(&self.requests);
        let Some(request) = all.get_mut(&session) else { return false };
        request.is_expected = false;
        if request.is_over() {
            all.remove(&session);
            return false;
        }
        true
    }

    /// Whether a checkpoint of a session is asked for or being taken.
    pub fn is_pending(&self, session: SessionId) -> bool {
        lock(&self.requests).contains_key(&session)
    }

    /// Waits for sessions that are to be saved, and why; each is the caller's until [`CheckpointQueue::complete`].
    pub async fn next_batch(&self) -> Vec<(SessionId, BTreeSet<Cause>)> {
        loop {
            let mut next = Vec::new();
            for (session, request) in lock(&self.requests).iter_mut() {
                if !request.is_running && !request.causes.is_empty() {
                    request.is_running = true;
                    next.push((*session, std::mem::take(&mut request.causes)));
                }
            }
            if !next.is_empty() {
                return next;
            }
            self.added.notified().await;
        }
    }

    /// A session of [`CheckpointQueue::next_batch`] is saved, or is not to be.
    pub fn complete(&self, session: SessionId) {
        let mut all = lock(&self.requests);
        if let Some(request) = all.get_mut(&session) {
            request.is_running = false;
            if request.is_over() {
                all.remove(&session);
            }
        }
        self.added.notify_one();
    }
}
