//! `raworc session shell`.

use std::io::IsTerminal as _;

use clap::Args;
use raworc_api::terminal::OpenTerminal;
use raworc_api::workspace::{Exec, ExecCommand};
use serde::Serialize;

use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::terminal::{self, AttachOptions};
use crate::text::clean;

use super::attached;

const EXAMPLES: &str = "\
Examples:
  raworc session shell demo
  raworc session shell demo -- vim notes.txt
  raworc session shell demo --attach 0192f1d2-0000-7000-8000-000000000000
  echo 'ls -l; make' | raworc session shell demo

The exit status is that of what runs in it. At the beginning of a line, ~. detaches, ~~ types ~, and ~? lists these. A \
terminal that nobody is attached to ends after a minute. Where the connection is lost, it is made again for as long.

Where standard input is no terminal, there is none in the session either: the shell reads its commands from it.";

/// Characters of a complete id.
const ID_CHARACTERS: usize = 36;
/// A script that executes a shell reading standard input.
const BECOME_SHELL: &str = "command -v bash >/dev/null && exec bash; exec sh";

/// Options of `raworc session shell`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Shell {
    /// The session's id or name.
    session: String,
    /// The program to run in the terminal [default: a shell].
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Attach to an open terminal, given its id or the beginning of it.
    #[arg(long, value_name = "TERMINAL", conflicts_with = "command")]
    attach: Option<String>,
    /// Only show its output.
    #[arg(long, requires = "attach")]
    watch: bool,
    /// The working directory [default: /workspace].
    #[arg(long, value_name = "DIR", conflicts_with = "attach")]
    directory: Option<String>,
    /// Disable the escape sequence `~.`.
    #[arg(long)]
    no_escape: bool,
}

/// Opens or attaches to a terminal.
pub async fn run(context: &Context, args: Shell) -> Result<()> {
    if args.attach.is_none() && !std::io::stdin().is_terminal() {
        return without_terminal(context, args).await;
    }
    let terminal = match args.attach {
        Some(beginning) => Some(find(context, &args.session, &beginning).await?),
        None => None,
    };
    let query = OpenTerminal {
        command: if args.command.is_empty() { None } else { Some(json(&args.command)?) },
        directory: args.directory,
        terminal,
        watch: args.watch.then_some(true),
        ..OpenTerminal::default()
    };
    terminal::run(context, &args.session, query, AttachOptions { has_escape: !args.no_escape }).await
}

/// The id of the one open terminal whose id begins with `beginning`.
async fn find(context: &Context, session: &str, beginning: &str) -> Result<String> {
    let beginning = beginning.to_ascii_lowercase();
    if beginning.len() == ID_CHARACTERS {
        return Ok(beginning);
    }
    if beginning.is_empty() {
        return Err(Failure::usage("--attach wants the id of a terminal, or the beginning of it"));
    }
    let open = context.client()?.terminals(session).await?.items;
    let mut found = open.iter().filter(|terminal| terminal.id.starts_with(&beginning));
    let list = || match open.is_empty() {
        true => format!("None is open now; `raworc session shell {session}` opens one."),
        false => {
            let ids: Vec<String> =
                open.iter().map(|terminal| format!("{} ({})", terminal.id, clean(&terminal.command))).collect();
            format!("Open are: {}", ids.join(", "))
        }
    };
    match (found.next(), found.next()) {
        (Some(terminal), None) => Ok(terminal.id.clone()),
        (None, _) => {
            Err(Failure::usage(format!("no open terminal has an id that begins with {beginning:?}")).help(list()))
        }
        (Some(_), Some(_)) => Err(Failure::usage(format!("several ids begin with {beginning:?}")).help(list())),
    }
}

/// Encodes a value for the query of a terminal.
pub fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Failure::usage(error.to_string()))
}

async fn without_terminal(context: &Context, args: Shell) -> Result<()> {
    let command = if args.command.is_empty() {
        ExecCommand::Script(BECOME_SHELL.to_owned())
    } else {
        ExecCommand::Words(args.command)
    };
    let body = Exec { command, directory: args.directory, ..Exec::default() };
    attached::run(context, &args.session, body, true).await
}
