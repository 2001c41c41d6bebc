//! `raworc session exec`.

use clap::Args;
use raworc_api::workspace::{Exec as Body, ExecCommand, ExecResult};
use raworc_core::limits::MESSAGE_BYTES_MAX;

use crate::context::Context;
use crate::failure::{EXIT_FAILED, EXIT_SIGNALLED, EXIT_TIMED_OUT, Failure, Result};
use crate::input;
use crate::live::left_out;
use crate::output::Style;
use crate::progress::Progress;
use crate::text::span;

const EXAMPLES: &str = "\
Examples:
  raworc session exec demo ls -l
  raworc session exec demo --script 'grep -r TODO . | wc -l'
  raworc session exec demo --directory src --env CI=1 --timeout 10m -- cargo test
  raworc session exec demo --stdin cat < notes.txt

Output appears when the command has ended. The exit status is the command's own; 128 and the signal's number where \
a signal ended it; 124 where it took too long; 127 or 126 where the program was not found or could not be run.";

/// Options of `raworc session exec`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Exec {
    /// Its id or name.
    session: String,
    /// The program and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required_unless_present = "script")]
    command: Vec<String>,
    /// A script for the shell in place of a program.
    #[arg(long, value_name = "SCRIPT", conflicts_with = "command")]
    script: Option<String>,
    /// Give the program what comes on standard input.
    #[arg(long, conflicts_with = "script")]
    stdin: bool,
    /// An environment variable on top of the session's; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = input::variable)]
    env: Vec<(String, String)>,
    /// Where to start [default: /workspace].
    #[arg(long, value_name = "DIR")]
    directory: Option<String>,
    /// End it after so long, such as 90 or 10m [default: 60].
    #[arg(long, value_name = "DURATION", value_parser = input::seconds)]
    timeout: Option<u64>,
}

/// Runs a command.
pub async fn run(context: &Context, args: Exec) -> Result<()> {
    let body = Body {
        stdin: if args.stdin { stdin()? } else { String::new() },
        command: args.script.map_or(ExecCommand::Words(args.command), ExecCommand::Script),
        env: args.env.into_iter().collect(),
        directory: args.directory,
        timeout_seconds: args.timeout,
    };
    let client = context.client()?;
    let mut progress = Progress::start(&context.ui, "running");
    let result = client.exec(&args.session, &body).await;
    progress.stop();
    let result = result?;
    show(context, &result)?;
    match exit_status(&result) {
        0 => Ok(()),
        status => Err(Failure::Status(status)),
    }
}

fn stdin() -> Result<String> {
    let bytes = input::standard_input()?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(Failure::usage(format!("standard input is longer than {MESSAGE_BYTES_MAX} bytes"))
            .help("Put it into a file of the session with `raworc session files put`."));
    }
    String::from_utf8(bytes).map_err(|_| Failure::usage("standard input is not UTF-8 text"))
}

fn show(context: &Context, result: &ExecResult) -> Result<()> {
    let ui = context.ui;
    if ui.is_json() {
        return ui.json(result);
    }
    ui.out(&result.stdout)?;
    ui.error(&result.stderr);
    if result.output_bytes_dropped > 0 {
        ui.note(&left_out(result.output_bytes_dropped, result.output_file.as_deref()));
    }
    let why = match (result.timed_out, result.signal, result.exit_code) {
        (true, _, _) => format!("it took too long and was ended after {}", span(result.duration_seconds)),
        (false, Some(signal), _) => format!("signal {signal} ended it"),
        (false, None, None) => "it could not be started".to_owned(),
        (false, None, Some(_)) => return Ok(()),
    };
    ui.error(format!("{}\n", ui.paint_error(Style::Bad, &why)));
    Ok(())
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
