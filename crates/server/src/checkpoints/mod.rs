//! Saving workspaces: which sessions are to be saved, and how that is done while they go on.

pub mod live_capture;
pub mod queue;
pub mod save_error;
