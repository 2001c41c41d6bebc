//! What goes over the wire between Raworc and everyone else: bodies, problems, and a typed client.
//!
//! Bodies that come in refuse unknown fields. Times are RFC 3339 in UTC, spans of time end in `_seconds`.

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
pub mod page;
pub mod problem;
pub mod session;
pub mod terminal;
pub mod workspace;

/// All calls live under this path.
pub const PREFIX: &str = "/api/v0";
