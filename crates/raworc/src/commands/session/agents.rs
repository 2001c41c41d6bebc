//! `raworc session agents`.

use clap::Subcommand;
use raworc_api::session::{AssignAgents, AssignedAgent};

use crate::context::Context;
use crate::failure::Result;
use crate::output::table;
use crate::text::clean;

/// Commands about a session's agents.
#[derive(Debug, Subcommand)]
pub enum Agents {
    /// Show the agents of a session; the first is the default.
    #[command(visible_alias = "list", after_help = "Example:\n  raworc session agents get demo")]
    Get {
        /// The session's id or name.
        session: String,
    },
    /// Replace the agents of a session; the first answers messages that name none.
    #[command(visible_alias = "set", after_help = "Example:\n  raworc session agents assign demo shell builder")]
    Assign {
        /// The session's id or name.
        session: String,
        /// Ids or names of agents.
        #[arg(required = true)]
        agents: Vec<String>,
    },
}

/// Runs the command.
pub async fn run(context: &Context, command: Agents) -> Result<()> {
    let client = context.client()?;
    let agents = match command {
        Agents::Get { session } => client.session_agents(&session).await?,
        Agents::Assign { session, agents } => {
            client.assign_agents(&session, &AssignAgents { agent_ids: agents }).await?
        }
    };
    context.ui.show(&agents, |agents| rows(agents))
}

fn rows(agents: &[AssignedAgent]) -> String {
    let row = |agent: &AssignedAgent| {
        let model = agent.model.as_deref().map_or_else(|| "-".into(), clean);
        vec![clean(&agent.name), model, agent.id.to_string()]
    };
    table(&["NAME", "MODEL", "ID"], agents.iter().map(row).collect())
}
