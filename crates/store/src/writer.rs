//! The one writer: runs jobs in turn, many in one transaction, and answers each after the commit.
//!
//! Where a transaction is rolled back, the jobs in it are run again, each in a transaction of its own: one job cannot make others fail.
//! PostgreSQL, which rolls back transactions that it cannot put in an order, will need the same.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures::FutureExt as _;
use futures::executor::block_on;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::StoreError;
use crate::sql::Read;
use crate::tx::{CommitNotice, FollowUp, JobIds, Tx};

/// Told, after each commit, what follows from it.
pub type Listener = Arc<dyn Fn(CommitNotice) + Send + Sync>;

/// A disk that may be slow or full; what [`Store::open_memory`](crate::Store::open_memory) has in place of one.
pub trait Disk: Send + Sync + 'static {
    /// Before a transaction. Where it fails, so does the transaction, which then has changed nothing.
    fn before(&self) -> BoxFuture<'_, Result<(), StoreError>>;
    /// When all jobs of a transaction have run. Where it fails, the transaction is rolled back, and they may be run again.
    fn commit(&self) -> Result<(), StoreError>;
    /// After a transaction, before anyone hears of it.
    fn after(&self) -> BoxFuture<'_, ()>;
}

/// Jobs that wait for the writer; who comes after waits too.
const QUEUE: usize = 1024;
/// Jobs in one transaction at most: bounds how long the first of them waits for its answer.
const BATCH: usize = 256;
/// Runs of one job at most. The first is in one transaction with others, each later one in a transaction of its own.
const RUNS_MAX: usize = 3;

/// What a job's closure gives back.
pub type JobFuture<'t, T, E> = BoxFuture<'t, Result<T, E>>;

/// A job with its answer's channel inside.
trait Job: Send {
    /// Does the work, once more where it was done before; true where it is to be kept.
    fn run<'t>(&'t mut self, tx: &'t mut Tx) -> BoxFuture<'t, bool>;
    /// Lets go of what the work holds, such as locks: it is committed.
    fn release(&mut self);
    /// Answers the caller; `commit` says how the whole transaction of the last run went.
    fn answer(self: Box<Self>, commit: Result<(), StoreError>);
}

struct Typed<T, E, F> {
    work: Option<F>,
    ids: JobIds,
    outcome: Option<Result<T, E>>,
    answer: oneshot::Sender<Result<T, E>>,
}

impl<T, E, F> Job for Typed<T, E, F>
where
    F: for<'t> FnOnce(&'t mut Tx) -> JobFuture<'t, T, E> + Clone + Send,
    T: Send,
    E: From<StoreError> + Send,
{
    fn run<'t>(&'t mut self, tx: &'t mut Tx) -> BoxFuture<'t, bool> {
        Box::pin(async move {
            self.outcome = None;
            tx.begin_run(std::mem::take(&mut self.ids));
            let Some(work) = self.work.clone() else { return false };
            let outcome = work(tx).await;
            self.ids = tx.end_run();
            let keep = outcome.is_ok();
            self.outcome = Some(outcome);
            keep
        })
    }

    fn release(&mut self) {
        self.work = None;
    }

    fn answer(self: Box<Self>, commit: Result<(), StoreError>) {
        let outcome = match (self.outcome, commit) {
            // A job that failed by itself is answered with its own error, however the commit went.
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
    pub(crate) fn start_thread(connection: Read, listener: Listener) -> Result<Self, StoreError> {
        let (writer, run) = Self::new(connection, listener, None);
        let run = writer.task.track_future(run);
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || block_on(run))
            .map_err(|error| StoreError::Unavailable(format!("no thread for the writer: {error}")))?;
        Ok(writer)
    }

    /// As a task of the caller's runtime.
    pub(crate) fn start_task(connection: Read, listener: Listener, disk: Arc<dyn Disk>) -> Self {
        let (writer, run) = Self::new(connection, listener, Some(disk));
        writer.task.spawn(run);
        writer
    }

    fn new(
        connection: Read,
        listener: Listener,
        disk: Option<Arc<dyn Disk>>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let stop = CancellationToken::new();
        let task = TaskTracker::new();
        task.close();
        let worker = Worker { tx: Tx::new(connection), queue, listener, disk };
        let run = worker.run(stop.clone());
        (Self { jobs, stop, task }, run)
    }

    pub(crate) async fn run<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: for<'t> FnOnce(&'t mut Tx) -> JobFuture<'t, T, E> + Clone + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let closed = || E::from(StoreError::Unavailable("the store is closed".into()));
        let (answer, outcome) = oneshot::channel();
        let job = Box::new(Typed { work: Some(work), ids: JobIds::default(), outcome: None, answer });
        self.jobs.send(job).await.map_err(|_| closed())?;
        outcome.await.unwrap_or_else(|_| Err(closed()))
    }

    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.task.wait().await;
    }
}

/// What runs the jobs.
struct Worker {
    tx: Tx,
    queue: mpsc::Receiver<Box<dyn Job>>,
    listener: Listener,
    disk: Option<Arc<dyn Disk>>,
}

/// Why a transaction was rolled back.
struct RolledBack {
    error: StoreError,
    /// The place of the job in which SQLite ended the transaction; none where no job did.
    culprit: Option<usize>,
    /// The same transaction may succeed when it is run again.
    may_pass: bool,
}

impl From<StoreError> for RolledBack {
    fn from(error: StoreError) -> Self {
        Self { error, culprit: None, may_pass: false }
    }
}

