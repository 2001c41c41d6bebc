//! Tests through the outside: the real program, real containers, HTTP and the command line.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod accounts;
mod bad_input;
mod checkpoints;
mod cli;
mod crash;
#[path = "../../../oci/tests/it/daemon.rs"]
mod daemon;
mod disk;
mod exec;
mod files;
mod harness;
mod images;
mod isolation;
mod messages;
mod oci_runtime;
mod portable;
mod raw;
mod sessions;
mod system;
mod terminal;
mod transfers;
