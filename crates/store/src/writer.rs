//! The one writer: runs jobs in turn, many in one transaction, and answers each after the commit.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures::FutureExt as _;
use futures::executor::block_on;
use futures::future::BoxFuture;
use raworc_core::ids::{AccountId, LayerId, SessionId};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::StoreError;
use crate::sql::{Connection, sql};

/// Told, after each commit, what follows from it.
pub type Listener = Arc<dyn Fn(CommitNotice) + Send + Sync>;

/// A disk that may be slow or full; what [`Store::open_memory`](crate::Store::open_memory) has in place of one.
pub trait Disk: Send + Sync + 'static {
    /// Before a transaction. Where it fails, so does the transaction, which then has changed nothing.
    fn before(&self) -> BoxFuture<'_, Result<(), StoreError>>;
    /// After a transaction was committed, before anyone hears of it.
    fn after(&self) -> BoxFuture<'_, ()>;
}

/// Jobs that wait for the writer; who comes after waits too.
const QUEUE: usize = 1024;
/// Jobs in one transaction at most: bounds how long the first of them waits for its answer.
const BATCH: usize = 256;

/// What a job's closure gives back.
pub type JobFuture<'t, T, E> = BoxFuture<'t, Result<T, E>>;

/// The connection of a job, and what the listener is told after the commit.
pub struct Transaction {
    connection: Connection,
    news: CommitNotice,
}

/// What follows from a commit, for whoever listens.
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
}

impl CommitNotice {
    fn is_empty(&self) -> bool {
        self.sessions.is_empty()
            && self.logs.is_empty()
            && self.wasted.is_empty()
            && self.given_up.is_empty()
            && self.revoked.is_empty()
    }
}

impl Transaction {
    /// For statements.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Has the listener told, after the commit, that this session changed.
    pub fn changed(&mut self, session: SessionId) {
        self.news.sessions.insert(session);
    }

    /// Has the listener told, after the commit, that the log of this session grew.
    pub fn logged(&mut self, session: SessionId) {
        self.news.logs.insert(session);
    }

    /// Has the listener told, after the commit, that these layers may be of no use any more. (Before it, they still are.)
    pub fn wasted(&mut self, layers: impl IntoIterator<Item = LayerId>) {
        self.news.wasted.extend(layers);
    }

    /// Has the listener told, after the commit, that these layers are of no checkpoint of this session any more.
    pub fn given_up(&mut self, session: SessionId, layers: Vec<LayerId>) {
        self.news.given_up.push((session, layers));
    }

    /// Has the listener told, after the commit, that this account or one of its tokens may do less than before.
    pub fn revoked(&mut self, account: AccountId) {
        self.news.revoked.insert(account);
    }
}

/// A job with its answer's channel inside.
pub trait Job: Send {
    /// Does the work; true where it is to be kept.
    fn run<'t>(&'t mut self, transaction: &'t mut Transaction) -> BoxFuture<'t, bool>;
    /// Answers the caller; `commit` says how the whole transaction went.
    fn answer(self: Box<Self>, commit: Result<(), StoreError>);
}

struct Typed<T, E, F> {
    work: Option<F>,
    outcome: Option<Result<T, E>>,
    answer: oneshot::Sender<Result<T, E>>,
}

impl<T, E, F> Job for Typed<T, E, F>
where
    F: for<'t> FnOnce(&'t mut Transaction) -> JobFuture<'t, T, E> + Send,
    T: Send,
    E: From<StoreError> + Send,
{
    fn run<'t>(&'t mut self, transaction: &'t mut Transaction) -> BoxFuture<'t, bool> {
        Box::pin(async move {
            let Some(work) = self.work.take() else {
                return false;
            };
            let outcome = work(transaction).await;
            let keep = outcome.is_ok();
            self.outcome = Some(outcome);
            keep
        })
    }

    fn answer(self: Box<Self>, commit: Result<(), StoreError>) {
        let outcome = match (self.outcome, commit) {
            // A job that failed by itself is answered with its own error, however the others' commit went.
            (Some(Err(error)), _) => Err(error),
            (Some(Ok(value)), Ok(())) => Ok(value),
            (Some(Ok(_)) | None, Err(error)) => Err(error.into()),
            // It panicked.
            (None, Ok(())) => Err(StoreError::Failed("the job did not come to its end".into()).into()),
        };
        // Nobody waits where the caller went away; the work is done all the same.
        let _ = self.answer.send(outcome);
    }
}

