//! Tests of the host through its protocol: the real program, as an ordinary process, over a real socket.

// What a test cannot go on without ends it, also in what tests share.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod connection;
mod detached;
mod endings;
mod gateway;
mod isolation;
mod latency;
mod output;
mod scripts;
mod server;
mod shutdown;
mod streams;
