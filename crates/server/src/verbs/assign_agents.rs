//! Change which agents a session has.

use raworc_core::events::SessionUpdated;
use raworc_core::permissions::Actor;
use raworc_store::agents::{self, AgentRow};
use raworc_store::audit;

use super::find::{self, Purpose};
use crate::app::Shared;
use crate::change::Change;
use crate::error::Failure;

/// Makes these the session's agents, from the next message on.
///
/// # Errors
/// 422 where one is not there.
pub async fn assign_agents(
    app: &Shared,
    actor: &Actor,
    id_or_name: String,
    names: Vec<String>,
) -> Result<Vec<AgentRow>, Failure> {
    let (actor, now) = (actor.clone(), app.now());
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let row = find::session(tx, &actor, &id_or_name, Purpose::Use).await?;
                let found = find::agents(tx, &names).await?;
                let ids: Vec<_> = found.iter().map(|agent| agent.id).collect();
                agents::assign(tx, row.id, &ids).await?;
                audit::append(tx, now, &actor, "session.assign", &row.id.to_string()).await?;
                let mut change = Change::begin(tx, row, now, actor.name.clone());
                let names = found.iter().map(|agent| agent.definition.name.clone()).collect();
                change.log(SessionUpdated { fields: vec!["agents".into()], agents: Some(names) }).await?;
                change.configure().await?;
                change.save().await?;
                Ok(found)
            })
        })
        .await
}
