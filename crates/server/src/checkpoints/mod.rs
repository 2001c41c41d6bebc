//! Saving workspaces: which sessions are to be saved, and how that is done while they go on.

pub mod capture_bases;
pub mod job;
mod live_capture;
pub mod queue;
pub mod save;
mod save_error;
pub mod timers;
