//! The raworc program: the server and its command line.

use std::process::ExitCode;

mod cli;
mod commands;
mod config;
mod connect;
mod context;
mod event_text;
mod failure;
mod follow_message;
mod input;
mod output;
mod progress;
mod serve;
mod signals;
mod terminal;
mod text;

fn main() -> ExitCode {
    // The launcher forks, so it must start before there is another thread. It is internal and not listed as a
    // command.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "launcher") {
        return ExitCode::from(u8::try_from(raworc_launcher::main()).unwrap_or(1));
    }
    cli::main()
}
