//! The registry of agents, and which sessions use them.

use std::collections::BTreeMap;

use raworc_api::agent::{AgentConfig, AgentDefinition, AgentRuntime};
use raworc_core::ids::{AgentId, SessionId};
use raworc_core::time::Time;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::StoreError;
use crate::rows::{Row, damaged};
use crate::sql::{Batch, Read, Sound, sql};
use crate::tx::Tx;

/// An agent.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentRow {
    /// Its id.
    pub id: AgentId,
    /// What it is; the name in it is the row's.
    pub definition: AgentDefinition,
    /// It came with Raworc.
    pub builtin: bool,
    /// Grows with each change.
    pub version: i64,
    /// When it was registered.
    pub created_at: Time,
    /// When it last changed.
    pub updated_at: Time,
}

/// A definition as it is stored. Unlike what people send it may have fields that this release does not know: a newer one
/// may have written it.
#[derive(Serialize, Deserialize)]
struct Stored {
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    instructions: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    #[serde(default)]
    runtime: AgentRuntime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tools: Option<Vec<String>>,
    #[serde(default)]
    config: StoredConfig,
    #[serde(default)]
    metadata: Map<String, Value>,
}

/// A configuration as it is stored.
#[derive(Default, Serialize, Deserialize)]
struct StoredConfig {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout_seconds: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_steps: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_output_tokens: Option<u64>,
}

impl From<&AgentDefinition> for Stored {
    fn from(definition: &AgentDefinition) -> Self {
        let AgentDefinition { name, description, instructions, model, image, runtime, tools, config, metadata } =
            definition.clone();
        let AgentConfig { env, timeout_seconds, max_steps, temperature, max_output_tokens } = config;
        let config = StoredConfig { env, timeout_seconds, max_steps, temperature, max_output_tokens };
        Self { name, description, instructions, model, image, runtime, tools, config, metadata }
    }
}

impl From<Stored> for AgentDefinition {
    fn from(stored: Stored) -> Self {
        let Stored { name, description, instructions, model, image, runtime, tools, config, metadata } = stored;
        let StoredConfig { env, timeout_seconds, max_steps, temperature, max_output_tokens } = config;
        let config = AgentConfig { env, timeout_seconds, max_steps, temperature, max_output_tokens };
        Self { name, description, instructions, model, image, runtime, tools, config, metadata }
    }
}

fn definition(row: &Row<'_>) -> Result<AgentDefinition, StoreError> {
    let definition = AgentDefinition::from(row.json::<Stored>("definition")?);
    // What it is found by says the same as what it is.
    if definition.name == row.text("name")? {
        Ok(definition)
    } else {
        Err(damaged("name", "is not that of `definition`"))
    }
}

pub(crate) fn agent(row: &Row<'_>) -> Result<AgentRow, StoreError> {
    row.record("agents", |row| {
        Ok(AgentRow {
            id: row.id("id")?,
            definition: definition(row)?,
            builtin: row.boolean("builtin")?,
            version: row.count("version")?,
            created_at: row.time("created_at")?,
            updated_at: row.time("updated_at")?,
        })
    })
}

/// Adds an agent.
///
/// # Errors
/// [`StoreError::Conflict`] where the name is taken.
pub async fn insert(tx: &mut Tx, row: &AgentRow) -> Result<(), StoreError> {
    sql("INSERT INTO agents (id, name, definition, builtin, version, created_at, updated_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)")
    .bind(row.id.to_string())
    .bind(row.definition.name.clone())
    .bind(serde_json::to_string(&Stored::from(&row.definition))?)
    .bind(i64::from(row.builtin))
    .bind(row.version)
    .bind(row.created_at.0)
    .bind(row.updated_at.0)
    .execute(tx)
    .await?;
    Ok(())
}

