//! A transaction: what changes rows, and what follows from its commit.
//!
//! A job may be run again (see [`Store::write`](crate::Store::write)), so a [`Tx`] keeps what is to follow from it apart from the rows,
//! and gives it away only with them: a run that is rolled back leaves nothing behind.

use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};

use raworc_core::ids::{AccountId, LayerId, SessionId};
use uuid::Uuid;

use crate::StoreError;
use crate::sql::Read;

/// A transaction that a job changes rows in. It reads as well: wherever a [`Read`] is wanted, it can be lent. A function that changes rows
/// takes a `Tx`, and what [`Store::read`](crate::Store::read) gives is none:
///
/// ```
/// # async fn reads(store: raworc_store::Store) -> Result<bool, raworc_store::StoreError> {
/// let mut reader = store.read().await?;
/// raworc_store::agents::any_damaged(&mut reader).await
/// # }
/// ```
/// ```compile_fail,E0308
/// # async fn changes(store: raworc_store::Store) -> Result<(), raworc_store::StoreError> {
/// let mut reader = store.read().await?;
/// raworc_store::set_aside::set_aside(&mut reader, "a session").await
/// # }
/// ```
pub struct Tx {
    connection: Read,
    follow_up: FollowUp,
    ids: JobIds,
}

/// What the listener of a store is told after a commit: data, each a hint to look at the rows again.
#[derive(Clone, Debug, Default)]
pub struct CommitNotice {
    /// Sessions that changed.
    pub sessions: BTreeSet<SessionId>,
    /// Sessions of which nothing but the log grew.
    pub logs: BTreeSet<SessionId>,
    /// Layers that may be of no use any more.
    pub wasted: BTreeSet<LayerId>,
    /// Layers of checkpoints that were given up, and whose.
    pub given_up: Vec<(SessionId, Vec<LayerId>)>,
    /// Accounts whose rights, or whose tokens', became fewer.
    pub revoked: BTreeSet<AccountId>,
    /// Providers of models changed.
    pub providers: bool,
}

impl CommitNotice {
    pub(crate) fn is_empty(&self) -> bool {
        self.sessions.is_empty()
            && self.logs.is_empty()
            && self.wasted.is_empty()
            && self.given_up.is_empty()
            && self.revoked.is_empty()
            && !self.providers
    }
}

/// What follows from the commit of one job, or of all in a transaction.
#[derive(Default)]
pub(crate) struct FollowUp {
    pub(crate) notice: CommitNotice,
    pub(crate) effects: Vec<Box<dyn FnOnce() + Send>>,
}

impl FollowUp {
    /// Adds what follows from another job.
    pub(crate) fn append(&mut self, other: Self) {
        let CommitNotice { sessions, logs, wasted, given_up, revoked, providers } = other.notice;
        self.notice.sessions.extend(sessions);
        self.notice.logs.extend(logs);
        self.notice.wasted.extend(wasted);
        self.notice.given_up.extend(given_up);
        self.notice.revoked.extend(revoked);
        self.notice.providers |= providers;
        self.effects.extend(other.effects);
    }
}

/// The ids that a job has made. Each run of it makes the same ones.
#[derive(Default)]
pub(crate) struct JobIds {
    made: Vec<Uuid>,
    next: usize,
}

impl JobIds {
    fn next(&mut self) -> Uuid {
        let made = self.made.get(self.next).copied();
        self.next += 1;
        made.unwrap_or_else(|| {
            let id = Uuid::now_v7();
            self.made.push(id);
            id
        })
    }
}

impl Tx {
    pub(crate) fn new(connection: Read) -> Self {
        Self { connection, follow_up: FollowUp::default(), ids: JobIds::default() }
    }

    /// A new id, in the order of time. A job that is run again gets the same ones in the same order.
    pub fn new_id(&mut self) -> Uuid {
        self.ids.next()
    }

    /// Does this after the commit; never, where the transaction is rolled back. It runs on the writer, which does nothing else meanwhile:
    /// it may wake someone or put something into a queue in memory, and must not wait.
    pub fn after_commit(&mut self, effect: impl FnOnce() + Send + 'static) {
        self.follow_up.effects.push(Box::new(effect));
    }

    /// Has the listener told, after the commit, that this session changed.
    pub fn changed(&mut self, session: SessionId) {
        self.follow_up.notice.sessions.insert(session);
    }

    /// Has the listener told, after the commit, that the log of this session grew.
    pub fn logged(&mut self, session: SessionId) {
        self.follow_up.notice.logs.insert(session);
    }

    /// Has the listener told, after the commit, that these layers may be of no use any more. (Before it, they still are.)
    pub fn wasted(&mut self, layers: impl IntoIterator<Item = LayerId>) {
        self.follow_up.notice.wasted.extend(layers);
    }

    /// Has the listener told, after the commit, that these layers are of no checkpoint of this session any more.
    pub fn given_up(&mut self, session: SessionId, layers: Vec<LayerId>) {
        self.follow_up.notice.given_up.push((session, layers));
    }

    /// Has the listener told, after the commit, that this account or one of its tokens may do less than before.
    pub fn revoked(&mut self, account: AccountId) {
        self.follow_up.notice.revoked.insert(account);
    }

    /// Has the listener told, after the commit, that providers of models changed.
    pub fn providers_changed(&mut self) {
        self.follow_up.notice.providers = true;
    }

    /// The connection, for a statement that changes something. Where SQLite has ended the transaction by itself, there is none: what a job
    /// that goes on all the same changes would be committed at once, and never taken back.
    pub(crate) fn writable(&mut self) -> Result<&mut Read, StoreError> {
        if self.connection.is_in_transaction() { Ok(&mut self.connection) } else { Err(Self::ended_by_database()) }
    }

    /// The error of a job whose transaction SQLite has ended by itself.
    pub(crate) fn ended_by_database() -> StoreError {
        StoreError::Unavailable("the database gave the transaction up".into())
    }

    /// Begins a run of a job, which made these ids when it was run before.
    pub(crate) fn begin_run(&mut self, ids: JobIds) {
        self.follow_up = FollowUp::default();
        self.ids = JobIds { next: 0, ..ids };
    }

    /// Ends the run: the ids that the job has made.
    pub(crate) fn end_run(&mut self) -> JobIds {
        std::mem::take(&mut self.ids)
    }

    /// What follows from the run that has ended.
    pub(crate) fn take_follow_up(&mut self) -> FollowUp {
        std::mem::take(&mut self.follow_up)
    }

    /// Closes the connection.
    pub(crate) fn close(self) -> Result<(), StoreError> {
        self.connection.close()
    }
}

impl Deref for Tx {
    type Target = Read;

    fn deref(&self) -> &Read {
        &self.connection
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut Read {
        &mut self.connection
    }
}
