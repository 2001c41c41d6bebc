//! `raworc session create`.

use clap::Args;
use futures::StreamExt as _;
use raworc_api::checkpoint::{BackupWanted, CheckpointPlanWanted};
use raworc_api::client::Client;
use raworc_api::session::{CreateSession, ResourcesWanted, Session};
use raworc_core::checkpoints::Policy;
use raworc_core::quantity::Bytes;
use serde_json::{Map, Value};
use std::time::Instant;

use super::show;
use crate::commands::image;
use crate::context::Context;
use crate::event_text::text_of;
use crate::failure::{Failure, Result};
use crate::follow_message;
use crate::input;
use crate::output::Style;
use crate::progress::Progress;
use crate::text::{clean, span};

const EXAMPLES: &str = "\
Examples:
  raworc session create
  raworc session create --name demo --prompt 'seq 9 | tac > file' --memory 2Gi --cpu 2
  raworc session create --image registry.example:5000/tools:3
  raworc session create --from registry.example:5000/team/demo:v2 --name demo
  raworc session create --name nightly --agent shell --ttl 8h --env CI=1 --no-wait
  id=$(raworc session create --output json | jq -r .id)";

/// Options of `raworc session create`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Create {
    /// The session's name [default: generated].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The first message; '-' reads it from standard input.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// An agent; may be repeated, the first is the default [default: shell].
    #[arg(long = "agent", value_name = "AGENT")]
    agents: Vec<String>,
    /// End it this long after its creation, such as 8h or 7d [default: never].
    #[arg(long, value_name = "DURATION", value_parser = input::seconds)]
    ttl: Option<u64>,
    /// The image for its containers: one on this server, or REGISTRY/REPOSITORY:TAG to pull [default: the agent's, or
    /// the programs of the server's machine].
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Start from another server's checkpoint: the name of one pulled or imported, or REGISTRY/REPOSITORY:TAG to
    /// pull.
    #[arg(long, value_name = "IMAGE")]
    from: Option<String>,
    #[command(flatten)]
    settings: Settings,
    /// Return when it is READY (the default).
    #[arg(long, conflicts_with = "no_wait")]
    wait: bool,
    /// Return at once, while it is still INIT.
    #[arg(long)]
    no_wait: bool,
}

/// Settings that can be changed later.
#[derive(Debug, Args)]
pub struct Settings {
    /// Stop the container after this long without activity, such as 90 or 10m [default of a new session: 5m].
    #[arg(long, value_name = "DURATION", value_parser = input::seconds)]
    pub waiting_timeout: Option<u64>,
    #[command(flatten)]
    pub resources: Resources,
    /// An environment variable for all its programs; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = input::variable)]
    pub env: Vec<(String, String)>,
    /// Your own data, as a JSON object.
    #[arg(long, value_name = "JSON", value_parser = input::object)]
    pub metadata: Option<Map<String, Value>>,
    /// Whether background processes count as activity [default of a new session: true].
    #[arg(long, value_name = "BOOL")]
    pub background_activity: Option<bool>,
    /// When checkpoints are taken: each_message, on_stop, every or manual [default of a new session: each_message].
    #[arg(long, value_name = "POLICY", value_parser = input::policy)]
    pub checkpoints: Option<Policy>,
    /// With --checkpoints every: the interval, from 5s to 7d.
    #[arg(long, value_name = "DURATION", value_parser = input::seconds)]
    pub checkpoint_every: Option<u64>,
    /// How many of the newest checkpoints are kept, besides those with a label [default of a new session: 20].
    #[arg(long, value_name = "N")]
    pub keep_checkpoints: Option<u32>,
    /// Push checkpoints automatically to REGISTRY/REPOSITORY, with the server's credentials; '' turns it off.
    #[arg(long, value_name = "REPOSITORY")]
    pub backup: Option<String>,
    /// With --backup: the minimum interval, from 5s to 7d [default: 1m].
    #[arg(long, value_name = "DURATION", value_parser = input::seconds, requires = "backup")]
    pub backup_every: Option<u64>,
}

