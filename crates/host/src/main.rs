//! The host: the first process of every container. It asks the server for work, runs it, and reports.
//!
//! A small static program that needs nothing of the root filesystem it runs in, and one thread: [`host`] waits for
//! everything at once (signals, the server, what agents write), so that nothing has to be locked, a process is reaped by
//! the thread that started it, and the way from a frame to its answer leads through no other thread.

mod attachment;
mod connection;
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
use std::path::PathBuf;
use std::process::ExitCode;

use raworc_core::link::{SCRIPTS_PATH, SOCKET_PATH, TOKEN_BYTES_MAX, WORKSPACE_PATH};

fn main() -> ExitCode {
    if let Some(status) = launch::become_program() {
        return status;
    }
    close_inherited();
    let Some(token) = token() else {
        eprintln!("no token came: this program is started by Raworc, inside its containers");
        return ExitCode::from(2);
    };
    let path = |nth, usual: &str| std::env::args_os().nth(nth).map_or_else(|| PathBuf::from(usual), PathBuf::from);
    let paths = host::Paths {
        socket: path(1, SOCKET_PATH),
        scripts: path(2, SCRIPTS_PATH),
        workspace: path(3, WORKSPACE_PATH),
    };
    match host::Host::new(token, paths) {
        Ok(host) => ExitCode::from(host.run()),
        Err(error) => {
            eprintln!("the host could not start: {error}");
            ExitCode::from(1)
        }
    }
}

/// Waits until there is a session, for as long as it takes.
fn token() -> Option<String> {
    let mut line = String::new();
    stdin().lock().take(TOKEN_BYTES_MAX as u64).read_line(&mut line).ok()?;
    // Without its end it is not whole.
    line.strip_suffix('\n').filter(|token| !token.is_empty()).map(str::to_owned)
}

/// Closes whatever a container runtime left open by mistake: agents would inherit a way out. To be called before anything
/// is opened.
fn close_inherited() {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<i32> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // One of them read the directory, and is closed already.
        let _ = nix::unistd::close(descriptor);
    }
}
