//! `raworc agent`.

use clap::{Args, Subcommand};
use raworc_api::agent::{Agent as Definition, AgentConfig, AgentDefinition, AgentRuntime};
use serde_json::{Map, Value, json};

use crate::commands::list::{self, Paging};
use crate::context::Context;
use crate::failure::Result;
use crate::input;
use crate::output::{fields, table};
use crate::text::{ago, at_and_ago, brief, clean, clean_lines, span};

/// Commands about agents.
#[derive(Debug, Subcommand)]
pub enum Agent {
    /// Create an agent.
    #[command(
        after_help = "Examples:\n  raworc agent create builder --description 'Builds things' --timeout 10m --env CI=1\n  \
                      raworc agent create coder --model replay/fix-the-tests --instructions 'You mend programs.'"
    )]
    Create {
        /// The name: letters, digits, '-', '_' and '.'.
        name: String,
        #[command(flatten)]
        fields: Fields,
    },
    /// List agents.
    #[command(visible_alias = "ls", after_help = "Example:\n  raworc agent list")]
    List(Paging),
    /// Show one agent.
    #[command(after_help = "Example:\n  raworc agent get shell")]
    Get {
        /// The agent's id or name.
        agent: String,
    },
    /// Change the given settings of an agent; the others stay.
    #[command(after_help = "Example:\n  raworc agent update builder --timeout 1h --name big-builder")]
    Update {
        /// The agent's id or name.
        agent: String,
        /// The new name.
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        fields: Fields,
    },
    /// Delete an agent that no session uses.
    #[command(visible_alias = "rm", after_help = "Example:\n  raworc agent delete builder")]
    Delete {
        /// The agent's id or name.
        agent: String,
    },
}

/// The settings of an agent.
#[derive(Debug, Args)]
pub struct Fields {
    /// A description for people.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Instructions for the agent.
    #[arg(long, value_name = "TEXT")]
    instructions: Option<String>,
    /// The model, for agents that use one.
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// The image for sessions that have this agent and name no image.
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// How it runs: shell or model [default: model for a new agent with --model, else shell].
    #[arg(long, value_name = "RUNTIME", value_parser = runtime)]
    runtime: Option<AgentRuntime>,
    /// A tool that its model has, of bash, read_file, write_file, edit_file, list_files and search; may be repeated [default: all].
    #[arg(long = "tool", value_name = "TOOL")]
    tools: Vec<String>,
    /// How often its model may be asked for one message.
    #[arg(long, value_name = "NUMBER")]
    max_steps: Option<u32>,
    /// The temperature of its model, 0 to 2.
    #[arg(long, value_name = "NUMBER")]
    temperature: Option<f64>,
    /// Tokens of one answer of its model at most.
    #[arg(long, value_name = "NUMBER")]
    max_output_tokens: Option<u64>,
    /// Time limit of a message, such as 90 or 10m.
    #[arg(long, value_name = "DURATION", value_parser = input::seconds)]
    timeout: Option<u64>,
    /// An environment variable that overrides the session's; may be repeated. Replaces all earlier ones.
    #[arg(long, value_name = "NAME=VALUE", value_parser = input::variable)]
    env: Vec<(String, String)>,
    /// Your own data, as a JSON object.
    #[arg(long, value_name = "JSON", value_parser = input::object)]
    metadata: Option<Map<String, Value>>,
}

fn runtime(text: &str) -> std::result::Result<AgentRuntime, String> {
    serde_json::from_value(Value::from(text)).map_err(|_| "there are 'shell' and 'model'".into())
}

