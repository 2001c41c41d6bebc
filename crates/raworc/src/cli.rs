//! The command line: all commands, and how a run ends.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use raworc_runtime::native::rootless;

use crate::commands::{
    self, account, agent, audit, checkpoint, image, provider, run, secret, serve, session, system, token,
};
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

/// Run AI agents in sessions: isolated containers with a persistent workspace.
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
    /// Give one task to a new session, and show its output.
    Run(run::Run),
    /// Create sessions, send them messages, watch and change them.
    #[command(subcommand, visible_alias = "sessions")]
    Session(session::Session),
    /// Save, list, compare and restore versions of a session's workspace.
    #[command(subcommand, visible_alias = "checkpoints")]
    Checkpoint(checkpoint::Checkpoint),
    /// Pull and import images for containers, list and delete them.
    #[command(subcommand, visible_alias = "images")]
    Image(image::Image),
    /// Define the agents that sessions can use.
    #[command(subcommand, visible_alias = "agents")]
    Agent(agent::Agent),
    /// Add providers of models and their keys, list and change them.
    #[command(subcommand, visible_alias = "providers")]
    Provider(provider::Provider),
    /// Show the models that agents may use.
    #[command(subcommand, visible_alias = "models")]
    Model(provider::Model),
    /// Keep secrets for sessions: add, list and change them.
    #[command(subcommand, visible_alias = "secrets")]
    Secret(secret::Secret),
    /// Manage the accounts that may use the server.
    #[command(subcommand, visible_alias = "accounts")]
    Account(account::Account),
    /// Manage the access tokens of programs and people.
    #[command(subcommand, visible_alias = "tokens")]
    Token(token::Token),
    Audit(audit::Audit),
    /// Show the account of the token in use.
    #[command(after_help = "Example:\n  raworc me --output json")]
    Me,
    /// Run the server.
    Serve(serve::Serve),
    /// Show what uses disk space on the server, and free it.
    #[command(subcommand)]
    System(system::System),
    /// Show the health of the server; exits with 1 unless it is healthy.
    #[command(after_help = "Example:\n  raworc health && echo up")]
    Health,
    /// Show the version of this program and of the server.
    #[command(after_help = "Example:\n  raworc version --output json")]
    Version,
    /// Check whether this machine can run containers, and say how to fix what is missing.
    #[command(after_help = "Example:\n  raworc doctor\n\nEnds with 1 if something needed is missing.")]
    Doctor,
    /// Print the completion script of a shell.
    #[command(after_help = "Examples:\n  raworc completions bash > /etc/bash_completion.d/raworc\n  \
                            raworc completions zsh > ~/.zfunc/_raworc")]
    Completions {
        /// The shell to complete for.
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

/// Does what must come before a second thread: a rootless server enters a user namespace.
fn prepare(cli: &mut Cli) -> Result<()> {
    let starts_a_server = match &cli.command {
        Command::Serve(_) => true,
        Command::Run(_) => !connect::is_there(&cli.global),
        _ => false,
    };
    if starts_a_server {
        // The home directory differs inside the namespace.
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
            // A pending read of standard input must not delay the exit.
            runtime.shutdown_background();
            result
        })
}

async fn dispatch(context: &Context, command: Command) -> Result<()> {
    // Boxed, so that small commands do not need the largest one's stack.
    match command {
        Command::Run(args) => Box::pin(run::run(context, args)).await,
        Command::Session(command) => Box::pin(session::run(context, command)).await,
        Command::Checkpoint(command) => Box::pin(checkpoint::run(context, command)).await,
        Command::Image(command) => Box::pin(image::run(context, command)).await,
        Command::Agent(command) => Box::pin(agent::run(context, command)).await,
        Command::Provider(command) => Box::pin(provider::run(context, command)).await,
        Command::Model(command) => Box::pin(provider::run_model(context, command)).await,
        Command::Secret(command) => Box::pin(secret::run(context, command)).await,
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
