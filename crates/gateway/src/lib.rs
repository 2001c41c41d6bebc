//! The gateway: what a container reaches outside. It stands outside of the container, speaks the APIs of model providers to programs
//! inside, and adds the keys that they never have.
//!
//! It stores nothing and knows no sessions' records: what it may do, and what is to be recorded, goes through [`ports`].
//!
//! A request goes through the files in this order: `gateway.rs` serves the connection, `route.rs` says what is asked, `call.rs` has it
//! admitted, `upstream.rs` sends it to the provider (again, while that helps: `backoff.rs`), and `relay.rs` passes the answer on.

mod answer;
mod backoff;
mod body;
mod call;
mod cancellable;
mod client;
pub mod dialect;
mod events;
mod failure;
mod gateway;
mod headers;
mod models;
mod plan;
pub mod ports;
mod probe;
mod recorder;
mod relay;
pub mod replay;
mod rooms;
mod route;
mod scrub;
pub mod sse;
mod stalled;
mod upstream;

pub use answer::Body as AnswerBody;
pub use client::{Client, ClientError, Socket};
pub use gateway::{Gateway, serve_connection};
pub use probe::{ProbeError, ProbeReport};
