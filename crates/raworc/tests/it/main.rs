//! Tests through the outside: the real program, real containers, HTTP and the command line.

mod harness;
mod isolation;
mod messages;
mod sessions;
