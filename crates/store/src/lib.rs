//! Records, in SQL. One set of statements is to serve SQLite and PostgreSQL (`$1` parameters, TEXT and BIGINT columns).
//!
//! Reads go to a pool ([`Read`]). Writes are jobs: closures that one writer runs in turn, many of them in one transaction ([`Tx`], group
//! commit), so that each is durable when it is answered and the disk is asked to flush once for all that came together.

pub mod accounts;
pub mod agents;
pub mod audit;
pub mod checkpoints;
pub mod conversation;
mod damages;
pub mod encrypted;
mod error;
pub mod events;
pub mod idempotency;
pub mod images;
pub mod layers;
pub mod messages;
pub mod model_calls;
pub mod providers;
mod readers;
mod rows;
mod scan;
pub mod secrets;
pub mod sessions;
pub mod set_aside;
pub mod settings;
mod sql;
pub mod streams;
mod tx;
mod writer;

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite_migration::{M, MigrationDefinitionError, Migrations};

use damages::DamageRegistry;
use readers::Readers;

pub use damages::Damage;
pub use encrypted::Encrypted;
pub use error::StoreError;
pub use readers::Reader;
pub use scan::ScanReport;
pub use sql::{Batch, Read, Sound};
pub use tx::{CommitNotice, Tx};
pub use writer::{Disk, JobFuture, Listener};

/// What brought the tables to what they are, oldest first. SQLite's `user_version` says how many have been applied.
const MIGRATIONS: &[M<'_>] = &[
    M::up(include_str!("../migrations/0001_initial.sql")),
    M::up(include_str!("../migrations/0002_losses.sql")),
    M::up(include_str!("../migrations/0003_checkpoints.sql")),
    M::up(include_str!("../migrations/0004_images.sql")),
    M::up(include_str!("../migrations/0005_backups.sql")),
    M::up(include_str!("../migrations/0006_purged.sql")),
    M::up(include_str!("../migrations/0007_disk.sql")),
    M::up(include_str!("../migrations/0008_damaged.sql")),
    M::up(include_str!("../migrations/0009_streams.sql")),
    M::up(include_str!("../migrations/0010_save_due.sql")),
    M::up(include_str!("../migrations/0011_edition.sql")),
    M::up(include_str!("../migrations/0012_audit_outcome.sql")),
    M::up(include_str!("../migrations/0013_conversation_segments.sql")),
    M::up(include_str!("../migrations/0014_providers.sql")),
    M::up(include_str!("../migrations/0015_secrets.sql")),
    M::up(include_str!("../migrations/0016_model_calls.sql")),
];
/// The records.
#[derive(Clone)]
pub struct Store {
    readers: Arc<Readers>,
    writer: writer::Writer,
    damages: Arc<DamageRegistry>,
}

impl Store {
    /// Opens, and where needed makes, the SQLite database at `path`; brings its tables up to date.
    ///
    /// # Errors
    /// Where the file cannot be opened or is not a database of ours.
    pub fn open_sqlite(path: &Path, listener: Listener) -> Result<Self, StoreError> {
        // All messages are in there. SQLite gives the files beside it the same mode.
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        file.and_then(|file| file.set_permissions(Permissions::from_mode(0o600)))
            .map_err(|error| StoreError::Unavailable(format!("{}: {error}", path.display())))?;
        let damages = Arc::<DamageRegistry>::default();
        let connection = prepare(path, &damages)?;
        let writer = writer::Writer::start_thread(connection, listener)?;
        Ok(Self { readers: Arc::new(Readers::new(path, &damages)), writer, damages })
    }

    /// The same on memory that all who open `name` in this process share, for as long as one of them does; everything runs
    /// in the tasks that call, so that a simulation is in command of the order. `disk` is asked around each transaction.
    ///
    /// # Errors
    /// Where the memory does not suffice.
    pub fn open_memory(name: &str, listener: Listener, disk: Arc<dyn Disk>) -> Result<Self, StoreError> {
        let path = PathBuf::from(format!("file:/{name}?vfs=memdb"));
        let damages = Arc::<DamageRegistry>::default();
        let connection = prepare(&path, &damages)?;
        let writer = writer::Writer::start_task(connection, listener, disk);
        Ok(Self { readers: Arc::new(Readers::new(&path, &damages)), writer, damages })
    }

    /// A connection for reading. What it sees is what was committed when each statement began.
    ///
    /// # Errors
    /// Where none can be opened.
    pub async fn read(&self) -> Result<Reader, StoreError> {
        Readers::take(&self.readers).await
    }

    /// Runs `job` in a transaction and answers once that is durable; rolled back where the job fails. The job runs to its end
    /// even if the caller goes away.
    ///
    /// It may be run again, where its transaction was rolled back through no fault of its own. Each run is of a clone of the closure, so it
    /// finds the same inputs and can use them up. A run may have no effect but on its transaction: it reads no clock, makes its ids with
    /// [`Tx::new_id`], and leaves what follows from its commit to [`Tx::after_commit`] and the notices beside it.
    ///
    /// # Errors
    /// The job's, or the store's.
    pub async fn write<T, E, F>(&self, job: F) -> Result<T, E>
    where
        F: for<'t> FnOnce(&'t mut Tx) -> JobFuture<'t, T, E> + Clone + Send + 'static,
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
        sql::sql("SELECT 1").fetch_optional(&mut connection, |_| Ok(())).await?;
        Ok(())
    }

    /// How many bytes the records take. (The one statement that is SQLite's own.)
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn bytes(&self) -> Result<u64, StoreError> {
        let mut connection = self.read().await?;
        let found = sql::sql("SELECT page_count * page_size AS bytes FROM pragma_page_count(), pragma_page_size()")
            .fetch_optional(&mut connection, |row| row.count("bytes"))
            .await?;
        Ok(found.unwrap_or(0))
    }

    /// Records that are known to be damaged; all there are, after [`Store::look_through`].
    pub fn damages(&self) -> Vec<Damage> {
        self.damages.all()
    }

    /// Finishes the jobs at hand and closes the database.
    pub async fn close(&self) {
        self.writer.stop().await;
        self.readers.close();
    }
}

/// A connection to a database with all its tables.
fn prepare(path: &Path, damages: &Arc<DamageRegistry>) -> Result<Read, StoreError> {
    let mut connection = sql::open(path)?;
    let failed = |error: &dyn std::fmt::Display| StoreError::Failed(format!("bringing the tables up to date: {error}"));
    Migrations::from_slice(MIGRATIONS).to_latest(&mut connection).map_err(|error| match error {
        rusqlite_migration::Error::MigrationDefinition(MigrationDefinitionError::DatabaseTooFarAhead) => {
            StoreError::TooNew
        }
        rusqlite_migration::Error::RusqliteError { err, .. } => match StoreError::from(err) {
            error @ (StoreError::Corrupt(_) | StoreError::DiskFull | StoreError::Unavailable(_)) => error,
            error => failed(&error),
        },
        error => failed(&error),
    })?;
    Ok(Read::new(connection, Arc::clone(damages)))
}