impl Fields {
    fn apply(self, to: &mut AgentDefinition) {
        to.description = self.description.unwrap_or(std::mem::take(&mut to.description));
        to.instructions = self.instructions.unwrap_or(std::mem::take(&mut to.instructions));
        to.model = self.model.or(to.model.take());
        to.image = self.image.or(to.image.take());
        to.runtime = self.runtime.unwrap_or(to.runtime);
        to.tools = if self.tools.is_empty() { to.tools.take() } else { Some(self.tools) };
        let config = std::mem::take(&mut to.config);
        to.config = AgentConfig {
            env: if self.env.is_empty() { config.env } else { self.env.into_iter().collect() },
            timeout_seconds: self.timeout.or(config.timeout_seconds),
            max_steps: self.max_steps.or(config.max_steps),
            temperature: self.temperature.or(config.temperature),
            max_output_tokens: self.max_output_tokens.or(config.max_output_tokens),
        };
        to.metadata = self.metadata.unwrap_or(std::mem::take(&mut to.metadata));
    }
}

/// Runs the command.
pub async fn run(context: &Context, command: Agent) -> Result<()> {
    let client = context.client()?;
    let ui = context.ui;
    match command {
        Agent::Create { name, fields } => {
            let runtime = if fields.model.is_some() { AgentRuntime::Model } else { AgentRuntime::Shell };
            let mut definition = AgentDefinition { name, runtime, ..AgentDefinition::default() };
            fields.apply(&mut definition);
            ui.show(&client.create_agent(&definition).await?, |agent| {
                format!("Created agent {} ({})", clean(&agent.definition.name), agent.id)
            })
        }
        Agent::List(paging) => {
            let page = paging.fetch(async |query| client.list_agents(&query).await).await?;
            list::show(context, &page, "there are no agents", rows)
        }
        Agent::Get { agent } => ui.show(&client.get_agent(&agent).await?, details),
        Agent::Update { agent, name, fields } => {
            let mut definition = client.get_agent(&agent).await?.definition;
            definition.name = name.unwrap_or(definition.name);
            fields.apply(&mut definition);
            ui.show(&client.update_agent(&agent, &definition).await?, details)
        }
        Agent::Delete { agent } => {
            client.delete_agent(&agent).await?;
            ui.show(&json!({}), |_| format!("Deleted agent {}", clean(&agent)))
        }
    }
}

fn rows(agents: &[Definition]) -> String {
    let now = jiff::Timestamp::now();
    let row = |agent: &Definition| {
        vec![
            clean(&agent.definition.name),
            agent.definition.runtime.as_str().to_owned(),
            agent.definition.model.as_deref().map_or_else(|| "-".into(), clean),
            if agent.builtin { "built-in".to_owned() } else { ago(agent.created_at, now) },
            brief(&agent.definition.description, 60),
        ]
    };
    table(&["NAME", "RUNTIME", "MODEL", "CREATED", "DESCRIPTION"], agents.iter().map(row).collect())
}

fn details(agent: &Definition) -> String {
    let AgentDefinition { name, description, instructions, model, image, runtime, tools, config, metadata } =
        &agent.definition;
    let env: Vec<String> = config.env.iter().map(|(name, value)| clean(&format!("{name}={value}"))).collect();
    fields(&[
        ("name", clean(name)),
        ("id", agent.id.to_string()),
        ("runtime", runtime.as_str().to_owned()),
        ("model", model.as_deref().map(clean).unwrap_or_default()),
        ("image", image.as_deref().map(clean).unwrap_or_default()),
        ("description", clean_lines(description)),
        ("instructions", clean_lines(instructions)),
        ("tools", tools.iter().flatten().map(|tool| clean(tool)).collect::<Vec<_>>().join(" ")),
        ("max steps", config.max_steps.map(|steps| steps.to_string()).unwrap_or_default()),
        ("temperature", config.temperature.map(|number| number.to_string()).unwrap_or_default()),
        ("max output", config.max_output_tokens.map(|tokens| format!("{tokens} tokens")).unwrap_or_default()),
        ("timeout", config.timeout_seconds.map(|seconds| span(seconds as f64)).unwrap_or_default()),
        ("env", env.join(" ")),
        ("metadata", if metadata.is_empty() { String::new() } else { Value::Object(metadata.clone()).to_string() }),
        ("built-in", if agent.builtin { "yes, it can't be changed".into() } else { String::new() }),
        ("created", at_and_ago(agent.created_at)),
        ("updated", at_and_ago(agent.updated_at)),
    ])
}
