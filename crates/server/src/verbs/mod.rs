//! Verbs: one file each. A verb asks whether the actor may, loads, lets core decide, and records state, events and audit
//! in one transaction. None of them touches a container: the loops do, from what was recorded.

pub mod accounts;
pub mod agents;
pub mod archives;
pub mod assign_agents;
pub mod audit;
pub mod cancel_message;
pub mod check;
pub mod checkpoints;
pub mod create_session;
pub mod disk;
pub mod exec;
pub mod files;
pub mod find;
pub mod health;
pub mod idempotent;
pub mod images;
pub mod lifecycle;
pub mod model_calls;
pub mod models;
pub mod portable;
pub mod providers;
pub mod push;
pub mod remix;
pub mod rewind;
pub mod secrets;
pub mod send_message;
pub mod streams;
pub mod update_session;
