//! The layers that workspaces lie on: who reads them, what they take of the disk, and when they go.

pub mod chains;
pub mod disk_use;
pub mod garbage_queue;
pub mod pins;
pub mod quotas;
pub mod workspace_access;
