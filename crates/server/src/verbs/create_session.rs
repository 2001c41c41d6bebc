//! Create a session.

use std::time::Duration;

use raworc_api::session::CreateSession;
use raworc_core::checkpoints::Plan;
use raworc_core::ids::{LayerId, SessionId};
use raworc_core::limits::{MESSAGE_BYTES_MAX, TTL_SECONDS, WAITING_TIMEOUT_DEFAULT, WAITING_TIMEOUT_SECONDS};
use raworc_core::names;
use raworc_core::permissions::{Action, Actor};
use raworc_core::session;
use raworc_core::time::Time;
use raworc_store::sessions::{self, SessionRow, Settings};
use raworc_store::{Connection, agents, audit};
use serde_json::json;
use uuid::Uuid;

use super::check::{Checks, plan, resources_or_default};
use super::idempotent::Key;
use super::send_message::{NewMessage, queue};
use crate::app::{Shared, permit};
use crate::change::Change;
use crate::error::Failure;

/// The agent of a session that names none.
pub const DEFAULT_AGENT: &str = "shell";

/// Makes a session, in INIT; its container is made right after.
///
/// # Errors
/// 422 where the body is wrong.
pub async fn create_session(
    app: &Shared,
    actor: &Actor,
    body: CreateSession,
    key: Option<Key>,
) -> Result<SessionRow, Failure> {
    permit(actor, Action::CreateSession, "session", "")?;
    check(&body)?;
    let (actor, now) = (actor.clone(), app.now());
    app.store
        .write(move |transaction| {
            Box::pin(async move {
                if let Some(made) = made_before(transaction.connection(), &actor, key.as_ref()).await? {
                    return Ok(made);
                }
                let names = body.agent_ids.clone().unwrap_or_else(|| vec![DEFAULT_AGENT.to_owned()]);
                let found = super::find::agents(transaction.connection(), &names).await?;
                let row = new_row(&actor, &body, now);
                sessions::insert(transaction.connection(), &row).await?;
                let ids: Vec<_> = found.iter().map(|agent| agent.id).collect();
                agents::assign(transaction.connection(), row.id, &ids).await?;
                audit::append(transaction.connection(), now, &actor, "session.create", &row.id.to_string()).await?;
                if let Some(key) = &key {
                    key.remember(transaction.connection(), &actor, row.id.to_string(), now).await?;
                }
                let mut change = Change::begin(transaction, row, now, actor.name.clone());
                let agent_names: Vec<&str> = found.iter().map(|agent| agent.definition.name.as_str()).collect();
                let name = change.row.name.clone();
                change.log("session.created", json!({ "name": name, "agents": agent_names })).await?;
                if !change.row.starting_prompt.is_empty() {
                    let content = change.row.starting_prompt.clone();
                    queue(&mut change, NewMessage { content, ..NewMessage::default() }).await?;
                }
                Ok(change.save().await?)
            })
        })
        .await
}

/// The session that an earlier request of this key made.
///
/// # Errors
/// Where the key was used for something else.
pub async fn made_before(
    connection: &mut Connection,
    actor: &Actor,
    key: Option<&Key>,
) -> Result<Option<SessionRow>, Failure> {
    let Some(key) = key else { return Ok(None) };
    let Some(made) = key.made_before(connection, actor).await? else {
        return Ok(None);
    };
    let id: SessionId = made.parse().map_err(|_| Failure::not_found("session", &made))?;
    Ok(sessions::find(connection, id).await?)
}

/// Collects what is wrong with a body.
///
/// # Errors
/// 422.
pub fn check(body: &CreateSession) -> Result<(), Failure> {
    let mut checks = Checks::default();
    if let Some(name) = &body.name {
        checks.check("name", names::check_title(name));
    }
    if body.starting_prompt.as_ref().is_some_and(|prompt| prompt.len() > MESSAGE_BYTES_MAX || prompt.contains('\0')) {
        checks.fault("starting_prompt", format!("must have at most {MESSAGE_BYTES_MAX} bytes, none of them NUL"));
    }
    checks.range("waiting_timeout_seconds", body.waiting_timeout_seconds, &WAITING_TIMEOUT_SECONDS);
    checks.range("ttl_seconds", body.ttl_seconds, &TTL_SECONDS);
    checks.metadata(body.metadata.as_ref());
    checks.env("env", body.env.as_ref());
    checks.resources(body.resources.as_ref());
    checks.plan(body.checkpoints.as_ref());
    checks.done()
}

/// A session that is to be made, as the body wants it.
pub fn new_row(actor: &Actor, body: &CreateSession, now: Time) -> SessionRow {
    let id = SessionId(Uuid::now_v7());
    let (cpu, memory, pids) = resources_or_default(body.resources);
    let waiting = body.waiting_timeout_seconds.map_or(WAITING_TIMEOUT_DEFAULT, Duration::from_secs);
    let text = id.to_string();
    SessionRow {
        id,
        name: body.name.clone().unwrap_or_else(|| format!("session-{}", &text[text.len() - 8..])),
        starting_prompt: body.starting_prompt.clone().unwrap_or_default(),
        owner_id: actor.account,
        owner_name: actor.name.clone(),
        settings: Settings {
            metadata: body.metadata.clone().unwrap_or_default(),
            cpu,
            memory,
            pids,
            env: body.env.clone().unwrap_or_default(),
            background_activity: body.background_activity.unwrap_or(true),
            checkpoints: plan(Plan::default(), body.checkpoints),
        },
        parent_id: None,
        parent_checkpoint: None,
        layer_id: None,
        writable_id: LayerId(Uuid::new_v4()),
        checkpoints: 0,
        rewinds: Vec::new(),
        machine: session::Session::new(waiting, body.ttl_seconds.map(Duration::from_secs), now),
        last_seq: 0,
        host_received: 0,
        version: 1,
        messages_ended: 0,
        busy_micros: 0,
        created_at: now,
        updated_at: now,
    }
}
