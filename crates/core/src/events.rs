//! Events: what the log of a session can say. Each kind is a type here, and nothing else is ever written.
//!
//! A kind is its wire name and the fields of its `data`. From the same lines follow what is stored ([`LogEvent::data`]), how it
//! is read ([`LogEvent::read`]) and its schema in the OpenAPI document ([`kinds`]). Names and fields are for ever: logs are kept,
//! and clients read them. A field that comes later is an `Option` that is left out where it is not known, so that older logs are
//! read as well.
//!
//! What begins has an end: `message.started` is followed by one `message.requeued` or `message.finished` with the same `turn_id`,
//! `exec.started` by `exec.finished`, `terminal.opened` by `terminal.closed`.

#[macro_use]
mod schema;
mod kinds;
mod parts;
#[cfg(test)]
mod tests;
mod words;

pub use kinds::*;
pub use parts::*;
pub use schema::{Described, Kind};
pub use words::*;
