//! Tests through the outside: the real program, real containers, HTTP and the command line.

mod bad_input;
mod harness;
mod isolation;
mod messages;
mod raw;
mod sessions;
