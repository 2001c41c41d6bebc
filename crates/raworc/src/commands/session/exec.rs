//! `raworc session exec`.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;

use clap::Args;
use raworc_api::terminal::OpenTerminal;
use raworc_api::workspace::{Exec as Body, ExecCommand, ExecResult};
use raworc_core::limits::MESSAGE_BYTES_MAX;

use crate::context::Context;
use crate::failure::{EXIT_FAILED, EXIT_SIGNALLED, EXIT_TIMED_OUT, Failure, Result};
use crate::input;
use crate::terminal::{self, AttachOptions};

use super::attached;
use super::shell::json;

const EXAMPLES: &str = "\
Examples:
  raworc session exec demo ls -l
  raworc session exec demo --script 'grep -r TODO . | wc -l'
  raworc session exec demo --directory /workspace/src --env CI=1 --timeout 10m -- cargo test
  tar c . | raworc session exec demo tar x
  raworc session exec demo -t -- vim notes.txt

Output appears as it comes. The program gets what comes on standard input, unless that is a terminal; --no-stdin keeps \
it, in a loop over lines for example. The exit status is the command's own; 128 and the signal's number where a signal \
ended it; 124 where it took too long; 127 or 126 where the program was not found or could not be run. The command ends \
when this one does.

With --output json, the result comes as one document when the command has ended: standard input is then at most 1 MiB \
of text, and the timeout 60 seconds where none is given.";

/// Options of `raworc session exec`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Exec {
    /// The session's id or name.
    session: String,
    /// The program and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required_unless_present = "script")]
    command: Vec<String>,
    /// A shell script to run instead of a program.
    #[arg(long, value_name = "SCRIPT", conflicts_with = "command")]
    script: Option<String>,
    /// Pass standard input to the program, even if it is a terminal.
    #[arg(long, short = 'i')]
    stdin: bool,
    /// Do not read standard input.
    #[arg(long, conflicts_with_all = ["stdin", "tty"])]
    no_stdin: bool,
    /// Run it in a terminal.
    #[arg(long, short = 't', conflicts_with = "timeout")]
    tty: bool,
    /// An environment variable that overrides the session's; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = input::variable)]
    env: Vec<(String, String)>,
    /// The working directory [default: /workspace].
    #[arg(long, value_name = "DIR")]
    directory: Option<String>,
    /// Time limit, such as 90 or 10m.
    #[arg(long, value_name = "DURATION", value_parser = input::seconds)]
    timeout: Option<u64>,
}

/// Runs a command.
pub async fn run(context: &Context, args: Exec) -> Result<()> {
    if args.tty {
        return in_terminal(context, args).await;
    }
    let feeds = args.stdin || (!args.no_stdin && !std::io::stdin().is_terminal());
    let is_script = args.script.is_some();
    let mut body = Body {
        stdin: String::new(),
        command: args.script.map_or(ExecCommand::Words(args.command), ExecCommand::Script),
        env: args.env.into_iter().collect(),
        directory: args.directory,
        timeout_seconds: args.timeout,
    };
    if !context.ui.is_json() {
        return attached::run(context, &args.session, body, feeds).await;
    }
    if feeds {
        body.stdin = stdin()?;
    }
    if is_script && !body.stdin.is_empty() {
        return Err(Failure::usage("with --output json, a script has no standard input")
            .help("Name a program, such as: bash -c SCRIPT; or add --no-stdin."));
    }
    let client = context.client()?;
    let result = client.exec(&args.session, &body).await?;
    context.ui.json(&result)?;
    match exit_status(&result) {
        0 => Ok(()),
        status => Err(Failure::Status(status)),
    }
}

/// Runs it in a terminal, connected to ours.
async fn in_terminal(context: &Context, args: Exec) -> Result<()> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("standard input is not a terminal").help("Leave --tty away to pipe something in."));
    }
    let command = if args.script.is_some() { args.script } else { Some(json(&args.command)?) };
    let env: BTreeMap<String, String> = args.env.into_iter().collect();
    let env = if env.is_empty() { None } else { Some(json(&env)?) };
    let query = OpenTerminal { command, env, directory: args.directory, ..OpenTerminal::default() };
    terminal::run(context, &args.session, query, AttachOptions { has_escape: true }).await
}

fn stdin() -> Result<String> {
    let bytes = input::standard_input()?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(Failure::usage(format!("standard input is longer than {MESSAGE_BYTES_MAX} bytes"))
            .help("Put it into a file of the session with `raworc session files put`."));
    }
    String::from_utf8(bytes).map_err(|_| Failure::usage("standard input is not UTF-8 text"))
}

fn exit_status(result: &ExecResult) -> u8 {
    if result.timed_out {
        return EXIT_TIMED_OUT;
    }
    let code = result.exit_code.or_else(|| result.signal.map(|signal| EXIT_SIGNALLED + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(EXIT_FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses() {
        let result = |exit_code, signal, timed_out| ExecResult {
            exit_code,
            signal,
            timed_out,
            stdout: String::new(),
            stderr: String::new(),
            duration_seconds: 0.0,
            output_bytes_dropped: 0,
            output_file: None,
        };
        for (result, status) in [
            (result(Some(0), None, false), 0),
            (result(Some(42), None, false), 42),
            (result(None, Some(9), false), 137),
            (result(None, Some(9), true), 124),
            (result(Some(127), None, false), 127),
            (result(None, None, false), 1),
        ] {
            assert_eq!(exit_status(&result), status, "{result:?}");
        }
    }
}