/// A handle to the writer.
#[derive(Clone)]
pub(crate) struct Writer {
    jobs: mpsc::Sender<Box<dyn Job>>,
    stop: CancellationToken,
    task: TaskTracker,
}

impl Writer {
    /// On a thread of its own: a commit waits for the disk, and nobody else should.
    pub(crate) fn start_thread(connection: Connection, listener: Listener) -> Result<Self, StoreError> {
        let (writer, run) = Self::new(connection, listener, None);
        let run = writer.task.track_future(run);
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || block_on(run))
            .map_err(|error| StoreError::Unavailable(format!("no thread for the writer: {error}")))?;
        Ok(writer)
    }

    /// As a task of the caller's runtime.
    pub(crate) fn start_task(connection: Connection, listener: Listener, disk: Arc<dyn Disk>) -> Self {
        let (writer, run) = Self::new(connection, listener, Some(disk));
        writer.task.spawn(run);
        writer
    }

    fn new(
        connection: Connection,
        listener: Listener,
        disk: Option<Arc<dyn Disk>>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let stop = CancellationToken::new();
        let task = TaskTracker::new();
        task.close();
        let run = run(connection, queue, stop.clone(), listener, disk);
        (Self { jobs, stop, task }, run)
    }

    pub(crate) async fn run<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: for<'t> FnOnce(&'t mut Transaction) -> JobFuture<'t, T, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let closed = || E::from(StoreError::Unavailable("the store is closed".into()));
        let (answer, outcome) = oneshot::channel();
        let job = Box::new(Typed { work: Some(work), outcome: None, answer });
        self.jobs.send(job).await.map_err(|_| closed())?;
        outcome.await.unwrap_or_else(|_| Err(closed()))
    }

    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.task.wait().await;
    }
}

async fn run(
    connection: Connection,
    mut queue: mpsc::Receiver<Box<dyn Job>>,
    stop: CancellationToken,
    listener: Listener,
    disk: Option<Arc<dyn Disk>>,
) {
    let mut transaction = Transaction { connection, news: CommitNotice::default() };
    loop {
        let first = tokio::select! {
            biased;
            job = queue.recv() => job,
            () = stop.cancelled(), if !queue.is_closed() => {
                // No new jobs; those that are in the queue are still done.
                queue.close();
                continue;
            }
        };
        let Some(first) = first else { break };
        let mut batch = vec![first];
        let outcome = match &disk {
            None => run_batch(&mut transaction, &mut batch, &mut queue).await,
            Some(disk) => run_on(&**disk, &mut transaction, &mut batch, &mut queue).await,
        };
        let news = std::mem::take(&mut transaction.news);
        if outcome.is_ok() && !news.is_empty() {
            let told = catch_unwind(AssertUnwindSafe(|| listener(news)));
            if told.is_err() {
                tracing::error!("who listens to the store panicked");
            }
        }
        for job in batch {
            job.answer(outcome.clone());
        }
    }
    if let Err(error) = transaction.connection.close() {
        tracing::warn!(%error, "the database did not close cleanly");
    }
}

async fn run_on(
    disk: &dyn Disk,
    transaction: &mut Transaction,
    batch: &mut Vec<Box<dyn Job>>,
    queue: &mut mpsc::Receiver<Box<dyn Job>>,
) -> Result<(), StoreError> {
    disk.before().await?;
    let outcome = run_batch(transaction, batch, queue).await;
    disk.after().await;
    outcome
}

