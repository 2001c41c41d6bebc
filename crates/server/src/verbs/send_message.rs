//! Send a message to a session.

use raworc_api::message::{Role, SendMessage, Status};
use raworc_api::problem::Problem;
use raworc_core::events::{MessageQueued, Speaker};
use raworc_core::ids::MessageId;
use raworc_core::limits::MESSAGE_BYTES_MAX;
use raworc_core::permissions::Actor;
use raworc_core::session::Event;
use raworc_store::messages::{self, MessageRow};
use raworc_store::{agents, audit};
use serde_json::{Map, Value};

use super::check::Checks;
use super::find::{self, Purpose};
use super::idempotent::Key;
use crate::app::Shared;
use crate::change::Change;
use crate::error::Failure;

/// A user message that is to be queued.
#[derive(Clone, Debug, Default)]
pub struct NewMessage {
    /// The text.
    pub content: String,
    /// The agent that is to answer; the session's first where absent.
    pub agent: Option<String>,
    /// The sender's.
    pub metadata: Map<String, Value>,
}

/// Queues a message; durable when this answers.
///
/// # Errors
/// 409 where the session takes no messages, 422 where the message is wrong.
pub async fn send_message(
    app: &Shared,
    actor: &Actor,
    id_or_name: String,
    body: SendMessage,
    key: Option<Key>,
) -> Result<MessageRow, Failure> {
    check(&body)?;
    let (actor, now) = (actor.clone(), app.now());
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let row = find::session(tx, &actor, &id_or_name, Purpose::Use).await?;
                if let Some(key) = &key
                    && let Some(made) = key.made_before(tx, &actor).await?
                {
                    let id: MessageId = made.parse().map_err(|_| Failure::not_found("message", &made))?;
                    return messages::find(tx, row.id, id).await?.ok_or_else(|| Failure::not_found("message", &made));
                }
                let mut new =
                    NewMessage { content: body.content, agent: None, metadata: body.metadata.unwrap_or_default() };
                if let Some(name) = &body.agent {
                    let assigned = agents::of_session(tx, row.id).await?;
                    let agent = assigned.iter().find(|a| a.definition.name == *name || a.id.to_string() == *name);
                    let agent = agent.ok_or_else(|| Problem::field("agent", not_assigned(name)))?;
                    new.agent = Some(agent.definition.name.clone());
                }
                audit::append(tx, now, &actor, "message.send", &row.id.to_string()).await?;
                let mut change = Change::begin(tx, row, now, actor.name.clone());
                let message = queue(&mut change, new).await?;
                if let Some(key) = &key {
                    key.remember(change.tx(), &actor, message.id.to_string(), now).await?;
                }
                change.save().await?;
                Ok(message)
            })
        })
        .await
}

/// Puts a message into the conversation and its session's queue.
///
/// # Errors
/// Where the session takes none.
pub async fn queue(change: &mut Change<'_>, new: NewMessage) -> Result<MessageRow, Failure> {
    change.step(&Event::MessageQueued).await?;
    let id = MessageId(change.tx().new_id());
    let (agent, content) = (new.agent.clone(), new.content.clone());
    let seq = change.log(MessageQueued { message_id: id, role: Speaker::User, agent, content }).await?;
    let message = MessageRow {
        id,
        session_id: change.row.id,
        seq,
        role: Role::User,
        content: new.content,
        agent: new.agent,
        status: Status::Queued,
        reply_to: None,
        attempts: 0,
        losses: 0,
        started_seq: None,
        cancel_wanted: false,
        error: None,
        usage: None,
        metadata: new.metadata,
        created_at: change.now,
        finished_at: None,
        finished_seq: None,
    };
    messages::insert(change.tx(), &message).await?;
    Ok(message)
}

fn check(body: &SendMessage) -> Result<(), Failure> {
    let mut checks = Checks::default();
    if body.content.is_empty() || body.content.len() > MESSAGE_BYTES_MAX {
        checks.fault("content", format!("must have 1 to {MESSAGE_BYTES_MAX} bytes, has {}", body.content.len()));
    }
    if body.content.contains('\0') {
        checks.fault("content", "must not contain NUL characters");
    }
    checks.metadata(body.metadata.as_ref());
    checks.done()
}

fn not_assigned(name: &str) -> String {
    format!("the session has no agent {name:?}; PUT …/agents assigns one, GET …/agents lists those it has")
}
