//! The HTTP API: bodies, problems, and a typed client.
//!
//! Request bodies reject unknown fields. Times are RFC 3339 in UTC; durations end in `_seconds`.

pub mod account;
pub mod agent;
pub mod audit;
pub mod checkpoint;
pub mod client;
pub mod disk;
pub mod event;
pub mod health;
pub mod image;
pub mod message;
pub mod model_call;
pub mod page;
pub mod problem;
pub mod provider;
pub mod secret;
pub mod session;
pub mod terminal;
pub mod workspace;

/// The path prefix of all calls.
pub const PREFIX: &str = "/api/v0";
