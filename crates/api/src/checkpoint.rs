//! Versions of a session's workspace.

use jiff::Timestamp;
use raworc_core::checkpoints::{Cause, Policy};
use raworc_core::ids::SessionId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// The checkpoint settings of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointPlan {
    /// `each_message`, `on_stop`, `every` or `manual`.
    #[schema(value_type = String, example = "each_message")]
    pub policy: Policy,
    /// With `every`: the interval in seconds.
    pub every_seconds: Option<u64>,
    /// How many of the newest checkpoints are kept, besides those with a label.
    pub keep_last: u32,
}

/// Changes to the checkpoint settings. Absent fields get their default, or stay unchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointPlanWanted {
    /// `each_message` (after each message that changed the workspace, and at each stop; the default), `on_stop`,
    /// `every` (at an interval, and at each stop) or `manual`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub policy: Option<Policy>,
    /// With `every`: the interval in seconds, 5 to 604800.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_seconds: Option<u64>,
    /// How many of the newest checkpoints are kept, besides those with a label: 1 to 10000, default 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_last: Option<u32>,
}

/// Automatic backups of a session's checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackupWanted {
    /// `REGISTRY/REPOSITORY`, without a tag; empty turns backups off. Checkpoint 3 gets the tag `SESSION_ID-3`, and
    /// the newest one also `SESSION_ID`. The server's own credentials are used.
    pub registry: String,
    /// Minimum interval in seconds, 5 to 604800; default 60. Checkpoints in between are not backed up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_seconds: Option<u64>,
}

/// The backup settings of a session, and their status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Backup {
    /// `REGISTRY/REPOSITORY`.
    pub registry: String,
    /// Minimum interval in seconds.
    pub every_seconds: u64,
    /// The newest checkpoint that was backed up.
    pub checkpoint: Option<u64>,
    /// When it was backed up.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub at: Option<Timestamp>,
    /// Why the last attempt failed; it is retried.
    pub error: Option<String>,
}

/// `POST /sessions/{id}/checkpoints`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateCheckpoint {
    /// A label of 1 to 128 characters. Labelled checkpoints are kept as long as their session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// The progress of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointStatus {
    /// It will be taken.
    Pending,
    /// Its content is fixed and being flushed to the disk.
    Saving,
    /// It is safe on the disk and can be used.
    Ready,
    /// It could not be taken.
    Failed,
}

/// A version of a session's workspace, with the corresponding point in the conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Checkpoint {
    /// The session it belongs to.
    #[schema(value_type = String, format = "uuid")]
    pub session_id: SessionId,
    /// Its number in the session: 1, 2, 3, …
    pub n: u64,
    /// Its label.
    pub label: Option<String>,
    /// Why it was taken: `message`, `stop`, `every`, `start`, `request`, `rewind` or `remix`.
    #[schema(value_type = String)]
    pub cause: Cause,
    /// `pending`, `saving`, `ready` or `failed`.
    #[schema(value_type = String)]
    pub status: CheckpointStatus,
    /// The `seq` of the last event that belongs to it.
    pub seq: u64,
    /// Size of all files in bytes.
    pub size_bytes: u64,
    /// Number of files.
    pub files: u64,
    /// Size in bytes of the files that changed since the previous checkpoint.
    pub changed_bytes: u64,
    /// Seconds from its start until it was safe on the disk.
    pub took_seconds: f64,
    /// Seconds for which the container was frozen.
    pub frozen_seconds: f64,
    /// Why it failed.
    pub error: Option<String>,
    /// Who requested it.
    pub created_by: String,
    /// When it was requested.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// Query of `GET /sessions/{id}/checkpoints`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListCheckpoints {
    /// Page size, 1 to 500; default 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// The `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Query of `GET /sessions/{id}/checkpoints/{n}/diff`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DiffQuery {
    /// The version to compare with: the number or label of a checkpoint, or `now`; of another session as
    /// `SESSION@NUMBER`. Absent: the previous checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Only this file, with a text diff.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// How a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It exists only in the later version.
    Added,
    /// It exists in both and differs.
    Changed,
    /// It exists only in the earlier version.
    Deleted,
}

/// One path that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// The path in the workspace; bytes that are not UTF-8 appear as U+FFFD.
    pub path: String,
    /// The path in base64, if it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<String>,
    /// How it differs.
    pub change: ChangeKind,
    /// `file`, `directory`, `symlink` or `other`.
    pub kind: crate::workspace::FileKind,
    /// Size in bytes in the earlier version.
    pub size_before: Option<u64>,
    /// Size in bytes in the later version.
    pub size_after: Option<u64>,
}

/// The differences between two versions of a workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Diff {
    /// The earlier version: a number, `now`, or `empty` before the first.
    pub from: String,
    /// The later version.
    pub to: String,
    /// Differences, sorted by path.
    pub items: Vec<Difference>,
    /// Whether some differences were left out.
    pub truncated: bool,
    /// With `path`: the difference in unified format; absent if there is none or the file is binary.
    pub unified: Option<String>,
    /// With `path`: whether the file is binary or too large for a text diff.
    pub is_binary: bool,
}
