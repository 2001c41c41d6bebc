//! The registry of agents.

use raworc_api::agent::{AgentDefinition, AgentRuntime};
use raworc_api::problem::Code;
use raworc_core::ids::AgentId;
use raworc_core::limits::{MESSAGE_BYTES_MAX, PAGE_BYTES_MAX};
use raworc_core::names;
use raworc_core::permissions::{Action, Actor};
use raworc_core::time::Time;
use raworc_core::turn::STEPS_MAX;
use raworc_store::agents::{self, AgentRow};
use raworc_store::{Batch, Read, StoreError, audit};
use uuid::Uuid;

use super::check::Checks;
use super::create_session::DEFAULT_AGENT;
use crate::app::Shared;
use crate::conditions::Conditions;
use crate::error::Failure;
use crate::policy::permit;
use crate::turns::tools;

/// Longest `timeout_seconds` of an agent: a day.
const TIMEOUT_SECONDS_MAX: u64 = 24 * 3600;

/// Most tokens that an agent may have its model write in one answer.
const OUTPUT_TOKENS_MAX: u64 = 10_000_000;

/// The agents that come with Raworc.
pub fn builtin(now: Time) -> Vec<AgentRow> {
    vec![AgentRow {
        id: AgentId(Uuid::now_v7()),
        definition: AgentDefinition {
            name: DEFAULT_AGENT.into(),
            description: "Runs each message as a shell script in the workspace".into(),
            ..AgentDefinition::default()
        },
        builtin: true,
        version: 1,
        created_at: now,
        updated_at: now,
    }]
}

/// Registers an agent.
///
/// # Errors
/// 409 where the name is taken, 422 where the definition is wrong.
pub async fn create(app: &Shared, actor: &Actor, definition: AgentDefinition) -> Result<AgentRow, Failure> {
    permit(actor, Action::ManageAgents, "agent", &definition.name)?;
    check(&definition)?;
    let (actor, now) = (actor.clone(), app.now());
    let row = AgentRow {
        id: AgentId(Uuid::now_v7()),
        definition,
        builtin: false,
        version: 1,
        created_at: now,
        updated_at: now,
    };
    app.store
        .write(move |tx| {
            Box::pin(async move {
                audit::append(tx, now, &actor, "agent.create", &row.id.to_string()).await?;
                agents::insert(tx, &row).await.map_err(|e| taken(e, &row.definition.name))?;
                Ok(row)
            })
        })
        .await
}

/// Replaces an agent's definition.
///
/// # Errors
/// 404, 409, 412 or 422.
pub async fn update(
    app: &Shared,
    actor: &Actor,
    id_or_name: String,
    definition: AgentDefinition,
    conditions: Conditions,
) -> Result<AgentRow, Failure> {
    permit(actor, Action::ManageAgents, "agent", &id_or_name)?;
    check(&definition)?;
    let (actor, now) = (actor.clone(), app.now());
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let mut row = changeable(tx, &id_or_name).await?;
                conditions.check_version(row.version)?;
                row.definition = definition;
                row.updated_at = now;
                audit::append(tx, now, &actor, "agent.update", &row.id.to_string()).await?;
                let name = row.definition.name.clone();
                agents::update(tx, &mut row).await.map_err(|e| taken(e, &name))?;
                Ok(row)
            })
        })
        .await
}

/// Removes an agent.
///
/// # Errors
/// 409 where sessions still use it, 412 where it is not what the conditions say.
pub async fn delete(app: &Shared, actor: &Actor, id_or_name: String, conditions: Conditions) -> Result<(), Failure> {
    permit(actor, Action::ManageAgents, "agent", &id_or_name)?;
    let (actor, now) = (actor.clone(), app.now());
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let row = changeable(tx, &id_or_name).await?;
                conditions.check_version(row.version)?;
                audit::append(tx, now, &actor, "agent.delete", &row.id.to_string()).await?;
                if !agents::delete(tx, row.id).await? {
                    let detail = format!(
                        "sessions have the agent {:?} assigned (deleted ones count: they can be restored); \
                         give them others first with PUT /sessions/{{id}}/agents",
                        row.definition.name
                    );
                    return Err(Failure::new(Code::AgentInUse, detail));
                }
                Ok(())
            })
        })
        .await
}

