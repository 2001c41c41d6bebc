//! The command line as a whole: what there is, and how a run of it ends.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use raworc_runtime::native::rootless;

use crate::commands::{self, account, agent, audit, checkpoint, image, run, serve, session, system, token};
use crate::config::Global;
use crate::connect;
use crate::context::Context;
use crate::failure::{Failure, Result};

const ABOUT: &str = "\
Raworc runs AI agents in sessions: isolated containers, each with a workspace that lasts, \
a conversation and a log of everything that happened.

Start the server once, or let `raworc run` start one for as long as its work takes.";

const EXAMPLES: &str = "\
Examples:
  raworc run 'echo hello'                      run a script in a fresh session and see its output
  raworc serve                                 start the server
  raworc session create --name demo            make a session that stays
  raworc session send demo 'ls -la'            give it work
  raworc session follow demo                   watch it
  raworc doctor                                see what this machine lacks

Exit status:
  0   it worked
  1   the work failed, or the server could not do it now
  2   the command line or the input is wrong: no such thing, not allowed, a bad value
  3   no server answers
  130 interrupted with Ctrl-C
`run`, `session send` and `session exec` end with the script's own exit status where it has one.

A server on this machine is found through its data directory; another one through --url and --token.";

/// Runs AI agents in sessions: isolated containers with a workspace that lasts.
#[derive(Debug, Parser)]
#[command(name = "raworc", version, about = ABOUT, after_help = EXAMPLES)]
#[command(arg_required_else_help = true, disable_help_subcommand = true, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Do one piece of work in a session of its own, and show its output as it comes.
    Run(run::Run),
    /// Make sessions, give them work, watch and change them.
    #[command(subcommand, visible_alias = "sessions")]
    Session(session::Session),
    /// Save, list, compare and restore the versions of a session's workspace.
    #[command(subcommand, visible_alias = "checkpoints")]
    Checkpoint(checkpoint::Checkpoint),
    /// Bring in images for containers to run, list and remove them.
    #[command(subcommand, visible_alias = "images")]
    Image(image::Image),
    /// Define the agents that sessions can use.
    #[command(subcommand, visible_alias = "agents")]
    Agent(agent::Agent),
    /// Manage who may use the server.
    #[command(subcommand, visible_alias = "accounts")]
    Account(account::Account),
    /// Manage the tokens that programs and people log in with.
    #[command(subcommand, visible_alias = "tokens")]
    Token(token::Token),
    Audit(audit::Audit),
    /// Show whose token is in use.
    #[command(after_help = "Example:\n  raworc me --output json")]
    Me,
    /// Run the server.
    Serve(serve::Serve),
    /// Show what takes space on the server's disk, and give it back.
    #[command(subcommand)]
    System(system::System),
    /// Ask the server how it is; ends with 1 unless all is well.
    #[command(after_help = "Example:\n  raworc health && echo up")]
    Health,
    /// Show the version of this program and of the server.
    #[command(after_help = "Example:\n  raworc version --output json")]
    Version,
    /// Check what this machine needs for running containers, and say how to get what is missing.
    #[command(after_help = "Example:\n  raworc doctor\n\nEnds with 1 if something needed is missing.")]
    Doctor,
    /// Print the completion script of a shell.
    #[command(after_help = "Examples:\n  raworc completions bash > /etc/bash_completion.d/raworc\n  \
                            raworc completions zsh > ~/.zfunc/_raworc")]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let mut cli = Cli::parse();
    let prepared = prepare(&mut cli);
    let context = Context::new(cli.global);
    let result = prepared.and_then(|()| execute(&context, cli.command));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(&context);
            ExitCode::from(failure.exit_status())
        }
    }
}

/// What has to be done before there is a second thread: a server of an ordinary user becomes root of its own namespace.
fn prepare(cli: &mut Cli) -> Result<()> {
    let starts_a_server = match &cli.command {
        Command::Serve(_) => true,
        Command::Run(_) => !connect::is_there(&cli.global),
        _ => false,
    };
    if starts_a_server {
        // In there, the user would have another home.
        cli.global.data_dir = Some(cli.global.data_dir()?);
        rootless::enter().map_err(|obstacle| Failure::failed(obstacle.found).help(obstacle.remedy))?;
    }
    Ok(())
}

fn execute(context: &Context, command: Command) -> Result<()> {
    tokio::runtime::Runtime::new()
        .map_err(|error| Failure::failed(format!("this process could not start its threads: {error}")))
        .and_then(|runtime| {
            let result = runtime.block_on(dispatch(context, command));
            // A read of standard input that nobody waits for any more must not hold up the end.
            runtime.shutdown_background();
            result
        })
}

async fn dispatch(context: &Context, command: Command) -> Result<()> {
    // Boxed, so that the state of the largest command is not that of every one.
    match command {
        Command::Run(args) => Box::pin(run::run(context, args)).await,
        Command::Session(command) => Box::pin(session::run(context, command)).await,
        Command::Checkpoint(command) => Box::pin(checkpoint::run(context, command)).await,
        Command::Image(command) => Box::pin(image::run(context, command)).await,
        Command::Agent(command) => Box::pin(agent::run(context, command)).await,
        Command::Account(command) => Box::pin(account::run(context, command)).await,
        Command::Token(command) => Box::pin(token::run(context, command)).await,
        Command::Audit(args) => Box::pin(audit::run(context, args)).await,
        Command::System(command) => Box::pin(system::run(context, command)).await,
        Command::Me => account::me(context).await,
        Command::Serve(args) => Box::pin(serve::run(context, &args)).await,
        Command::Health => commands::health::health(context).await,
        Command::Version => commands::health::version(context).await,
        Command::Doctor => commands::doctor::run(context).await,
        Command::Completions { shell } => commands::completions::run::<Cli>(context, shell),
    }
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
