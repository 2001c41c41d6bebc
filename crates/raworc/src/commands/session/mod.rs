//! `raworc session`.

use clap::Subcommand;

use crate::context::Context;
use crate::failure::Result;

mod agents;
mod attached;
mod change;
mod cp;
pub mod create;
mod exec;
pub mod files;
mod follow;
mod listing;
mod log;
mod remix;
mod send;
mod shell;
mod show;
mod usage;

/// Manage sessions. SESSION is an id or a name.
#[derive(Debug, Subcommand)]
pub enum Session {
    /// Create a session: a container with its own workspace.
    Create(create::Create),
    /// List sessions, newest first.
    #[command(visible_alias = "ls")]
    List(listing::List),
    /// Show one session.
    #[command(after_help = "Example:\n  raworc session get demo")]
    Get(change::Named),
    /// Change the given settings of a session; the others stay.
    Update(change::Update),
    /// Send a message to a session, and show the output.
    Send(send::Send),
    /// Show the conversation of a session.
    Messages(listing::Messages),
    /// List the events of a session.
    Events(log::Events),
    /// Watch a session live: states, messages and output.
    Follow(follow::Follow),
    /// Pause a session: its container stops, messages wait, the workspace stays.
    #[command(after_help = "Example:\n  raworc session pause demo")]
    Pause(change::Named),
    /// Resume a paused session, or start the container of an idle one.
    #[command(after_help = "Example:\n  raworc session resume demo")]
    Resume(change::Named),
    /// Terminate a session: it takes no more messages; the workspace stays.
    #[command(after_help = "Example:\n  raworc session terminate demo\n\n`raworc session restore` undoes it.")]
    Terminate(change::Named),
    /// Replace the container of a session; the workspace stays.
    #[command(after_help = "Example:\n  raworc session restart demo")]
    Restart(change::Named),
    /// Terminate and hide a session.
    #[command(
        visible_alias = "rm",
        after_help = "Example:\n  raworc session delete demo\n\n`raworc session restore ID` undoes it; \
                      `raworc session list --include-deleted` shows the id."
    )]
    Delete(change::Several),
    /// Restore a terminated or deleted session.
    #[command(after_help = "Example:\n  raworc session restore 0192f1d2-0000-7000-8000-000000000000")]
    Restore(change::Named),
    /// Create a session from another one, with its settings, conversation and workspace as of now or of a checkpoint.
    Remix(remix::Remix),
    /// Show a session and all sessions made from it.
    #[command(after_help = "Example:\n  raworc session tree demo")]
    Tree(change::Named),
    /// Cancel the running or a queued message of a session.
    #[command(after_help = "Examples:\n  raworc session cancel demo\n  raworc session cancel demo --message ID")]
    Cancel(change::Cancel),
    /// Show or change the agents of a session.
    #[command(subcommand)]
    Agents(agents::Agents),
    /// List, read, write and delete files of a session's workspace.
    #[command(subcommand)]
    Files(files::Files),
    Cp(cp::Cp),
    /// Run a command in a session, beside its conversation.
    Exec(exec::Exec),
    /// Open a terminal in a session.
    Shell(shell::Shell),
    /// List the open terminals of a session.
    #[command(after_help = "Example:\n  raworc session terminals demo")]
    Terminals(change::Named),
    /// Show what a session has used: calls of models, tokens and cost.
    #[command(after_help = "Example:\n  raworc session usage demo")]
    Usage(change::Named),
    /// Show a call of a model by a program in a session, with what was said.
    ModelCall(usage::ModelCallArgs),
}

/// Runs the command.
pub async fn run(context: &Context, command: Session) -> Result<()> {
    use change::LifecycleVerb;
    match command {
        Session::Create(args) => create::run(context, args).await,
        Session::List(args) => listing::list(context, args).await,
        Session::Get(named) => change::get(context, &named).await,
        Session::Update(args) => change::update(context, args).await,
        Session::Send(args) => send::run(context, args).await,
        Session::Messages(args) => listing::messages(context, args).await,
        Session::Events(args) => log::events(context, args).await,
        Session::Follow(args) => follow::run(context, args).await,
        Session::Pause(named) => change::lifecycle(context, &named, LifecycleVerb::Pause).await,
        Session::Resume(named) => change::lifecycle(context, &named, LifecycleVerb::Resume).await,
        Session::Terminate(named) => change::lifecycle(context, &named, LifecycleVerb::Terminate).await,
        Session::Restart(named) => change::lifecycle(context, &named, LifecycleVerb::Restart).await,
        Session::Restore(named) => change::lifecycle(context, &named, LifecycleVerb::Restore).await,
        Session::Cancel(args) => change::cancel(context, args).await,
        Session::Remix(args) => remix::run(context, args).await,
        Session::Tree(named) => remix::tree(context, &named.session).await,
        Session::Delete(several) => change::delete(context, &several).await,
        Session::Agents(command) => agents::run(context, command).await,
        Session::Files(command) => files::run(context, command).await,
        Session::Cp(args) => cp::run(context, args).await,
        Session::Exec(args) => exec::run(context, args).await,
        Session::Shell(args) => shell::run(context, args).await,
        Session::Usage(named) => usage::usage(context, &named.session).await,
        Session::ModelCall(args) => usage::model_call(context, args).await,
        Session::Terminals(named) => listing::terminals(context, &named.session).await,
    }
}