async fn run_batch(
    transaction: &mut Transaction,
    batch: &mut Vec<Box<dyn Job>>,
    queue: &mut mpsc::Receiver<Box<dyn Job>>,
) -> Result<(), StoreError> {
    let begun = statement(transaction, "BEGIN IMMEDIATE").await;
    let result = match begun {
        Ok(()) => run_jobs(transaction, batch, queue).await,
        Err(error) => Err(error),
    };
    let result = match result {
        Ok(()) => statement(transaction, "COMMIT").await,
        Err(error) => Err(error),
    };
    if result.is_err() {
        transaction.news = CommitNotice::default();
        if transaction.connection.is_in_transaction() {
            let _ = statement(transaction, "ROLLBACK").await;
        }
    }
    result
}

async fn run_jobs(
    transaction: &mut Transaction,
    batch: &mut Vec<Box<dyn Job>>,
    queue: &mut mpsc::Receiver<Box<dyn Job>>,
) -> Result<(), StoreError> {
    let mut next = 0;
    while next < batch.len() {
        let news_before = transaction.news.clone();
        statement(transaction, "SAVEPOINT job").await?;
        // A fault of one job is not the end of all of them: what it has done is taken back, and who asked for it is told.
        let keep = AssertUnwindSafe(batch[next].run(transaction)).catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!("a job of the store panicked; what it did is taken back");
            false
        });
        if !transaction.connection.is_in_transaction() {
            // SQLite ends it where a statement meets a full or failing disk (sqlite.org/lang_transaction.html). The job says
            // which; the others only that they have to come again.
            return Err(StoreError::Unavailable("the database gave the transaction up".into()));
        }
        if !keep {
            statement(transaction, "ROLLBACK TO job").await?;
            transaction.news = news_before;
        }
        statement(transaction, "RELEASE job").await?;
        next += 1;
        while batch.len() < BATCH {
            let Ok(job) = queue.try_recv() else { break };
            batch.push(job);
        }
    }
    Ok(())
}

async fn statement(transaction: &mut Transaction, text: &'static str) -> Result<(), StoreError> {
    sql(text).execute(&mut transaction.connection).await?;
    Ok(())
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that can't go on should say where, and this one makes panics"
)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;

    use super::*;
    use crate::Store;

    #[test]
    fn a_job_that_panics_is_taken_back_and_others_go_on() {
        block_on(panics());
    }

    async fn panics() {
        let directory = tempfile::tempdir().unwrap();
        let path: &Path = &directory.path().join("records.db");
        let told = Arc::new(Mutex::new(0));
        let count = Arc::clone(&told);
        let listener: Listener = Arc::new(move |_| {
            *count.lock().unwrap() += 1;
            std::panic::resume_unwind(Box::new("so does whoever listens"));
        });
        let store = Store::open_sqlite(path, listener).unwrap();
        let broken = store.write(|transaction| {
            Box::pin(async move {
                let text = "INSERT INTO settings (name, value) VALUES ('a', 'b')";
                sql(text).execute(transaction.connection()).await?;
                if transaction.connection().is_in_transaction() {
                    std::panic::resume_unwind(Box::new("a fault"));
                }
                Ok::<_, StoreError>(())
            })
        });
        assert!(matches!(broken.await, Err(StoreError::Failed(_))));
        for _ in 0..2 {
            let works = store.write(|transaction| {
                Box::pin(async move {
                    transaction.changed(SessionId(uuid::Uuid::nil()));
                    let text = "SELECT COUNT(*) AS n FROM settings";
                    sql(text).fetch_optional(transaction.connection(), |row| row.integer("n")).await
                })
            });
            assert_eq!(works.await.unwrap(), Some(0));
        }
        // Once for each that changed something, though it panics each time.
        store.close().await;
        assert_eq!(*told.lock().unwrap(), 2);
    }
}
