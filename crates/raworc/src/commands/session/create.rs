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
use crate::failure::{Failure, Result};
use crate::input;
use crate::live;
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
    /// What to call it [default: made up].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Its first message; '-' reads it from standard input.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// An agent it has; may be repeated, the first one answers [default: shell].
    #[arg(long = "agent", value_name = "AGENT")]
    agents: Vec<String>,
    /// End it so long after its creation, such as 8h or 7d [default: never].
    #[arg(long, value_name = "DURATION", value_parser = input::seconds)]
    ttl: Option<u64>,
    /// The image its containers run: one that is here, or REGISTRY/REPOSITORY:TAG, which is pulled then [default: that of its
    /// agent, or the programs of the server's machine].
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Go on from a checkpoint of another server: one that was pulled or imported, or REGISTRY/REPOSITORY:TAG.
    #[arg(long, value_name = "IMAGE")]
    from: Option<String>,
    #[command(flatten)]
    settings: Settings,
    /// Return when it is READY; that is the default.
    #[arg(long, conflicts_with = "no_wait")]
    wait: bool,
    /// Return at once, while it is still INIT.
    #[arg(long)]
    no_wait: bool,
}

/// What can be set and changed alike.
#[derive(Debug, Args)]
pub struct Settings {
    /// Rest after so long without activity, such as 90 or 10m [default of a new session: 5m].
    #[arg(long, value_name = "DURATION", value_parser = input::seconds)]
    pub waiting_timeout: Option<u64>,
    #[command(flatten)]
    pub resources: Resources,
    /// An environment variable of everything that runs in it; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = input::variable)]
    pub env: Vec<(String, String)>,
    /// Anything of yours, as a JSON object.
    #[arg(long, value_name = "JSON", value_parser = input::object)]
    pub metadata: Option<Map<String, Value>>,
    /// Whether processes left in the background keep it from resting [default of a new session: true].
    #[arg(long, value_name = "BOOL")]
    pub background_activity: Option<bool>,
    /// When its workspace is saved: each_message, on_stop, every or manual [default of a new session: each_message].
    #[arg(long, value_name = "POLICY", value_parser = input::policy)]
    pub checkpoints: Option<Policy>,
    /// With --checkpoints every: time between two of them, from 5s to 7d.
    #[arg(long, value_name = "DURATION", value_parser = input::seconds)]
    pub checkpoint_every: Option<u64>,
    /// How many of the newest checkpoints are kept; older ones with a label, too [default of a new session: 20].
    #[arg(long, value_name = "N")]
    pub keep_checkpoints: Option<u32>,
    /// Send its checkpoints to REGISTRY/REPOSITORY by themselves, with the server's credentials; '' for nowhere any more.
    #[arg(long, value_name = "REPOSITORY")]
    pub backup: Option<String>,
    /// With --backup: least time between two of them, from 5s to 7d [default: 1m].
    #[arg(long, value_name = "DURATION", value_parser = input::seconds, requires = "backup")]
    pub backup_every: Option<u64>,
}

/// What a session may use at most.
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
    /// Space on the disk, such as 10Gi; 0 for no limit [default of a new session: 0].
    #[arg(long, value_name = "BYTES")]
    disk: Option<Bytes>,
}

impl Resources {
    /// The limits that are named, if any is.
    pub fn wanted(&self) -> Option<ResourcesWanted> {
        let wanted = ResourcesWanted { cpu: self.cpu, memory: self.memory, pids: self.pids, disk: self.disk };
        (wanted != ResourcesWanted::default()).then_some(wanted)
    }
}

/// The plan for checkpoints that is wanted, if any is.
pub fn plan(settings: &Settings) -> Option<CheckpointPlanWanted> {
    let wanted = CheckpointPlanWanted {
        policy: settings.checkpoints,
        every_seconds: settings.checkpoint_every,
        keep_last: settings.keep_checkpoints,
    };
    (wanted != CheckpointPlanWanted::default()).then_some(wanted)
}

impl Settings {
    /// Where checkpoints are to be sent, if that is said.
    pub fn backup(&self) -> Option<BackupWanted> {
        let registry = self.backup.clone()?;
        Some(BackupWanted { registry, every_seconds: self.backup_every })
    }
}

/// Makes a session and, unless told otherwise, waits until it is READY.
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
    match live::stuck(&session) {
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

/// What is said of a new session.
pub fn line(ui: crate::output::Ui, session: &Session, took: Option<f64>) -> String {
    let state = ui.paint(show::style(session.state), &show::standing(session));
    let after = took.map(|seconds| format!(" after {}", span(seconds))).unwrap_or_default();
    format!("Session {} is {state}{after}  {}", ui.paint(Style::Bold, &clean(&session.name)), session.id)
}

/// The session when it has left INIT and an ERROR that passes by itself.
pub async fn started(context: &Context, client: &Client, created: &Session) -> Result<Session> {
    let id = created.id.to_string();
    let progress = Progress::start(&context.ui, &format!("{} is INIT", created.name));
    let mut events = client.follow(&id, 0);
    while let Some(event) = events.next().await {
        let event = event?;
        match event.kind.as_str() {
            "session.state_changed" => match live::text_of(&event, "to") {
                state @ ("INIT" | "ERROR") => progress.say(&format!("{} is {state}", created.name)),
                _ => break,
            },
            "session.failed" => {
                let session = client.get_session(&id).await?;
                if live::stuck(&session).is_some() {
                    return Ok(session);
                }
                progress.say(&format!(
                    "{} failed and starts again: {}",
                    created.name,
                    live::text_of(&event, "message")
                ));
            }
            "session.terminated" | "session.deleted" => {
                return Err(Failure::failed(format!("session {} was ended before it was ready", clean(&created.name))));
            }
            _ => {}
        }
    }
    // It may already be working on its prompt: that is more than READY.
    Ok(client.get_session(&id).await?)
}
