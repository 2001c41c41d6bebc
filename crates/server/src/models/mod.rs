//! Models: which there are, and where a call of one goes.

pub mod catalog;
pub mod recordings;