impl Worker {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            let first = tokio::select! {
                biased;
                job = self.queue.recv() => job,
                () = stop.cancelled(), if !self.queue.is_closed() => {
                    // No new jobs; those that are in the queue are still done.
                    self.queue.close();
                    continue;
                }
            };
            let Some(first) = first else { break };
            self.settle(first).await;
        }
        if let Err(error) = self.tx.close() {
            tracing::warn!(%error, "the database did not close cleanly");
        }
    }

    /// Runs and answers a job, and those that wait behind it. The job that brought their transaction down is answered with its error, the
    /// others are run again.
    async fn settle(&mut self, first: Box<dyn Job>) {
        let mut batch = vec![first];
        let Err(rolled_back) = self.transaction(&mut batch, true).await else {
            return batch.into_iter().for_each(|job| job.answer(Ok(())));
        };
        let is_alone = batch.len() == 1;
        for (place, job) in batch.into_iter().enumerate() {
            if rolled_back.culprit == Some(place) || (is_alone && !rolled_back.may_pass) {
                job.answer(Err(rolled_back.error.clone()));
            } else {
                self.run_alone(job).await;
            }
        }
    }

    /// Runs and answers a job whose first transaction was rolled back.
    async fn run_alone(&mut self, job: Box<dyn Job>) {
        let mut alone = vec![job];
        let mut outcome = self.transaction(&mut alone, false).await;
        for _ in 2..RUNS_MAX {
            if outcome.as_ref().err().is_some_and(|rolled_back| rolled_back.may_pass) {
                outcome = self.transaction(&mut alone, false).await;
            }
        }
        let outcome = outcome.map_err(|rolled_back| rolled_back.error);
        alone.into_iter().for_each(|job| job.answer(outcome.clone()));
    }

    /// Runs these jobs, and those that wait where they `may_join`, in one transaction; has what follows from its commit done.
    async fn transaction(&mut self, batch: &mut Vec<Box<dyn Job>>, may_join: bool) -> Result<(), RolledBack> {
        if let Some(disk) = &self.disk {
            disk.before().await?;
        }
        let committed = self.commit(batch, may_join).await;
        if let Some(disk) = &self.disk {
            disk.after().await;
        }
        let follow_up = committed?;
        batch.iter_mut().for_each(|job| job.release());
        self.follow_up(follow_up);
        Ok(())
    }

    /// What follows from the transaction, which is committed or rolled back.
    async fn commit(&mut self, batch: &mut Vec<Box<dyn Job>>, may_join: bool) -> Result<FollowUp, RolledBack> {
        self.tx.control("BEGIN IMMEDIATE")?;
        let outcome = match self.run_jobs(batch, may_join).await {
            Ok(follow_up) => self.end().map(|()| follow_up),
            Err(rolled_back) => Err(rolled_back),
        };
        if outcome.is_err()
            && self.tx.is_in_transaction()
            && let Err(error) = self.tx.control("ROLLBACK")
        {
            tracing::error!(%error, "a transaction could not be rolled back");
        }
        outcome
    }

    fn end(&mut self) -> Result<(), RolledBack> {
        let committed = self.disk.as_ref().map_or(Ok(()), |disk| disk.commit());
        committed.and_then(|()| self.tx.control("COMMIT")).map_err(|error| {
            // A full disk is full a moment later, too; one that does not answer may.
            let may_pass = matches!(error, StoreError::Unavailable(_));
            RolledBack { error, culprit: None, may_pass }
        })
    }

    async fn run_jobs(&mut self, batch: &mut Vec<Box<dyn Job>>, may_join: bool) -> Result<FollowUp, RolledBack> {
        let (mut all, mut next) = (FollowUp::default(), 0);
        while next < batch.len() {
            self.tx.control("SAVEPOINT job")?;
            // A fault of one job is not the end of all of them: what it has done is taken back, and who asked for it is told.
            let keep = AssertUnwindSafe(batch[next].run(&mut self.tx)).catch_unwind().await.unwrap_or_else(|_| {
                tracing::error!("a job of the store panicked; what it did is taken back");
                false
            });
            let follow_up = self.tx.take_follow_up();
            if !self.tx.is_in_transaction() {
                // SQLite ends it where a statement meets a full or failing disk (sqlite.org/lang_transaction.html). The job says which.
                let error = Tx::ended_by_database();
                return Err(RolledBack { error, culprit: Some(next), may_pass: false });
            }
            if keep {
                all.append(follow_up);
            } else {
                self.tx.control("ROLLBACK TO job")?;
            }
            self.tx.control("RELEASE job")?;
            next += 1;
            while may_join && batch.len() < BATCH {
                let Ok(job) = self.queue.try_recv() else { break };
                batch.push(job);
            }
        }
        Ok(all)
    }

    /// Does what follows from a commit: first what jobs have asked for, then the listener is told, so that who hears of the commit finds the
    /// rest done.
    fn follow_up(&self, FollowUp { notice, effects }: FollowUp) {
        let mut are_done = true;
        for effect in effects {
            are_done &= catch_unwind(AssertUnwindSafe(effect)).is_ok();
        }
        if !notice.is_empty() {
            are_done &= catch_unwind(AssertUnwindSafe(|| (self.listener)(notice))).is_ok();
        }
        if !are_done {
            tracing::error!("what follows from a commit panicked");
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that can't go on should say where, and this one makes panics"
)]
mod tests;
