//! The host: the first process of every container. It gets work from the server, runs it, and reports the results.
//!
//! A small static program with one thread, independent of the root filesystem. [`host`] polls signals, the server and
//! the agents' output, so nothing is locked, and the thread that starts a process also reaps it.

mod attachment;
mod connection;
mod gateway;
mod head_tail;
mod host;
mod identity;
mod interactive;
mod launch;
mod output;
mod output_spill;
mod piped;
mod processes;
mod queries;
mod relay;
mod reports;
mod script;
mod signals;
mod spawn;
mod streams;
mod terminal;
mod utf8;
mod works;

use std::fs;
use std::io::{BufRead, Read, stdin};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::process::ExitCode;

use raworc_core::link::{GATEWAY_PORT, SCRIPTS_PATH, SOCKET_PATH, TOKEN_BYTES_MAX, WORKSPACE_PATH};

fn main() -> ExitCode {
    if let Some(status) = launch::exec_program() {
        return status;
    }
    close_inherited();
    let Some(token) = read_token() else {
        eprintln!("no token came: this program is started by Raworc, inside its containers");
        return ExitCode::from(2);
    };
    let path = |nth, usual: &str| std::env::args_os().nth(nth).map_or_else(|| PathBuf::from(usual), PathBuf::from);
    let paths = host::Paths {
        socket: path(1, SOCKET_PATH),
        scripts: path(2, SCRIPTS_PATH),
        workspace: path(3, WORKSPACE_PATH),
        gateway: gateway(),
    };
    match host::Host::new(token, paths) {
        Ok(host) => ExitCode::from(host.run()),
        Err(error) => {
            eprintln!("the host could not start: {error}");
            ExitCode::from(1)
        }
    }
}

/// Where programs find the gateway: as the fourth argument says, or at the usual place where nothing is said at all.
fn gateway() -> Option<SocketAddrV4> {
    let mut arguments = std::env::args().skip(1);
    if arguments.len() == 0 {
        Some(SocketAddrV4::new(Ipv4Addr::LOCALHOST, GATEWAY_PORT))
    } else {
        arguments.nth(3)?.parse().ok()
    }
}

/// Reads the token from standard input. Blocks until the container is assigned to a session.
fn read_token() -> Option<String> {
    let mut line = String::new();
    stdin().lock().take(TOKEN_BYTES_MAX as u64).read_line(&mut line).ok()?;
    // Without a line feed the token is truncated.
    line.strip_suffix('\n').filter(|token| !token.is_empty()).map(str::to_owned)
}

/// Closes descriptors that a container runtime leaked, because agents would inherit them. Call it before opening
/// anything.
fn close_inherited() {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<i32> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // The descriptor that read the directory is in the list but already closed.
        let _ = nix::unistd::close(descriptor);
    }
}
