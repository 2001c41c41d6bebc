//! What an error looks like outside: an RFC 9457 problem document with a stable code.
//!
//! [`Code`] is the one table of codes; each has a page `docs/errors/CODE.md`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `application/problem+json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{title}: {detail}")]
pub struct Problem {
    /// A reference to the code's page.
    #[serde(rename = "type")]
    pub kind: String,
    /// The code in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What programs should look at.
    pub code: Code,
    /// What happened and what to do, for a person.
    pub detail: String,
    /// Which fields are at fault.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// One field that is at fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// Its path in the body or query, such as `resources.memory`; `.` for the whole.
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $status:literal, $title:literal;)*) => {
        /// Every code there is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $text)] $variant,)*
        }

        impl Code {
            /// All of them, for documentation and its check.
            pub const ALL: &[Code] = &[$(Code::$variant),*];

            /// As written outside.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text,)* }
            }

            /// Its HTTP status.
            pub fn status(self) -> u16 {
                match self { $(Code::$variant => $status,)* }
            }

            /// In words.
            pub fn title(self) -> &'static str {
                match self { $(Code::$variant => $title,)* }
            }
        }
    };
}

codes! {
    /// A field is wrong.
    InvalidInput = "invalid_input", 422, "Invalid input";
    /// The body is not JSON of the right shape, or not JSON at all.
    InvalidBody = "invalid_body", 400, "Invalid body";
    /// The query or the path is wrong.
    InvalidRequest = "invalid_request", 400, "Invalid request";
    /// No token, or one that is unknown, expired or revoked.
    Unauthenticated = "unauthenticated", 401, "Not authenticated";
    /// The caller may not do this.
    Forbidden = "forbidden", 403, "Not allowed";
    /// There is no such thing, or the caller may not see it.
    NotFound = "not_found", 404, "Not found";
    /// The path does not take this method.
    MethodNotAllowed = "method_not_allowed", 405, "Method not allowed";
    /// The `Accept` header allows none of what there is.
    NotAcceptable = "not_acceptable", 406, "Not acceptable";
    /// More than one thing has this name.
    AmbiguousName = "ambiguous_name", 409, "Ambiguous name";
    /// The name is taken.
    NameTaken = "name_taken", 409, "Name taken";
    /// The session was terminated.
    SessionTerminated = "session_terminated", 409, "Session terminated";
    /// The session was deleted.
    SessionDeleted = "session_deleted", 409, "Session deleted";
    /// The session is paused.
    SessionPaused = "session_paused", 409, "Session paused";
    /// The session failed too often.
    SessionFailed = "session_failed", 409, "Session failed";
    /// The state of the session forbids it.
    InvalidState = "invalid_state", 409, "Not possible in this state";
    /// A checkpoint could not be taken.
    CheckpointFailed = "checkpoint_failed", 503, "Checkpoint failed";
    /// Something that a workspace is made of is missing.
    WorkspaceDamaged = "workspace_damaged", 500, "Workspace damaged";
    /// A record in the database is not as it must be.
    RecordDamaged = "record_damaged", 409, "Record damaged";
    /// An image, an archive or a layer cannot be used.
    ImageUnusable = "image_unusable", 422, "Image cannot be used";
    /// The registry wants (other) credentials.
    RegistryRefused = "registry_refused", 403, "Registry refuses";
    /// The registry is where only an administrator may have the server go.
    RegistryNotAllowed = "registry_not_allowed", 403, "Registry not allowed";
    /// The registry has no such thing.
    RegistryNotFound = "registry_not_found", 404, "Not in the registry";
    /// The registry does not answer, or not as it should.
    RegistryUnavailable = "registry_unavailable", 503, "Registry unavailable";
    /// An agent is still assigned to sessions.
    AgentInUse = "agent_in_use", 409, "Agent in use";
    /// The file or directory is not what the call needs it to be.
    FileConflict = "file_conflict", 409, "Wrong kind of file";
    /// It is not what the request's conditions say.
    Stale = "stale", 412, "Changed meanwhile";
    /// Too many bytes.
    TooLarge = "too_large", 413, "Too large";
    /// The request has a `Content-Range`.
    PartialUpload = "partial_upload", 400, "Partial upload";
    /// The call does not look at conditions.
    PreconditionUnsupported = "precondition_unsupported", 400, "Condition not supported";
    /// There is nothing of the file in the range that is asked for.
    RangeNotSatisfiable = "range_not_satisfiable", 416, "Range not satisfiable";
    /// The body is not of the media type, or is encoded.
    UnsupportedMediaType = "unsupported_media_type", 415, "Unsupported media type";
    /// The `Idempotency-Key` was used for something else.
    IdempotencyKeyReused = "idempotency_key_reused", 422, "Idempotency key reused";
    /// Too much at once.
    Busy = "busy", 429, "Too much at once";
    /// A fault of the server.
    Internal = "internal", 500, "Internal error";
    /// A part the server needs is away.
    Unavailable = "unavailable", 503, "Unavailable";
    /// The session takes more of the disk than it may.
    DiskQuotaExceeded = "disk_quota_exceeded", 507, "Disk quota exceeded";
    /// The disk of the server is full.
    DiskFull = "disk_full", 503, "Disk full";
}

// By hand: the derived schema does not see names that come out of a macro.
impl utoipa::PartialSchema for Code {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        let words = Code::ALL.iter().map(|code| code.as_str());
        let object = utoipa::openapi::ObjectBuilder::new().schema_type(utoipa::openapi::schema::Type::String);
        object.enum_values(Some(words)).description(Some("Every code there is.")).into()
    }
}

impl ToSchema for Code {
    fn name() -> std::borrow::Cow<'static, str> {
        "Code".into()
    }
}

impl Problem {
    /// A problem with this code; `detail` says what happened and what to do.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("/docs/errors/{}", code.as_str()),
            title: code.title().to_owned(),
            status: code.status(),
            code,
            detail: detail.into(),
            errors: Vec::new(),
        }
    }

    /// One field is wrong.
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::fields(vec![FieldError { field: field.into(), message: message.into() }])
    }

    /// Some fields are wrong.
    pub fn fields(errors: Vec<FieldError>) -> Self {
        let detail: Vec<String> = errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
        Self { errors, ..Self::new(Code::InvalidInput, detail.join("; ")) }
    }
}
