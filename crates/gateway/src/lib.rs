//! The gateway: what a container reaches outside. It stands outside of the container, speaks the APIs of model providers to programs
//! inside, and adds the keys that they never have.
//!
//! It stores nothing and knows no sessions' records: what it may do, and what is to be recorded, goes through [`ports`].

pub mod dialect;
pub mod ports;
