//! The registry of agents, and which sessions use them.

use raworc_api::agent::AgentDefinition;
use raworc_core::ids::{AgentId, SessionId};
use raworc_core::time::Time;

use crate::StoreError;
use crate::rows::Row;
use crate::sql::{Batch, Connection, sql};

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

fn agent(row: &Row<'_>) -> Result<AgentRow, StoreError> {
    Ok(AgentRow {
        id: row.id("id")?,
        definition: row.json("definition")?,
        builtin: row.integer("builtin")? != 0,
        version: row.integer("version")?,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
    })
}

/// Adds an agent.
///
/// # Errors
/// [`StoreError::Conflict`] where the name is taken.
pub async fn insert(connection: &mut Connection, row: &AgentRow) -> Result<(), StoreError> {
    sql("INSERT INTO agents (id, name, definition, builtin, version, created_at, updated_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)")
    .bind(row.id.to_string())
    .bind(row.definition.name.clone())
    .bind(serde_json::to_string(&row.definition)?)
    .bind(i64::from(row.builtin))
    .bind(row.version)
    .bind(row.created_at.0)
    .bind(row.updated_at.0)
    .execute(connection)
    .await?;
    Ok(())
}

/// Stores a changed definition and counts its version up.
///
/// # Errors
/// [`StoreError::Conflict`] where the new name is taken.
pub async fn update(connection: &mut Connection, row: &mut AgentRow) -> Result<(), StoreError> {
    row.version += 1;
    sql("UPDATE agents SET name = $1, definition = $2, version = $3, updated_at = $4 WHERE id = $5")
        .bind(row.definition.name.clone())
        .bind(serde_json::to_string(&row.definition)?)
        .bind(row.version)
        .bind(row.updated_at.0)
        .bind(row.id.to_string())
        .execute(connection)
        .await?;
    Ok(())
}

/// Removes an agent that no session uses; false where one does.
///
/// # Errors
/// Where the store fails.
pub async fn delete(connection: &mut Connection, id: AgentId) -> Result<bool, StoreError> {
    let done =
        sql("DELETE FROM agents WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM session_agents WHERE agent_id = $1)")
            .bind(id.to_string())
            .execute(connection)
            .await?;
    Ok(done > 0)
}

/// The agent of this id or name.
///
/// # Errors
/// Where the store fails.
pub async fn find(connection: &mut Connection, id_or_name: &str) -> Result<Option<AgentRow>, StoreError> {
    sql("SELECT * FROM agents WHERE id = $1 OR name = $1").bind(id_or_name).fetch_optional(connection, agent).await
}

/// Agents by name, after the name `after`: at most `limit`, and about so many bytes.
///
/// # Errors
/// Where the store fails.
pub async fn list(
    connection: &mut Connection,
    after: &str,
    (limit, bytes_max): (u32, usize),
) -> Result<Batch<AgentRow>, StoreError> {
    sql("SELECT * FROM agents WHERE name > $1 ORDER BY name LIMIT $2")
        .bind(after)
        .bind(i64::from(limit) + 1)
        .fetch_batch(connection, (limit, bytes_max), agent)
        .await
}

/// The names of the images that agents bring along.
///
/// # Errors
/// Where the store fails.
pub async fn images(connection: &mut Connection) -> Result<Vec<String>, StoreError> {
    let all = sql("SELECT * FROM agents ORDER BY name").fetch_all(connection, agent).await?;
    Ok(all.into_iter().filter_map(|agent| agent.definition.image).collect())
}

/// The agents of a session, the first one first.
///
/// # Errors
/// Where the store fails.
pub async fn of_session(connection: &mut Connection, session: SessionId) -> Result<Vec<AgentRow>, StoreError> {
    sql("SELECT a.* FROM session_agents s JOIN agents a ON a.id = s.agent_id WHERE s.session_id = $1 ORDER BY s.place")
        .bind(session.to_string())
        .fetch_all(connection, agent)
        .await
}

/// The ids of the agents of a session, the first one first.
///
/// # Errors
/// Where the store fails.
pub async fn ids_of_session(connection: &mut Connection, session: SessionId) -> Result<Vec<AgentId>, StoreError> {
    sql("SELECT agent_id FROM session_agents WHERE session_id = $1 ORDER BY place")
        .bind(session.to_string())
        .fetch_all(connection, |row| row.id("agent_id"))
        .await
}

/// Makes these the agents of a session.
///
/// # Errors
/// Where the store fails.
pub async fn assign(connection: &mut Connection, session: SessionId, agents: &[AgentId]) -> Result<(), StoreError> {
    sql("DELETE FROM session_agents WHERE session_id = $1").bind(session.to_string()).execute(&mut *connection).await?;
    for (place, agent) in (0_i64..).zip(agents) {
        sql("INSERT INTO session_agents (session_id, place, agent_id) VALUES ($1, $2, $3)")
            .bind(session.to_string())
            .bind(place)
            .bind(agent.to_string())
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}
