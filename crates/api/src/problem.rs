//! Errors of the API: RFC 9457 problem documents with stable codes.
//!
//! [`Code`] lists all codes; each has a page `docs/errors/CODE.md`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `application/problem+json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{title}: {detail}")]
pub struct Problem {
    /// A link to the code's page.
    #[serde(rename = "type")]
    pub kind: String,
    /// The title of the code.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The code, for programs.
    pub code: Code,
    /// What happened and what to do, for people.
    pub detail: String,
    /// The invalid fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// An invalid field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// Its path in the body or query, such as `resources.memory`; `.` for the whole.
    pub field: String,
    /// What is wrong, and what would be valid.
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
            /// All codes.
            pub const ALL: &[Code] = &[$(Code::$variant),*];

            /// The code as text.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text,)* }
            }

            /// Its HTTP status.
            pub fn status(self) -> u16 {
                match self { $(Code::$variant => $status,)* }
            }

            /// The code's title.
            pub fn title(self) -> &'static str {
                match self { $(Code::$variant => $title,)* }
            }
        }
    };
}

codes! {
    /// A field is invalid.
    InvalidInput = "invalid_input", 422, "Invalid input";
    /// The body is not JSON, or has the wrong shape.
    InvalidBody = "invalid_body", 400, "Invalid body";
    /// The query or the path is invalid.
    InvalidRequest = "invalid_request", 400, "Invalid request";
    /// There is no token, or it is unknown, expired or revoked.
    Unauthenticated = "unauthenticated", 401, "Not authenticated";
    /// The account lacks permission.
    Forbidden = "forbidden", 403, "Not allowed";
    /// It does not exist, or the account may not see it.
    NotFound = "not_found", 404, "Not found";
    /// The path does not support this method.
    MethodNotAllowed = "method_not_allowed", 405, "Method not allowed";
    /// The `Accept` header allows no available representation.
    NotAcceptable = "not_acceptable", 406, "Not acceptable";
    /// Several records have this name.
    AmbiguousName = "ambiguous_name", 409, "Ambiguous name";
    /// The name is in use.
    NameTaken = "name_taken", 409, "Name taken";
    /// The session was terminated.
    SessionTerminated = "session_terminated", 409, "Session terminated";
    /// The session was deleted.
    SessionDeleted = "session_deleted", 409, "Session deleted";
    /// The session is paused.
    SessionPaused = "session_paused", 409, "Session paused";
    /// The session failed too often.
    SessionFailed = "session_failed", 409, "Session failed";
    /// The state of the session does not allow it.
    InvalidState = "invalid_state", 409, "Not possible in this state";
    /// The checkpoint could not be taken.
    CheckpointFailed = "checkpoint_failed", 503, "Checkpoint failed";
    /// A layer of the workspace is missing.
    WorkspaceDamaged = "workspace_damaged", 500, "Workspace damaged";
    /// A record in the database is damaged.
    RecordDamaged = "record_damaged", 409, "Record damaged";
    /// An image, archive or layer is invalid.
    ImageUnusable = "image_unusable", 422, "Image cannot be used";
    /// The registry requires (other) credentials.
    RegistryRefused = "registry_refused", 403, "Registry refuses";
    /// Only administrators may use this registry.
    RegistryNotAllowed = "registry_not_allowed", 403, "Registry not allowed";
    /// The registry does not have it.
    RegistryNotFound = "registry_not_found", 404, "Not in the registry";
    /// The registry does not answer, or answers incorrectly.
    RegistryUnavailable = "registry_unavailable", 503, "Registry unavailable";
    /// The file with the keys that secrets are encrypted with is missing, or no such file.
    KeyFileUnusable = "key_file_unusable", 409, "Key file cannot be used";
    /// An agent is still assigned to sessions.
    AgentInUse = "agent_in_use", 409, "Agent in use";
    /// The file or directory has the wrong type for this call.
    FileConflict = "file_conflict", 409, "Wrong kind of file";
    /// The state does not match the request's conditions.
    Stale = "stale", 412, "Changed meanwhile";
    /// Too many bytes.
    TooLarge = "too_large", 413, "Too large";
    /// The request has a `Content-Range`.
    PartialUpload = "partial_upload", 400, "Partial upload";
    /// The call does not support conditions.
    PreconditionUnsupported = "precondition_unsupported", 400, "Condition not supported";
    /// The file has no bytes in the requested range.
    RangeNotSatisfiable = "range_not_satisfiable", 416, "Range not satisfiable";
    /// The body has the wrong media type, or an encoding.
    UnsupportedMediaType = "unsupported_media_type", 415, "Unsupported media type";
    /// The `Idempotency-Key` was used for another request.
    IdempotencyKeyReused = "idempotency_key_reused", 422, "Idempotency key reused";
    /// Too many requests at once.
    Busy = "busy", 429, "Too much at once";
    /// An error in the server.
    Internal = "internal", 500, "Internal error";
    /// A part of the server is unavailable.
    Unavailable = "unavailable", 503, "Unavailable";
    /// The session exceeds its disk limit.
    DiskQuotaExceeded = "disk_quota_exceeded", 507, "Disk quota exceeded";
    /// The disk of the server is full.
    DiskFull = "disk_full", 503, "Disk full";
}

// Written by hand: the derived schema does not see names from a macro.
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

    /// A problem with one invalid field.
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::fields(vec![FieldError { field: field.into(), message: message.into() }])
    }

    /// A problem with several invalid fields.
    pub fn fields(errors: Vec<FieldError>) -> Self {
        let detail: Vec<String> = errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
        Self { errors, ..Self::new(Code::InvalidInput, detail.join("; ")) }
    }
}
