//! From what goes wrong inside to what is said outside. Internal text goes to the log, never into a problem.

use std::net::SocketAddr;
use std::path::PathBuf;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use raworc_api::problem::{Code, Problem};
use raworc_core::limits::QUEUED_MESSAGES_MAX;
use raworc_core::session::Refused;
use raworc_store::{Damage, StoreError};
use raworc_workspace::FileError;

use crate::encryption::{KEY_FILE, KeyFileError};
use crate::models::catalog::KeysError;

/// Seconds after which it is worth trying again where a backend is away or busy.
const RETRY_AFTER_SECONDS: u64 = 1;

/// Marks the answer to a caller who may not, for the audit trail.
#[derive(Clone, Copy, Debug)]
pub struct NotAllowed;

/// Why a verb did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Something the caller can understand.
    #[error(transparent)]
    Problem(Box<Problem>),
    /// The caller may not; the problem may say that there is no such thing.
    #[error(transparent)]
    NotAllowed(Box<Problem>),
    /// The state machine does not allow it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The records failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file did.
    #[error(transparent)]
    File(#[from] FileError),
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Failure::Problem(Box::new(problem))
    }
}

impl Failure {
    /// A problem with this code; `detail` says what happened and what to do.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Problem::new(code, detail).into()
    }

    /// There is no such thing, or the caller may not see it.
    pub fn not_found(what: &str, name: &str) -> Self {
        Self::new(Code::NotFound, format!("there is no {what} {name:?}, or you may not see it"))
    }

    /// What was to happen in a container has no container any more.
    pub fn container_ended() -> Self {
        Self::new(Code::InvalidState, "the session's container has just ended; try again")
    }

    /// What is wrong with a record, where that is why.
    pub fn damage(&self) -> Option<&Damage> {
        match self {
            Failure::Store(StoreError::Damaged(damage)) => Some(damage),
            Failure::Store(_)
            | Failure::Problem(_)
            | Failure::NotAllowed(_)
            | Failure::Refused(_)
            | Failure::File(_) => None,
        }
    }

    /// What is said outside.
    pub fn into_problem(self) -> Problem {
        match self {
            Failure::Problem(problem) | Failure::NotAllowed(problem) => *problem,
            Failure::Refused(refused) => refused_problem(refused),
            Failure::Store(error) => store_problem(&error),
            Failure::File(error) => file_problem(&error),
        }
    }
}

impl From<KeysError> for Failure {
    fn from(error: KeysError) -> Self {
        match error {
            KeysError::Store(error) => error.into(),
            KeysError::File(error) => key_file_problem(&error).into(),
        }
    }
}

fn key_file_problem(error: &KeyFileError) -> Problem {
    let what = match error {
        KeyFileError::Missing => "is missing, and other keys are encrypted with it",
        KeyFileError::Malformed => "does not contain keys as the server writes them",
        KeyFileError::Io(error) => {
            tracing::error!(%error, "the key file of the data directory cannot be accessed");
            "cannot be accessed"
        }
    };
    let detail = format!(
        "{KEY_FILE} of the server's data directory {what}; put it back from a copy. If there is none, remove the keys of all providers \
         (`api_key: null`) and all secrets: then the server makes a new one"
    );
    Problem::new(Code::KeyFileUnusable, detail)
}

fn refused_problem(refused: Refused) -> Problem {
    let problem = Problem::new;
    match refused {
        Refused::Deleted => {
            problem(Code::SessionDeleted, "the session is deleted; POST …/restore brings it back".to_owned())
        }
        Refused::Terminated => problem(
            Code::SessionTerminated,
            "the session is terminated and takes no more work; POST …/restore brings it back".to_owned(),
        ),
        Refused::Paused => problem(Code::SessionPaused, "the session is paused; POST …/resume first".to_owned()),
        Refused::GivenUp => problem(
            Code::SessionFailed,
            "the session is in ERROR and has used up its restarts; see its `error`, then POST …/restart".to_owned(),
        ),
        Refused::QueueFull => problem(
            Code::Busy,
            format!("{QUEUED_MESSAGES_MAX} messages wait in this session already; send more when some are done"),
        ),
        Refused::NothingToRestore
        | Refused::Rewinding
        | Refused::NothingToRewind
        | Refused::Starting
        | Refused::NothingRuns
        | Refused::NothingWaits
        | Refused::Running
        | Refused::NotReady
        | Refused::Fenced => problem(Code::InvalidState, format!("{refused}; GET the session to see its state")),
    }
}

