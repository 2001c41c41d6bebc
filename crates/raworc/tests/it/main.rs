//! End-to-end tests: the real program, real containers, HTTP and the command line.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod accounts;
mod attached;
mod bad_input;
mod checkpoints;
mod cli;
mod conditional;
mod conversation;
mod copy;
mod crash;
#[path = "../../../oci/tests/it/daemon.rs"]
mod daemon;
mod damage;
mod disk;
mod exec;
mod file_names;
mod files;
mod full_disk;
mod fuzz;
mod gateway;
mod harness;
mod health;
mod images;
mod isolation;
mod leases;
mod leftovers;
mod limits;
mod load;
mod messages;
mod misled;
mod model_agents;
mod oci_runtime;
mod portable;
mod programs;
mod providers;
mod races;
mod raw;
mod run_dir;
mod secrets;
mod sessions;
mod streams;
mod stub_provider;
mod system;
mod terminal;
mod transfers;
mod turns;
