//! Tests through the outside: the real program, real containers, HTTP and the command line.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod accounts;
mod bad_input;
mod checkpoints;
mod cli;
mod crash;
mod exec;
mod files;
mod harness;
mod isolation;
mod messages;
mod oci_runtime;
mod raw;
mod sessions;
mod system;
