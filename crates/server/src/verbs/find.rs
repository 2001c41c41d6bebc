//! Finding the session or agent that a caller means.

use raworc_api::problem::Code;
use raworc_core::ids::SessionId;
use raworc_core::limits::PAGE_BYTES_MAX;
use raworc_core::permissions::{Action, Actor, Role};
use raworc_store::sessions::{self, Filter, SessionRow};
use raworc_store::{Read, StoreError, set_aside};

use crate::error::Failure;
use crate::policy::permit;

/// What the caller is going to do with a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Look.
    Read,
    /// Change or use.
    Use,
}

/// The session of this id or name, where the actor may.
///
/// # Errors
/// 404 where there is none for this actor; 409 where the name is not unique.
pub async fn session(
    connection: &mut Read,
    actor: &Actor,
    id_or_name: &str,
    purpose: Purpose,
) -> Result<SessionRow, Failure> {
    let action = |owner| match purpose {
        Purpose::Read => Action::ReadSession { owner },
        Purpose::Use => Action::UseSession { owner },
    };
    let found = match id_or_name.parse::<SessionId>() {
        Ok(id) => match sessions::find(connection, id).await {
            Err(damage @ StoreError::Damaged(_)) => {
                // Who may see the session is told that it is damaged; whose it is may be damaged, too.
                match set_aside::owner_of(connection, id).await? {
                    Some(owner) => permit(actor, action(owner), "session", id_or_name)?,
                    None if actor.role == Role::Admin => {}
                    None => return Err(Failure::not_found("session", id_or_name)),
                }
                return Err(damage.into());
            }
            found => found?,
        },
        Err(_) => by_name(connection, actor, id_or_name).await?,
    };
    let row = found.ok_or_else(|| Failure::not_found("session", id_or_name))?;
    permit(actor, action(row.owner_id), "session", id_or_name)?;
    Ok(row)
}

/// A name means a session that is there; only where there is none, a deleted one. One's own come before those of others.
async fn by_name(connection: &mut Read, actor: &Actor, name: &str) -> Result<Option<SessionRow>, Failure> {
    let (own, all) = (Some(actor.account), None);
    let places: &[_] = match actor.role {
        Role::Admin => &[(own, false), (all, false), (own, true), (all, true)],
        Role::Member => &[(own, false), (own, true)],
    };
    for &(owner, include_deleted) in places {
        let filter = Filter { owner, name: Some(name.to_owned()), include_deleted, ..Filter::default() };
        let mut found = sessions::list(connection, &filter, (1, PAGE_BYTES_MAX)).await?;
        if found.has_more {
            let detail = format!("more than one session is called {name:?}; use its id");
            return Err(Failure::new(Code::AmbiguousName, detail));
        }
        if let Some(row) = found.rows.pop() {
            return Ok(Some(row));
        }
        if let Some(damage) = found.damaged.pop() {
            return Err(StoreError::Damaged(Box::new(damage)).into());
        }
    }
    Ok(None)
}

/// The ids of agents given by id or name.
///
/// # Errors
/// 422 where one is not there, or there are none or too many.
pub async fn agents(connection: &mut Read, names: &[String]) -> Result<Vec<raworc_store::agents::AgentRow>, Failure> {
    use raworc_api::problem::Problem;
    use raworc_core::limits::AGENTS_PER_SESSION_MAX;
    if names.is_empty() || names.len() > AGENTS_PER_SESSION_MAX {
        let message = format!("must name 1 to {AGENTS_PER_SESSION_MAX} agents, names {}", names.len());
        return Err(Problem::field("agent_ids", message).into());
    }
    let mut found: Vec<raworc_store::agents::AgentRow> = Vec::new();
    for (place, name) in names.iter().enumerate() {
        let field = format!("agent_ids[{place}]");
        let agent = raworc_store::agents::find(connection, name).await?.ok_or_else(|| {
            Failure::from(Problem::field(&field, format!("there is no agent {name:?}; GET /agents lists them")))
        })?;
        if found.iter().any(|other| other.id == agent.id) {
            return Err(Problem::field(&field, format!("the agent {name:?} is named twice")).into());
        }
        found.push(agent);
    }
    Ok(found)
}
