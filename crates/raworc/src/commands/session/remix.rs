//! `raworc session remix` and `raworc session tree`.

use std::collections::BTreeMap;

use clap::Args;
use raworc_api::page::PageQuery;
use raworc_api::session::{ListSessions, RemixSession, Session};
use raworc_core::ids::SessionId;

use super::create::{Settings, line, plan, started};
use super::show;
use crate::commands::{image, list};
use crate::context::Context;
use crate::failure::Result;
use crate::follow_message;
use crate::input;
use crate::text::clean;

const EXAMPLES: &str = "\
Examples:
  raworc session remix demo --name variant
  raworc session remix demo --checkpoint 3 --prompt 'try it the other way'";

/// Options of `raworc session remix`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Remix {
    /// The session to start from.
    session: String,
    /// The number or label of a checkpoint to start from [default: the current state].
    #[arg(long, value_name = "N")]
    checkpoint: Option<String>,
    /// The new session's name [default: generated].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The first new message; '-' reads it from standard input.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// An agent; may be repeated [default: the agents of the original].
    #[arg(long = "agent", value_name = "AGENT")]
    agents: Vec<String>,
    /// End it this long after its creation, such as 8h or 7d.
    #[arg(long, value_name = "DURATION", value_parser = input::seconds)]
    ttl: Option<u64>,
    /// The image for its containers [default: that of the original].
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    #[command(flatten)]
    settings: Settings,
    /// Return at once, while it is still INIT.
    #[arg(long)]
    no_wait: bool,
}

/// Creates a session from another.
pub async fn run(context: &Context, args: Remix) -> Result<()> {
    let client = context.client()?;
    let ui = context.ui;
    let began = std::time::Instant::now();
    let prompt = args.prompt.as_deref().map(input::prompt).transpose()?;
    let settings = args.settings;
    let checkpoint = match &args.checkpoint {
        Some(version) => Some(crate::commands::checkpoint::number(&client, &args.session, version).await?),
        None => None,
    };
    let body = RemixSession {
        checkpoint,
        name: args.name,
        starting_prompt: prompt,
        agent_ids: Some(args.agents).filter(|agents| !agents.is_empty()),
        waiting_timeout_seconds: settings.waiting_timeout,
        ttl_seconds: args.ttl,
        resources: settings.resources.wanted(),
        checkpoints: plan(&settings),
        backup: settings.backup(),
        env: Some(settings.env.into_iter().collect()).filter(|env: &BTreeMap<_, _>| !env.is_empty()),
        metadata: settings.metadata,
        background_activity: settings.background_activity,
        image: args.image,
    };
    if let Some(image) = &body.image {
        image::ensure(context, &client, image).await?;
    }
    let created = client.remix_session(&args.session, &body).await?;
    if args.no_wait {
        return ui.show(&created, |session| line(ui, session, None));
    }
    let session = started(context, &client, &created).await?;
    ui.show(&session, |session| line(ui, session, Some(began.elapsed().as_secs_f64())))?;
    follow_message::stuck(&session).map_or(Ok(()), Err)
}

/// Shows a session and all sessions made from it.
pub async fn tree(context: &Context, session: &str) -> Result<()> {
    let client = context.client()?;
    let root = client.get_session(session).await?;
    let mut all = vec![(0, root.clone())];
    let mut next = vec![(1, root.id)];
    while let Some((depth, parent)) = next.pop() {
        let mut children = children(&client, parent).await?;
        children.sort_by_key(|child| child.created_at);
        let place = all.iter().position(|(_, session)| session.id == parent).map_or(all.len(), |place| place + 1);
        next.extend(children.iter().map(|child| (depth + 1, child.id)));
        all.splice(place..place, children.into_iter().map(|child| (depth, child)));
    }
    if context.ui.is_json() {
        return context.ui.json(&all.into_iter().map(|(_, session)| session).collect::<Vec<_>>());
    }
    for (depth, session) in all {
        let from = session.parent_checkpoint.filter(|_| depth > 0).map(|n| format!("@{n} → ")).unwrap_or_default();
        let (indent, state) = ("  ".repeat(depth), show::standing(&session));
        context.ui.line(&format!("{indent}{from}{}  {state}  {}", clean(&session.name), session.id))?;
    }
    Ok(())
}

async fn children(client: &raworc_api::client::Client, parent: SessionId) -> Result<Vec<Session>> {
    let fetch = async |PageQuery { limit, cursor }: PageQuery| {
        client.list_sessions(&ListSessions { parent: Some(parent), limit, cursor, ..ListSessions::default() }).await
    };
    Ok(list::gather(None, None, fetch).await?.items)
}
