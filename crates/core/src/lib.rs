//! The rules of Raworc, without effects: no I/O, no clock, no randomness, no async.
//!
//! Whatever decides lives here; whatever does lives in the crates below. See ARCHITECTURE.md.

pub mod checkpoints;
pub mod conversation;
pub mod events;
pub mod ids;
pub mod known_providers;
pub mod layers;
pub mod limits;
pub mod link;
pub mod models;
pub mod names;
pub mod permissions;
pub mod pieces;
pub mod quantity;
pub mod secrets;
pub mod session;
pub mod time;
pub mod turn;
