//! `raworc session list` and `raworc session messages`.

use clap::Args;
use raworc_api::message::{ListMessages, Message, Role, Status};
use raworc_api::session::ListSessions;
use raworc_api::terminal::Terminal;
use raworc_core::ids::SessionId;
use raworc_core::session::State;
use serde_json::Value;

use super::show;
use crate::commands::list::{self, Paging};
use crate::context::Context;
use crate::failure::Result;
use crate::output::{Style, Ui, table};
use crate::text::{at, clean, clean_lines, span};

/// Options of `raworc session list`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  raworc session list
  raworc session list --state BUSY
  raworc session list --match nightly --include-deleted --all")]
pub struct List {
    /// Only sessions in this state: INIT, READY, IDLE, BUSY or ERROR.
    #[arg(long, value_name = "STATE", value_parser = state, ignore_case = true)]
    state: Option<State>,
    /// Only sessions that this account created.
    #[arg(long, value_name = "ACCOUNT")]
    created_by: Option<String>,
    /// Only sessions made from this session.
    #[arg(long, value_name = "ID")]
    parent: Option<SessionId>,
    /// Only sessions whose name contains this.
    #[arg(long = "match", value_name = "TEXT")]
    matching: Option<String>,
    /// Include deleted sessions.
    #[arg(long)]
    include_deleted: bool,
    #[command(flatten)]
    paging: Paging,
}

fn state(text: &str) -> std::result::Result<State, String> {
    let upper = text.to_ascii_uppercase();
    State::ALL
        .into_iter()
        .find(|state| state.as_str() == upper)
        .ok_or_else(|| "there are INIT, READY, IDLE, BUSY and ERROR".into())
}

/// Options of `raworc session messages`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  raworc session messages demo
  raworc session messages demo --status failed --output json")]
pub struct Messages {
    /// The session's id or name.
    session: String,
    /// Only messages in this status: queued, processing, done, failed or cancelled.
    #[arg(long, value_name = "STATUS", value_parser = status)]
    status: Option<Status>,
    #[command(flatten)]
    paging: Paging,
}

fn status(text: &str) -> std::result::Result<Status, String> {
    serde_json::from_value(Value::from(text))
        .map_err(|_| "there are queued, processing, done, failed and cancelled".into())
}

/// Lists sessions.
pub async fn list(context: &Context, args: List) -> Result<()> {
    let client = context.client()?;
    let List { state, created_by, parent, matching, include_deleted, paging } = args;
    let filters = ListSessions { state, created_by, parent, q: matching, include_deleted, limit: None, cursor: None };
    let fetch = async |page: raworc_api::page::PageQuery| {
        client.list_sessions(&ListSessions { limit: page.limit, cursor: page.cursor, ..filters.clone() }).await
    };
    let page = paging.fetch(fetch).await?;
    list::show(context, &page, "there are no sessions: `raworc session create` makes one", show::rows)
}

/// Shows the conversation.
pub async fn messages(context: &Context, args: Messages) -> Result<()> {
    let client = context.client()?;
    let Messages { session, status, paging } = args;
    let fetch = async |page: raworc_api::page::PageQuery| {
        client.list_messages(&session, &ListMessages { status, limit: page.limit, cursor: page.cursor }).await
    };
    let page = paging.fetch(fetch).await?;
    list::show(context, &page, "nothing has been said yet", |messages| {
        let parts: Vec<String> = messages.iter().map(|message| part(context.ui, message)).collect();
        parts.join("\n")
    })
}

/// Lists open terminals.
pub async fn terminals(context: &Context, session: &str) -> Result<()> {
    let page = context.client()?.terminals(session).await?;
    list::show(context, &page, "no terminal is open", |terminals| {
        let row = |terminal: &Terminal| {
            vec![terminal.id.clone(), clean(&terminal.opened_by), at(terminal.opened_at), clean(&terminal.command)]
        };
        table(&["ID", "BY", "OPENED", "COMMAND"], terminals.iter().map(row).collect())
    })
}

fn part(ui: Ui, message: &Message) -> String {
    let agent = message.agent.as_deref().map(clean).unwrap_or_default();
    let who = match message.role {
        Role::User if agent.is_empty() => "user".to_owned(),
        Role::User => format!("user → {agent}"),
        Role::Agent => agent,
        Role::System => "raworc".to_owned(),
    };
    let mut facts = vec![at(message.created_at)];
    if message.role == Role::User {
        facts.push(status_word(message.status).to_owned());
        facts.extend(message.error.as_ref().map(|error| clean_lines(&error.message)));
    }
    if let Some(usage) = &message.usage {
        facts.push(span(usage.duration_seconds));
        facts.extend(usage.exit_code.filter(|code| *code != 0).map(|code| format!("exit {code}")));
    }
    let head = format!("{}  {}", ui.paint(Style::Name, &who), ui.paint(Style::Faint, &facts.join(" · ")));
    let content = clean_lines(message.content.trim_end_matches('\n'));
    let body: String = content.lines().map(|line| format!("\n  {line}")).collect();
    format!("{head}{body}")
}

fn status_word(status: Status) -> &'static str {
    match status {
        Status::Queued => "queued",
        Status::Processing => "processing",
        Status::Done => "done",
        Status::Failed => "failed",
        Status::Cancelled => "cancelled",
    }
}
