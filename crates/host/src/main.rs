//! The host: the first process of every container. It asks the server for work, runs it, and reports.
//!
//! A small static program that needs nothing of the root filesystem it runs in. Threads instead of an async runtime: one
//! for everything that is decided ([`host`]), one that waits for signals, one that reads from the server, and one for
//! the output of each piece of work.

mod connection;
mod gate;
mod host;
mod processes;
mod signals;
mod utf8;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;

use raworc_core::link::{SOCKET_PATH, TOKEN_VARIABLE};

fn main() -> ExitCode {
    let Ok(token) = std::env::var(TOKEN_VARIABLE) else {
        eprintln!("{TOKEN_VARIABLE} is not set: this program is started by Raworc, inside its containers");
        return ExitCode::from(2);
    };
    let socket = std::env::args_os().nth(1).map_or_else(|| PathBuf::from(SOCKET_PATH), PathBuf::from);
    let (events, inbox) = mpsc::channel();
    // Before anything can end: no child's end is missed.
    let started = signals::start(events.clone()).and_then(|reaping| {
        connection::start(socket, events.clone()).map(|()| host::Host::new(token, events, reaping))
    });
    match started {
        Ok(host) => ExitCode::from(host.run(&inbox)),
        Err(error) => {
            eprintln!("the host could not start: {error}");
            ExitCode::from(1)
        }
    }
}
