//! What takes space on the server's disk, and how to get it back.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /system/disk`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskUsage {
    /// Bytes of the file system that the data directory is on.
    pub total_bytes: u64,
    /// Bytes of it that are free.
    pub free_bytes: u64,
    /// Bytes of the records: sessions, conversations, logs.
    pub records_bytes: u64,
    /// What is in use: the workspaces of sessions that are not deleted, with their checkpoints, and the images they run.
    pub sessions: LayerUsage,
    /// What only deleted sessions still need. `prune` with `deleted_sessions_after_seconds` gives it back.
    pub deleted_sessions: LayerUsage,
    /// What only images need that no session runs. `prune` with `unused_images` gives it back.
    pub unused_images: LayerUsage,
    /// What only checkpoints need that were brought in. They stay until they are deleted, as images.
    pub imported_checkpoints: LayerUsage,
    /// Bytes of images on their way, and of what transfers that failed have left. `prune` gives the latter back.
    pub transfers_bytes: u64,
    /// Bytes of the file system that are taken by anything else: what sessions have written since they were saved, what is being
    /// removed, files that are not Raworc's, and what the file system keeps for itself.
    pub other_bytes: u64,
    /// How sessions are kept within their `resources.disk`.
    pub limits: Limits,
}

/// What keeps sessions within their `resources.disk`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Limits {
    /// The file system refuses what is too much (project quotas).
    FileSystem,
    /// They are looked at about once a second, and stopped where they have written too much.
    #[default]
    Stopping,
}

/// Layers: what checkpoints and images are made of. What many share is counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LayerUsage {
    /// How many.
    pub layers: u64,
    /// Bytes of the files in them.
    pub bytes: u64,
}

/// `POST /system/prune`. What nothing needs is removed in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Prune {
    /// Remove images that no session runs; not checkpoints that were brought in.
    #[serde(default)]
    pub unused_images: bool,
    /// Remove, for good, the workspaces and checkpoints of sessions that were deleted so long ago; 0 for all deleted ones.
    /// Their conversations and logs stay. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_sessions_after_seconds: Option<u64>,
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pruned {
    /// Bytes that are free again, or soon are.
    pub bytes: u64,
    /// Images.
    pub images: u64,
    /// Deleted sessions whose files are gone.
    pub sessions: u64,
}
