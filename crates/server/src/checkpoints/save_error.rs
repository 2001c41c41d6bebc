//! What may go wrong while a workspace is saved, and what is told of it.

use raworc_core::ids::LayerId;
use raworc_workspace::FileError;

use crate::error::Failure;

/// What kept a workspace from being saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The records: to be tried again.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// The disk is full: to be told.
    #[error("the disk is full")]
    DiskFull,
    /// The workspace has directories that are too deep: to be told.
    #[error("{}", FileError::TooDeep)]
    TooDeep,
    /// The workspace lacks something: to be told.
    #[error("{}", FileError::LayerMissing(*.0))]
    LayerMissing(LayerId),
    /// The workspace, or the container: to be told.
    #[error("{0}")]
    Workspace(String),
}

impl SaveError {
    /// What is said of it outside.
    pub fn told(&self) -> String {
        match self {
            Self::DiskFull => "the server's disk is full; free some space".to_owned(),
            Self::TooDeep => format!("{self}: the workspace is not saved until they are gone"),
            Self::LayerMissing(_) => self.to_string(),
            Self::Failure(failure) if failure.damage().is_some() => {
                "the record of something that the workspace is made of is damaged; have an administrator mend it"
                    .to_owned()
            }
            Self::Failure(_) | Self::Workspace(_) => {
                "the workspace could not be saved; the server's log says why".to_owned()
            }
        }
    }
}

impl From<raworc_runtime::RuntimeError> for SaveError {
    fn from(error: raworc_runtime::RuntimeError) -> Self {
        Self::Workspace(error.to_string())
    }
}

impl From<std::io::Error> for SaveError {
    fn from(error: std::io::Error) -> Self {
        FileError::from(error).into()
    }
}

impl From<FileError> for SaveError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::DiskFull => Self::DiskFull,
            FileError::TooDeep => Self::TooDeep,
            FileError::LayerMissing(layer) => Self::LayerMissing(layer),
            other => Self::Workspace(other.to_string()),
        }
    }
}

impl From<raworc_store::StoreError> for SaveError {
    fn from(error: raworc_store::StoreError) -> Self {
        Self::Failure(error.into())
    }
}