/// Stores a changed definition and counts its version up.
///
/// # Errors
/// [`StoreError::Conflict`] where the new name is taken.
pub async fn update(tx: &mut Tx, row: &mut AgentRow) -> Result<(), StoreError> {
    row.version += 1;
    sql("UPDATE agents SET name = $1, definition = $2, version = $3, updated_at = $4 WHERE id = $5")
        .bind(row.definition.name.clone())
        .bind(serde_json::to_string(&Stored::from(&row.definition))?)
        .bind(row.version)
        .bind(row.updated_at.0)
        .bind(row.id.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

/// Removes an agent that no session uses; false where one does.
///
/// # Errors
/// Where the store fails.
pub async fn delete(tx: &mut Tx, id: AgentId) -> Result<bool, StoreError> {
    let done =
        sql("DELETE FROM agents WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM session_agents WHERE agent_id = $1)")
            .bind(id.to_string())
            .execute(tx)
            .await?;
    Ok(done > 0)
}

/// The agent of this id or name.
///
/// # Errors
/// Where the store fails.
pub async fn find(connection: &mut Read, id_or_name: &str) -> Result<Option<AgentRow>, StoreError> {
    sql("SELECT * FROM agents WHERE id = $1 OR name = $1").bind(id_or_name).fetch_optional(connection, agent).await
}

/// Agents by name, after the name `after`: at most `limit`, and about so many bytes.
///
/// # Errors
/// Where the store fails.
pub async fn list(connection: &mut Read, after: &str, bounds: (u32, usize)) -> Result<Batch<AgentRow>, StoreError> {
    sql("SELECT * FROM agents WHERE name > $1 ORDER BY name").bind(after).fetch_batch(connection, bounds, agent).await
}

/// Whether the record of any agent is damaged.
///
/// # Errors
/// Where the store fails.
pub async fn any_damaged(connection: &mut Read) -> Result<bool, StoreError> {
    Ok(!sql("SELECT * FROM agents").fetch_sound(connection, agent).await?.damaged.is_empty())
}

/// The names of the images that agents bring along.
///
/// # Errors
/// Where the store fails.
pub async fn images(connection: &mut Read) -> Result<Vec<String>, StoreError> {
    let all = sql("SELECT * FROM agents ORDER BY name").fetch_all(connection, agent).await?;
    Ok(all.into_iter().filter_map(|agent| agent.definition.image).collect())
}

/// The agents of a session, the first one first, without those whose record is damaged.
///
/// # Errors
/// Where the store fails.
pub async fn of_session(connection: &mut Read, session: SessionId) -> Result<Vec<AgentRow>, StoreError> {
    Ok(assigned(connection, session).await?.rows)
}

/// The agents of a session, the first one first, and those whose record is damaged.
///
/// # Errors
/// Where the store fails.
pub async fn assigned(connection: &mut Read, session: SessionId) -> Result<Sound<AgentRow>, StoreError> {
    sql("SELECT a.* FROM session_agents s JOIN agents a ON a.id = s.agent_id WHERE s.session_id = $1 ORDER BY s.place")
        .bind(session.to_string())
        .fetch_sound(connection, agent)
        .await
}

/// The ids of the agents of a session, the first one first.
///
/// # Errors
/// Where the store fails.
pub async fn ids_of_session(connection: &mut Read, session: SessionId) -> Result<Vec<AgentId>, StoreError> {
    let found = sql("SELECT agent_id FROM session_agents WHERE session_id = $1 ORDER BY place")
        .bind(session.to_string())
        .fetch_sound(connection, |row| row.id("agent_id"))
        .await?;
    Ok(found.rows)
}

/// Makes these the agents of a session.
///
/// # Errors
/// Where the store fails.
pub async fn assign(tx: &mut Tx, session: SessionId, agents: &[AgentId]) -> Result<(), StoreError> {
    sql("DELETE FROM session_agents WHERE session_id = $1").bind(session.to_string()).execute(tx).await?;
    for (place, agent) in (0_i64..).zip(agents) {
        sql("INSERT INTO session_agents (session_id, place, agent_id) VALUES ($1, $2, $3)")
            .bind(session.to_string())
            .bind(place)
            .bind(agent.to_string())
            .execute(tx)
            .await?;
    }
    Ok(())
}