/// One agent.
///
/// # Errors
/// 404.
pub async fn get(app: &Shared, actor: &Actor, id_or_name: &str) -> Result<AgentRow, Failure> {
    permit(actor, Action::ReadAgents, "agent", id_or_name)?;
    let mut connection = app.store.read().await?;
    agents::find(&mut connection, id_or_name).await?.ok_or_else(|| Failure::not_found("agent", id_or_name))
}

/// Agents by name, after the name `after`.
///
/// # Errors
/// Where the store fails.
pub async fn list(app: &Shared, actor: &Actor, after: &str, limit: u32) -> Result<Batch<AgentRow>, Failure> {
    permit(actor, Action::ReadAgents, "agent", "")?;
    let mut connection = app.store.read().await?;
    Ok(agents::list(&mut connection, after, (limit, PAGE_BYTES_MAX)).await?)
}

async fn changeable(connection: &mut Read, id_or_name: &str) -> Result<AgentRow, Failure> {
    let row = agents::find(connection, id_or_name).await?.ok_or_else(|| Failure::not_found("agent", id_or_name))?;
    if row.builtin {
        let detail = format!("the agent {:?} came with Raworc and cannot be changed", row.definition.name);
        return Err(Failure::new(Code::Forbidden, detail));
    }
    Ok(row)
}

fn taken(error: StoreError, name: &str) -> Failure {
    match error {
        StoreError::Conflict => {
            Failure::new(Code::NameTaken, format!("there is an agent {name:?} already; choose another name"))
        }
        error => error.into(),
    }
}

fn check(definition: &AgentDefinition) -> Result<(), Failure> {
    let mut checks = Checks::default();
    checks.check("name", names::check_handle(&definition.name));
    for (field, text) in [("description", &definition.description), ("instructions", &definition.instructions)] {
        if text.len() > MESSAGE_BYTES_MAX {
            checks.fault(field, format!("must have at most {MESSAGE_BYTES_MAX} bytes"));
        }
    }
    if let Some(model) = &definition.model {
        checks.check("model", names::check_text(model));
    }
    if let Some(image) = &definition.image {
        checks.image("image", image);
    }
    checks.env("config.env", Some(&definition.config.env));
    checks.range("config.timeout_seconds", definition.config.timeout_seconds, &(1..=TIMEOUT_SECONDS_MAX));
    check_model(&mut checks, definition);
    checks.metadata(Some(&definition.metadata));
    checks.done()
}

/// What concerns agents with a model.
fn check_model(checks: &mut Checks, definition: &AgentDefinition) {
    let config = &definition.config;
    if definition.runtime == AgentRuntime::Model && definition.model.is_none() {
        checks.fault(
            "model",
            "must name a model for runtime `model`, such as `gpt-4` or `PROVIDER/MODEL`; `raworc model list` has them",
        );
    }
    for tool in definition.tools.iter().flatten() {
        if !tools::names().any(|name| name == tool) {
            let all: Vec<&str> = tools::names().collect();
            checks.fault("tools", format!("there is no tool {tool:?}; there are {}", all.join(", ")));
        }
    }
    checks.range("config.max_steps", config.max_steps.map(u64::from), &(1..=u64::from(STEPS_MAX)));
    checks.range("config.max_output_tokens", config.max_output_tokens, &(1..=OUTPUT_TOKENS_MAX));
    if !config.temperature.is_none_or(|temperature| (0.0..=2.0).contains(&temperature)) {
        checks.fault("config.temperature", "must be between 0 and 2");
    }
}
