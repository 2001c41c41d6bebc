//! Commands that show or change a session.

use clap::Args;
use raworc_api::message::{Status, WaitQuery};
use raworc_api::session::{Session, UpdateSession};
use raworc_core::session::State;

use super::create::Settings;
use super::show;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::input;
use crate::text::clean;

/// One session.
#[derive(Debug, Args)]
pub struct Named {
    /// The session's id or name.
    pub session: String,
}

/// One or more sessions.
#[derive(Debug, Args)]
pub struct Several {
    /// Ids or names of sessions.
    #[arg(required = true)]
    sessions: Vec<String>,
}

/// Options of `raworc session cancel`.
#[derive(Debug, Args)]
pub struct Cancel {
    #[command(flatten)]
    named: Named,
    /// The message to stop, running or queued; `raworc session messages` shows ids [default: the running one].
    #[arg(long, value_name = "ID")]
    message: Option<String>,
}

/// Options of `raworc session update`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  raworc session update demo --name demo-2 --waiting-timeout 1h
  raworc session update demo --env A=1 --env B=2        replaces all variables
  raworc session update demo --memory 1Gi               from its next container on")]
pub struct Update {
    /// The session's id or name.
    session: String,
    /// The new name.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// End it this long from now, such as 8h or 7d.
    #[arg(long, value_name = "DURATION", value_parser = input::seconds)]
    ttl: Option<u64>,
    #[command(flatten)]
    settings: Settings,
    /// Remove all environment variables.
    #[arg(long, conflicts_with = "env")]
    no_env: bool,
}

/// A lifecycle action.
#[derive(Clone, Copy, Debug)]
pub enum LifecycleVerb {
    /// Pause.
    Pause,
    /// Resume.
    Resume,
    /// Terminate.
    Terminate,
    /// Replace the container.
    Restart,
    /// Restore after termination or deletion.
    Restore,
    /// Stop the running message.
    Cancel,
}

/// Shows one session.
pub async fn get(context: &Context, named: &Named) -> Result<()> {
    let session = context.client()?.get_session(&named.session).await?;
    context.ui.show(&session, |session| show::details(context.ui, session))
}

/// Changes settings.
pub async fn update(context: &Context, args: Update) -> Result<()> {
    let settings = args.settings;
    let resources = settings.resources.wanted();
    let checkpoints = super::create::plan(&settings);
    let backup = settings.backup();
    let env = if settings.env.is_empty() && !args.no_env { None } else { Some(settings.env.into_iter().collect()) };
    let body = UpdateSession {
        name: args.name,
        waiting_timeout_seconds: settings.waiting_timeout,
        ttl_seconds: args.ttl,
        metadata: settings.metadata,
        resources,
        checkpoints,
        backup,
        env,
        background_activity: settings.background_activity,
    };
    if body == UpdateSession::default() {
        return Err(
            Failure::usage("there is nothing to change").help("`raworc session update --help` lists what can be.")
        );
    }
    let session = context.client()?.update_session(&args.session, &body).await?;
    context.ui.show(&session, |session| show::details(context.ui, session))
}

/// Requests a lifecycle action.
pub async fn lifecycle(context: &Context, named: &Named, verb: LifecycleVerb) -> Result<()> {
    let client = context.client()?;
    let id = &named.session;
    let session: Session = match verb {
        LifecycleVerb::Pause => client.pause_session(id).await?,
        LifecycleVerb::Resume => client.resume_session(id).await?,
        LifecycleVerb::Terminate => client.terminate_session(id).await?,
        LifecycleVerb::Restart => client.restart_session(id).await?,
        LifecycleVerb::Restore => client.restore_session(id).await?,
        LifecycleVerb::Cancel => client.cancel_session(id).await?,
    };
    context.ui.show(&session, |session| format!("{}{}", show::sentence(session), what_next(verb, session.state)))
}

/// Cancels a message.
pub async fn cancel(context: &Context, args: Cancel) -> Result<()> {
    let Some(message) = args.message else { return lifecycle(context, &args.named, LifecycleVerb::Cancel).await };
    let cancelled = context.client()?.cancel_message(&args.named.session, &message, WaitQuery::default()).await?;
    let is_over = cancelled.message.status == Status::Cancelled;
    context.ui.show(&cancelled, |cancelled| {
        let what = if is_over { "Cancelled" } else { "Cancelling" };
        format!("{what} message {}", cancelled.message.id)
    })
}

/// What will happen next, if the state does not show it yet: actions are recorded at once and carried out soon after.
fn what_next(verb: LifecycleVerb, state: State) -> &'static str {
    match (verb, state) {
        (LifecycleVerb::Cancel, State::Busy) => "; its message is being cancelled",
        (LifecycleVerb::Resume | LifecycleVerb::Restart, State::Idle | State::Init) => {
            "; its container is being started"
        }
        (LifecycleVerb::Pause | LifecycleVerb::Terminate, State::Busy) => "; its work is being stopped",
        (LifecycleVerb::Restore, State::Idle) => "; it wakes with the next message",
        _ => "",
    }
}

/// Deletes sessions one by one; stops at the first failure.
pub async fn delete(context: &Context, several: &Several) -> Result<()> {
    let client = context.client()?;
    let mut deleted = Vec::new();
    for session in &several.sessions {
        let shown = client.delete_session(session).await?;
        if !context.ui.is_json() {
            context.ui.line(&match &shown {
                Some(shown) => format!("Deleted session {} ({})", clean(&shown.name), shown.id),
                None => format!("Deleted session {}, whose record is damaged", clean(session)),
            })?;
        }
        deleted.extend(shown);
    }
    match (context.ui.is_json(), deleted.as_slice()) {
        (false, _) => Ok(()),
        (true, [one]) => context.ui.json(one),
        (true, many) => context.ui.json(&many),
    }
}
