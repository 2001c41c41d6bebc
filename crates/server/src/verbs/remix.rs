//! Make a session from another one's checkpoint.

use std::time::Duration;

use raworc_api::session::{CreateSession, RemixSession};
use raworc_core::checkpoints::Cause;
use raworc_core::conversation::standing;
use raworc_core::ids::{LayerId, MessageId};
use raworc_core::limits::NAME_CHARACTERS_MAX;
use raworc_core::permissions::{Action, Actor};
use raworc_store::checkpoints::{self, CheckpointRow, Status};
use raworc_store::messages;
use raworc_store::sessions::{self, SessionRow};
use raworc_store::{agents, audit};
use serde_json::json;
use uuid::Uuid;

use super::checkpoints as versions;
use super::create_session::{check, made_before, new_row};
use super::find::{self, Purpose};
use super::idempotent::Key;
use super::send_message::{NewMessage, queue};
use crate::app::{Shared, permit};
use crate::change::Change;
use crate::error::Failure;

/// Makes it: the parent's configuration with what the body changes, its conversation up to the checkpoint, its workspace as
/// of then. Tokens and secrets are not taken over.
///
/// # Errors
/// 404 where there is no such session or checkpoint, 422 where the body is wrong.
pub async fn remix(
    app: &Shared,
    actor: &Actor,
    id_or_name: String,
    body: RemixSession,
    key: Option<Key>,
) -> Result<SessionRow, Failure> {
    permit(actor, Action::CreateSession, "session", "")?;
    let parent = {
        let mut connection = app.store.read().await?;
        if let Some(made) = made_before(&mut connection, actor, key.as_ref()).await? {
            return Ok(made);
        }
        find::session(&mut connection, actor, &id_or_name, Purpose::Use).await?
    };
    let wanted = wanted(&parent, &body);
    check(&wanted)?;
    let from = match body.checkpoint {
        Some(n) => versions::usable(app, parent.id, n).await?,
        None => versions::fresh(app, actor, &parent).await?,
    };
    let (actor, now, agent_ids) = (actor.clone(), app.now(), body.agent_ids);
    app.store
        .write(move |transaction| {
            Box::pin(async move {
                if let Some(made) = made_before(transaction.connection(), &actor, key.as_ref()).await? {
                    return Ok(made);
                }
                // It may have been given up, or moved to another layer, since it was looked at.
                let found = checkpoints::find(transaction.connection(), parent.id, from.n).await?;
                let from = found.ok_or_else(|| Failure::not_found("checkpoint", &from.n.to_string()))?;
                let agents = match agent_ids {
                    Some(names) => find::agents(transaction.connection(), &names).await?,
                    None => agents::of_session(transaction.connection(), parent.id).await?,
                };
                let mut row = new_row(&actor, &wanted, now);
                row.parent_id = Some(parent.id);
                row.parent_checkpoint = Some(from.n);
                row.layer_id = from.layer_id;
                sessions::insert(transaction.connection(), &row).await?;
                let ids: Vec<_> = agents.iter().map(|agent| agent.id).collect();
                agents::assign(transaction.connection(), row.id, &ids).await?;
                audit::append(transaction.connection(), now, &actor, "session.remix", &parent.id.to_string()).await?;
                if let Some(key) = &key {
                    key.remember(transaction.connection(), &actor, row.id.to_string(), now).await?;
                }
                let mut change = Change::begin(transaction, row, now, actor.name.clone());
                let names: Vec<&str> = agents.iter().map(|agent| agent.definition.name.as_str()).collect();
                let data = json!({
                    "name": change.row.name, "agents": names,
                    "parent_session_id": parent.id, "parent_checkpoint": from.n,
                });
                change.log("session.created", data).await?;
                inherit(&mut change, &parent, &from).await?;
                if !change.row.starting_prompt.is_empty() {
                    let content = change.row.starting_prompt.clone();
                    queue(&mut change, NewMessage { content, ..NewMessage::default() }).await?;
                }
                Ok(change.save().await?)
            })
        })
        .await
}

/// What the new session is to be like.
fn wanted(parent: &SessionRow, body: &RemixSession) -> CreateSession {
    let settings = &parent.settings;
    let suffix = &Uuid::new_v4().simple().to_string()[..8];
    let short: String = parent.name.chars().take(NAME_CHARACTERS_MAX - suffix.len() - 1).collect();
    let resources = raworc_api::session::ResourcesWanted {
        cpu: Some(body.resources.and_then(|wanted| wanted.cpu).unwrap_or(settings.cpu)),
        memory: Some(body.resources.and_then(|wanted| wanted.memory).unwrap_or(settings.memory)),
        pids: Some(body.resources.and_then(|wanted| wanted.pids).unwrap_or(settings.pids)),
    };
    let plan = body.checkpoints.unwrap_or_default();
    let checkpoints = raworc_api::checkpoint::CheckpointPlanWanted {
        policy: plan.policy.or(Some(settings.checkpoints.policy)),
        every_seconds: plan.every_seconds.or(settings.checkpoints.every.map(|every| every.as_secs())),
        keep_last: plan.keep_last.or(Some(settings.checkpoints.keep_last)),
    };
    CreateSession {
        name: Some(body.name.clone().unwrap_or_else(|| format!("{short}-{suffix}"))),
        starting_prompt: body.starting_prompt.clone(),
        agent_ids: body.agent_ids.clone(),
        waiting_timeout_seconds: body.waiting_timeout_seconds.or(Some(parent.machine.waiting_timeout.as_secs())),
        ttl_seconds: body.ttl_seconds.or(parent.machine.ttl.as_ref().map(Duration::as_secs)),
        metadata: Some(body.metadata.clone().unwrap_or_else(|| settings.metadata.clone())),
        resources: Some(resources),
        env: Some(body.env.clone().unwrap_or_else(|| settings.env.clone())),
        background_activity: body.background_activity.or(Some(settings.background_activity)),
        checkpoints: Some(checkpoints),
    }
}

/// The conversation up to the checkpoint, and the checkpoint itself as the new session's first.
async fn inherit(change: &mut Change<'_>, parent: &SessionRow, from: &CheckpointRow) -> Result<(), Failure> {
    let ranges = standing(from.seq, &parent.rewinds);
    let inherited = messages::ended_in(change.connection(), parent.id, &ranges, from.seq).await?;
    let mut ids = std::collections::HashMap::new();
    for mut message in inherited {
        let id = MessageId(Uuid::now_v7());
        ids.insert(message.id, id);
        let data = json!({ "message_id": id, "role": message.role, "from": message.id, "agent": message.agent });
        message.seq = change.log("message.inherited", data).await?;
        message.id = id;
        message.session_id = change.row.id;
        message.reply_to = message.reply_to.and_then(|id| ids.get(&id).copied());
        message.started_seq = None;
        message.finished_seq = Some(message.seq);
        messages::insert(change.connection(), &message).await?;
    }
    change.row.writable_id = LayerId(Uuid::new_v4());
    let actor = from.created_by.clone();
    let mut own = super::save::new_row(&mut change.row, Cause::Remix, from.label.clone(), &actor, change.now);
    (own.status, own.layer_id) = (Status::Ready, from.layer_id);
    (own.bytes, own.files) = (from.bytes, from.files);
    checkpoints::insert(change.connection(), &own).await?;
    Ok(())
}
