//! What can go wrong in the store.

use rusqlite::ErrorCode;

use crate::damages::Damage;

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
    Damaged(Box<Damage>),
    /// The file is no database, or not a whole one.
    #[error("the database file is damaged ({0}); docs/troubleshooting.md says what to do")]
    Corrupt(String),
    /// A newer release has changed the tables.
    #[error("the database was written by a newer release of Raworc; start that one, or put back a copy from before")]
    TooNew,
    /// Anything else the database says.
    #[error("the store failed: {0}")]
    Failed(String),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ffi::{SQLITE_CONSTRAINT_PRIMARYKEY, SQLITE_CONSTRAINT_UNIQUE};
        let text = error.to_string();
        match error {
            rusqlite::Error::SqliteFailure(failure, _) => match (failure.code, failure.extended_code) {
                (_, SQLITE_CONSTRAINT_UNIQUE | SQLITE_CONSTRAINT_PRIMARYKEY) => StoreError::Conflict,
                (ErrorCode::DiskFull, _) => StoreError::DiskFull,
                (ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase, _) => StoreError::Corrupt(text),
                (
                    ErrorCode::SystemIoFailure
                    | ErrorCode::CannotOpen
                    | ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
                    | ErrorCode::ReadOnly,
                    _,
                ) => StoreError::Unavailable(text),
                _ => StoreError::Failed(text),
            },
            _ => StoreError::Failed(text),
        }
    }
}

impl From<serde_json::Error> for StoreError {
    fn from(error: serde_json::Error) -> Self {
        StoreError::Failed(error.to_string())
    }
}
