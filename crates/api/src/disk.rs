//! Disk usage of the server, and how to free space.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /system/disk`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskUsage {
    /// Size in bytes of the file system with the data directory.
    pub total_bytes: u64,
    /// Free bytes.
    pub free_bytes: u64,
    /// Bytes of the database: sessions, conversations, logs.
    pub records_bytes: u64,
    /// In use: workspaces of sessions that are not deleted, with their checkpoints and images.
    pub sessions: LayerUsage,
    /// Used by deleted sessions only. `prune` with `deleted_sessions_after_seconds` frees it.
    pub deleted_sessions: LayerUsage,
    /// Used by images without a session only. `prune` with `unused_images` frees it.
    pub unused_images: LayerUsage,
    /// Used by pulled or imported checkpoints only. They stay until they are deleted, as images.
    pub imported_checkpoints: LayerUsage,
    /// Bytes of running transfers, and leftovers of failed ones. `prune` frees the latter.
    pub transfers_bytes: u64,
    /// All other bytes: what sessions wrote since their last checkpoint, data that is being removed, other files, and
    /// overhead of the file system.
    pub other_bytes: u64,
    /// How `resources.disk` is enforced.
    pub limits: Limits,
}

/// How `resources.disk` of sessions is enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Limits {
    /// The file system rejects excess writes (project quotas).
    FileSystem,
    /// Usage is checked about once a second; sessions over their limit are stopped.
    #[default]
    Stopping,
}

/// Disk usage of layers, which checkpoints and images consist of. A shared layer counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LayerUsage {
    /// Number of layers.
    pub layers: u64,
    /// Size in bytes of their files.
    pub bytes: u64,
}

/// `POST /system/prune`. Always removes what nothing uses; the fields select more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Prune {
    /// Remove images that no session uses, but not pulled or imported checkpoints.
    #[serde(default)]
    pub unused_images: bool,
    /// Permanently remove workspaces and checkpoints of sessions that were deleted at least this long ago; 0 for all
    /// deleted ones, absent for none. Conversations and logs stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_sessions_after_seconds: Option<u64>,
}

/// The result of a prune.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pruned {
    /// Bytes that are free now, or will be soon.
    pub bytes: u64,
    /// Number of removed images.
    pub images: u64,
    /// Number of deleted sessions whose files were removed.
    pub sessions: u64,
}
