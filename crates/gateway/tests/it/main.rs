//! The gateway between a scripted provider and a program, both in this process. Connections are in memory and time is paused, so that
//! nothing here depends on how fast a machine is.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod bad_days;
mod crossing;
mod forwarding;
mod hostile;
mod leaving;
mod replaying;
mod secrets;
mod sockets;
mod streams;
mod world;
