//! Records, in SQL. One set of statements serves SQLite and PostgreSQL (`$1` parameters, TEXT and BIGINT columns).
//!
//! Reads go to a pool. Writes are jobs: closures that one writer runs in turn, many of them in one transaction (group
//! commit), so that each is durable when it is answered and the disk is asked to flush once for all that came together.

pub mod accounts;
pub mod agents;
pub mod audit;
pub mod events;
pub mod idempotency;
pub mod messages;
mod rows;
pub mod sessions;
pub mod settings;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use raworc_core::ids::SessionId;
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::{AnyConnection, AnyPool, ConnectOptions, Executor};
use std::str::FromStr;

pub use writer::{Job, JobFuture, Transaction};

/// Connections for reading.
const READERS: u32 = 4;
/// How long a statement waits for another process that holds the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// What can go wrong in the store.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full; nothing was changed.
    #[error("the disk is full")]
    DiskFull,
    /// The database does not answer.
    #[error("the store is away: {0}")]
    Unavailable(String),
    /// A unique value is taken.
    #[error("taken already")]
    Conflict,
    /// A record is not as it must be.
    #[error("a record is damaged: {0}")]
    Damaged(String),
    /// Anything else the database says.
    #[error("the store failed: {0}")]
    Failed(String),
}

/// SQLite's result codes for a full disk and for failing input or output (sqlite3.h).
const SQLITE_FULL: &str = "13";

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) if database.is_unique_violation() => StoreError::Conflict,
            sqlx::Error::Database(database) if database.code().as_deref() == Some(SQLITE_FULL) => StoreError::DiskFull,
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed | sqlx::Error::Io(_) => {
                StoreError::Unavailable(error.to_string())
            }
            _ => StoreError::Failed(error.to_string()),
        }
    }
}

impl From<serde_json::Error> for StoreError {
    fn from(error: serde_json::Error) -> Self {
        StoreError::Damaged(error.to_string())
    }
}

/// Told, after each commit, which sessions changed.
pub type Listener = Arc<dyn Fn(&[SessionId]) + Send + Sync>;

/// The records.
#[derive(Clone)]
pub struct Store {
    readers: AnyPool,
    writer: writer::Writer,
}

impl Store {
    /// Opens, and where needed makes, the SQLite database at `path`; brings its tables up to date.
    ///
    /// # Errors
    /// Where the file cannot be opened or is not a database of ours.
    pub async fn open_sqlite(path: &Path, listener: Listener) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let url = format!("sqlite://{}?mode=rwc", path.display());
        let options = AnyConnectOptions::from_str(&url)?.disable_statement_logging();
        let mut connection = options.connect().await?;
        prepare(&mut connection).await?;
        sqlx::migrate!("./migrations")
            .run(&mut connection)
            .await
            .map_err(|error| StoreError::Failed(format!("bringing the tables up to date: {error}")))?;
        let readers = AnyPoolOptions::new()
            .max_connections(READERS)
            .after_connect(|connection, _| Box::pin(async move { prepare(connection).await }))
            .connect_with(options)
            .await?;
        Ok(Self { readers, writer: writer::Writer::start(connection, listener) })
    }

    /// A connection for reading. What it sees is what was committed when each statement began.
    ///
    /// # Errors
    /// Where none is free in time.
    pub async fn read(&self) -> Result<sqlx::pool::PoolConnection<sqlx::Any>, StoreError> {
        Ok(self.readers.acquire().await?)
    }

    /// Runs `job` in a transaction of its own and answers once that is durable; rolled back where the job fails. The job
    /// runs to its end even if the caller goes away.
    ///
    /// # Errors
    /// The job's, or the store's.
    pub async fn write<T, E, F>(&self, job: F) -> Result<T, E>
    where
        F: for<'t> FnOnce(&'t mut Transaction) -> JobFuture<'t, T, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        self.writer.run(job).await
    }

    /// Answers where the store works.
    ///
    /// # Errors
    /// Where it does not.
    pub async fn check(&self) -> Result<(), StoreError> {
        let mut connection = self.read().await?;
        sqlx::query("SELECT 1").execute(&mut *connection).await?;
        Ok(())
    }

    /// Finishes the jobs at hand and closes the database.
    pub async fn close(&self) {
        self.writer.stop().await;
        self.readers.close().await;
    }
}

/// What every connection to SQLite needs. `synchronous=FULL` flushes each commit to the disk before it is answered.
async fn prepare(connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
    connection.execute(sqlx::query("PRAGMA journal_mode = WAL")).await?;
    connection.execute(sqlx::query("PRAGMA synchronous = FULL")).await?;
    connection.execute(sqlx::query("PRAGMA foreign_keys = ON")).await?;
    let busy = format!("PRAGMA busy_timeout = {}", BUSY_TIMEOUT.as_millis());
    connection.execute(sqlx::query(sqlx::AssertSqlSafe(busy))).await?;
    Ok(())
}