fn store_problem(error: &StoreError) -> Problem {
    match error {
        StoreError::DiskFull => disk_full(),
        StoreError::Conflict => Problem::new(Code::Stale, "someone else changed it at the same time; read it again"),
        StoreError::Unavailable(_) => {
            tracing::error!(%error, "the store is away");
            Problem::new(Code::Unavailable, "the store does not answer; try again soon")
        }
        StoreError::Damaged(damage) => record_damaged(damage.table),
        StoreError::Corrupt(_) => {
            tracing::error!(%error, "the database file is damaged");
            let detail =
                "the server's database file is damaged; an administrator finds what to do in docs/troubleshooting.md";
            Problem::new(Code::Unavailable, detail)
        }
        StoreError::Failed(_) | StoreError::TooNew => {
            tracing::error!(%error, "the store failed");
            Problem::new(Code::Internal, "the server could not do this; its log says why")
        }
    }
}

fn record_damaged(table: &str) -> Problem {
    let of = match table {
        "sessions" => "the session",
        "agents" | "session_agents" => "the agent",
        "providers" => "the provider",
        "secrets" => "the secret",
        "accounts" => "the account",
        "tokens" => "the token",
        "images" => "the image",
        "layers" => "a layer that the workspace is made of",
        "checkpoints" => "the checkpoint",
        "messages" => "the message",
        _ => "something that this needs",
    };
    Problem::new(
        Code::RecordDamaged,
        format!(
            "the record of {of} is damaged, and set aside: nothing of it is removed, and everything else goes on. An administrator \
             sees with `raworc health` what is wrong, and can mend it"
        ),
    )
}

fn file_problem(error: &FileError) -> Problem {
    match error {
        FileError::NotFound => Problem::new(Code::NotFound, error.to_string()),
        FileError::BadPath(_) | FileError::Outside | FileError::Loop => Problem::field("path", error.to_string()),
        FileError::WrongKind(_) | FileError::Conflict(_) => Problem::new(Code::FileConflict, error.to_string()),
        FileError::BadArchive(_) => Problem::field("body", error.to_string()),
        FileError::TooLarge => Problem::new(Code::TooLarge, error.to_string()),
        FileError::Stale => stale().into_problem(),
        FileError::TooDeep => Problem::new(Code::FileConflict, error.to_string()),
        FileError::DiskFull => disk_full(),
        FileError::LayerMissing(layer) => {
            tracing::error!(%layer, "a layer was removed behind the server's back");
            Problem::new(
                Code::WorkspaceDamaged,
                format!("{error}; put its directory back, or go back to what does not need it"),
            )
        }
        FileError::Io(_) => {
            tracing::error!(%error, "a file could not be read or written");
            Problem::new(Code::Internal, "the server could not read or write this file; its log says why")
        }
    }
}

fn disk_full() -> Problem {
    Problem::new(Code::DiskFull, "the server's disk is full; nothing was changed. Free some space and try again")
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let is_allowed = !matches!(self, Failure::NotAllowed(_));
        let mut response = problem_response(&self.into_problem());
        if !is_allowed {
            response.extensions_mut().insert(NotAllowed);
        }
        response
    }
}

/// A problem as an answer.
pub fn problem_response(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, axum::Json(problem)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if matches!(problem.status, 429 | 503) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
    }
    if problem.status == 401 {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// 412.
pub fn stale() -> Failure {
    let detail = "it is not, or not any more, what the request's conditions say; nothing was changed. GET it again and decide anew";
    Failure::new(Code::Stale, detail)
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another server uses this data directory.
    #[error("another server is using the data directory {0}")]
    InUse(PathBuf),
    /// It cannot listen there.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    /// A file or directory cannot be used.
    #[error("{0}: {1}")]
    File(PathBuf, std::io::Error),
    /// The records cannot be opened.
    #[error("the records cannot be opened: {0}")]
    Store(#[from] StoreError),
    /// The first steps failed.
    #[error("{0}")]
    Other(String),
}

impl From<Failure> for StartError {
    fn from(failure: Failure) -> Self {
        StartError::Other(failure.to_string())
    }
}
