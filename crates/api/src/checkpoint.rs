//! Versions of a session's workspace.

use jiff::Timestamp;
use raworc_core::checkpoints::{Cause, Policy};
use raworc_core::ids::SessionId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// A session's plan for its checkpoints, in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointPlan {
    /// `each_message`, `on_stop`, `every` or `manual`.
    #[schema(value_type = String, example = "each_message")]
    pub policy: Policy,
    /// Time between two of them with `every`.
    pub every_seconds: Option<u64>,
    /// How many of the newest are kept, beside those with a label.
    pub keep_last: u32,
}

/// The plan wanted; what is absent gets its default, or stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointPlanWanted {
    /// `each_message` (the end of each message that changed the workspace, and every stop; the default), `on_stop`, `every`
    /// (by the clock, and every stop) or `manual`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub policy: Option<Policy>,
    /// With `every`: time between two of them, 5 to 604800.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_seconds: Option<u64>,
    /// How many of the newest are kept, beside those with a label: 1 to 10000, 20 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_last: Option<u32>,
}

/// Where a session's checkpoints are to be sent by themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackupWanted {
    /// `REGISTRY/REPOSITORY`, without a tag; empty: nowhere any more. Checkpoint 3 gets the tag `SESSION_ID-3`, and the newest
    /// one `SESSION_ID`, too. With the server's own credentials.
    pub registry: String,
    /// Least time between two of them, 5 to 604800; 60 where absent. What comes between is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_seconds: Option<u64>,
}

/// Where a session's checkpoints are sent by themselves, and how that gets on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Backup {
    /// `REGISTRY/REPOSITORY`.
    pub registry: String,
    /// Least time between two of them.
    pub every_seconds: u64,
    /// The newest checkpoint that is there.
    pub checkpoint: Option<u64>,
    /// Since when.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub at: Option<Timestamp>,
    /// Why the next one could not be sent, the last time; it is tried again.
    pub error: Option<String>,
}

/// `POST /sessions/{id}/checkpoints`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateCheckpoint {
    /// A name; one with a name is kept until its session is gone. 1 to 128 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// How far a checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointStatus {
    /// It is going to be taken.
    Pending,
    /// It is fixed, and being brought to the disk.
    Saving,
    /// It can be used, whatever happens.
    Ready,
    /// It could not be taken.
    Failed,
}

/// A version of a session's workspace, and the point of its conversation that belongs to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Checkpoint {
    /// Whose.
    #[schema(value_type = String, format = "uuid")]
    pub session_id: SessionId,
    /// 1, 2, 3, … in its session.
    pub n: u64,
    /// Its name.
    pub label: Option<String>,
    /// Why it was taken: `message`, `stop`, `every`, `start`, `request`, `rewind` or `remix`.
    #[schema(value_type = String)]
    pub cause: Cause,
    /// `pending`, `saving`, `ready` or `failed`.
    #[schema(value_type = String)]
    pub status: CheckpointStatus,
    /// The last event of the session that belongs to it.
    pub seq: u64,
    /// Bytes of all files.
    pub size_bytes: u64,
    /// All files.
    pub files: u64,
    /// Bytes of the files that changed since the one before.
    pub changed_bytes: u64,
    /// From when it was begun until it was safe.
    pub took_seconds: f64,
    /// How long the container stood still for it.
    pub frozen_seconds: f64,
    /// Why it could not be taken.
    pub error: Option<String>,
    /// Who wanted it.
    pub created_by: String,
    /// When it was wanted.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// Query of `GET /sessions/{id}/checkpoints`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListCheckpoints {
    /// Rows of a page, 1 to 500; 50 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Where to go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Query of `GET /sessions/{id}/checkpoints/{n}/diff`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DiffQuery {
    /// What to compare with: the number or label of an older (or newer) checkpoint, or `now`; of another session as
    /// `SESSION@NUMBER`. Absent: the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Only this file, with its difference as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// How a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It is only in the later one.
    Added,
    /// It is in both, and not the same.
    Changed,
    /// It is only in the earlier one.
    Deleted,
}

/// One path that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// From the workspace down; bytes that are not UTF-8 appear as U+FFFD.
    pub path: String,
    /// Its bytes in base64, where they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<String>,
    /// How.
    pub change: ChangeKind,
    /// `file`, `directory`, `symlink` or `other`.
    pub kind: crate::workspace::FileKind,
    /// Bytes in the earlier one.
    pub size_before: Option<u64>,
    /// Bytes in the later one.
    pub size_after: Option<u64>,
}

/// What differs between two versions of a workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Diff {
    /// The earlier one: a number, `now`, or `empty` before the first.
    pub from: String,
    /// The later one.
    pub to: String,
    /// By path.
    pub items: Vec<Difference>,
    /// Whether there are more than are told.
    pub truncated: bool,
    /// With `path`: the difference in unified format; absent where there is none, or where the file is no text.
    pub unified: Option<String>,
    /// With `path`: whether the file is no text, or too large to be compared as one.
    pub is_binary: bool,
}
