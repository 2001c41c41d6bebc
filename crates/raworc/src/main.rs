//! The raworc program: the server, and the command line that talks to it.

use std::process::ExitCode;

mod cli;
mod commands;
mod config;
mod connect;
mod context;
mod failure;
mod input;
mod live;
mod output;
mod progress;
mod serve;
mod signals;
mod terminal;
mod text;

fn main() -> ExitCode {
    // The launcher forks and runs Rust code in the child: it must be the first thing this process does, before there is
    // any other thread. It is for servers only, so it is no command that people are told about.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "launcher") {
        return ExitCode::from(u8::try_from(raworc_launcher::main()).unwrap_or(1));
    }
    cli::main()
}
