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
mod log;
mod look;
mod remix;
mod send;
mod shell;
mod show;

/// Commands about sessions. SESSION is an id or a name everywhere.
#[derive(Debug, Subcommand)]
pub enum Session {
    /// Make a session: a container with a workspace of its own.
    Create(create::Create),
    /// List sessions, the newest first.
    #[command(visible_alias = "ls")]
    List(look::List),
    /// Show one session.
    #[command(after_help = "Example:\n  raworc session get demo")]
    Get(change::Named),
    /// Change settings of a session; what is not named stays.
    Update(change::Update),
    /// Give a session work, and show its output as it comes.
    Send(send::Send),
    /// Show the conversation of a session.
    Messages(look::Messages),
    /// List what happened in a session.
    Events(log::Events),
    /// Watch a session live: its states, its messages and their output.
    Follow(follow::Follow),
    /// Let a session rest: its container goes, messages wait, the workspace stays.
    #[command(after_help = "Example:\n  raworc session pause demo")]
    Pause(change::Named),
    /// Let a paused or resting session work again.
    #[command(after_help = "Example:\n  raworc session resume demo")]
    Resume(change::Named),
    /// End a session for good: it takes no more messages; the workspace stays.
    #[command(after_help = "Example:\n  raworc session terminate demo\n\n`raworc session restore` undoes it.")]
    Terminate(change::Named),
    /// Give a session a new container; the workspace stays.
    #[command(after_help = "Example:\n  raworc session restart demo")]
    Restart(change::Named),
    /// End a session and hide it.
    #[command(
        visible_alias = "rm",
        after_help = "Example:\n  raworc session delete demo\n\n`raworc session restore ID` undoes it; \
                      `raworc session list --include-deleted` shows the id."
    )]
    Delete(change::Several),
    /// Undo a termination or deletion.
    #[command(after_help = "Example:\n  raworc session restore 0192f1d2-0000-7000-8000-000000000000")]
    Restore(change::Named),
    /// Make a session from another one: its settings, its conversation, its workspace, as of now or of a checkpoint.
    Remix(remix::Remix),
    /// Show a session with all that were made from it.
    #[command(after_help = "Example:\n  raworc session tree demo")]
    Tree(change::Named),
    /// Stop the message that a session works on, or one that waits.
    #[command(after_help = "Examples:\n  raworc session cancel demo\n  raworc session cancel demo --message ID")]
    Cancel(change::Cancel),
    /// Show or change which agents a session has.
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
    /// List the terminals that are open in a session.
    #[command(after_help = "Example:\n  raworc session terminals demo")]
    Terminals(change::Named),
}

/// Carries one out.
pub async fn run(context: &Context, command: Session) -> Result<()> {
    use change::LifecycleVerb;
    match command {
        Session::Create(args) => create::run(context, args).await,
        Session::List(args) => look::list(context, args).await,
        Session::Get(named) => change::get(context, &named).await,
        Session::Update(args) => change::update(context, args).await,
        Session::Send(args) => send::run(context, args).await,
        Session::Messages(args) => look::messages(context, args).await,
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
        Session::Terminals(named) => look::terminals(context, &named.session).await,
    }
}