/// Resource limits of a session.
#[derive(Debug, Args)]
pub struct Resources {
    /// Processors, such as 0.5 or 2 [default of a new session: 1].
    #[arg(long, value_name = "N")]
    cpu: Option<f64>,
    /// Memory, such as 512Mi or 2Gi [default of a new session: 512Mi].
    #[arg(long, value_name = "BYTES")]
    memory: Option<Bytes>,
    /// Processes and threads [default of a new session: 256].
    #[arg(long, value_name = "N")]
    pids: Option<u32>,
    /// Disk space, such as 10Gi; 0 for no limit [default of a new session: 0].
    #[arg(long, value_name = "BYTES")]
    disk: Option<Bytes>,
}

impl Resources {
    /// The given limits, if any.
    pub fn wanted(&self) -> Option<ResourcesWanted> {
        let wanted = ResourcesWanted { cpu: self.cpu, memory: self.memory, pids: self.pids, disk: self.disk };
        (wanted != ResourcesWanted::default()).then_some(wanted)
    }
}

/// The given checkpoint settings, if any.
pub fn plan(settings: &Settings) -> Option<CheckpointPlanWanted> {
    let wanted = CheckpointPlanWanted {
        policy: settings.checkpoints,
        every_seconds: settings.checkpoint_every,
        keep_last: settings.keep_checkpoints,
    };
    (wanted != CheckpointPlanWanted::default()).then_some(wanted)
}

impl Settings {
    /// The given backup settings, if any.
    pub fn backup(&self) -> Option<BackupWanted> {
        let registry = self.backup.clone()?;
        Some(BackupWanted { registry, every_seconds: self.backup_every })
    }
}

/// Creates a session and, by default, waits until it is READY.
pub async fn run(context: &Context, args: Create) -> Result<()> {
    let client = context.client()?;
    let ui = context.ui;
    let wait = !args.no_wait;
    let began = Instant::now();
    let body = body(args)?;
    for image in body.image.iter().chain(&body.from) {
        image::ensure(context, &client, image).await?;
    }
    let created = client.create_session(&body).await?;
    if !wait {
        return ui.show(&created, |session| line(ui, session, None));
    }
    let session = started(context, &client, &created).await?;
    ui.show(&session, |session| line(ui, session, Some(began.elapsed().as_secs_f64())))?;
    match follow_message::stuck(&session) {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

fn body(args: Create) -> Result<CreateSession> {
    let prompt = args.prompt.as_deref().map(input::prompt).transpose()?;
    let settings = args.settings;
    Ok(CreateSession {
        name: args.name,
        starting_prompt: prompt,
        agent_ids: Some(args.agents).filter(|agents| !agents.is_empty()),
        waiting_timeout_seconds: settings.waiting_timeout,
        ttl_seconds: args.ttl,
        resources: settings.resources.wanted(),
        checkpoints: plan(&settings),
        backup: settings.backup(),
        env: Some(settings.env.into_iter().collect()).filter(|env: &std::collections::BTreeMap<_, _>| !env.is_empty()),
        metadata: settings.metadata,
        background_activity: settings.background_activity,
        image: args.image,
        from: args.from,
    })
}

/// The message about a new session.
pub fn line(ui: crate::output::Ui, session: &Session, took: Option<f64>) -> String {
    let state = ui.paint(show::style(session.state), &show::standing(session));
    let after = took.map(|seconds| format!(" after {}", span(seconds))).unwrap_or_default();
    format!("Session {} is {state}{after}  {}", ui.paint(Style::Bold, &clean(&session.name)), session.id)
}

/// Waits until a session has left INIT, and any ERROR that it recovers from by itself.
pub async fn started(context: &Context, client: &Client, created: &Session) -> Result<Session> {
    let id = created.id.to_string();
    let progress = Progress::start(&context.ui, &format!("{} is INIT", created.name));
    let mut events = client.follow(&id, 0);
    while let Some(event) = events.next().await {
        let event = event?;
        match event.kind.as_str() {
            "session.state_changed" => match text_of(&event, "to") {
                state @ ("INIT" | "ERROR") => progress.set_text(&format!("{} is {state}", created.name)),
                _ => break,
            },
            "session.failed" => {
                let session = client.get_session(&id).await?;
                if follow_message::stuck(&session).is_some() {
                    return Ok(session);
                }
                progress.set_text(&format!("{} failed and starts again: {}", created.name, text_of(&event, "message")));
            }
            "session.terminated" | "session.deleted" => {
                return Err(Failure::failed(format!("session {} was ended before it was ready", clean(&created.name))));
            }
            _ => {}
        }
    }
    // It may be BUSY with its prompt already.
    Ok(client.get_session(&id).await?)
}
