//! The end of a turn: the agent's answer joins the conversation, and the message that it answers ends.

use std::future::Future;

use raworc_api::message::{MessageError, MessageUsage, Role, Status};
use raworc_core::checkpoints::Cause;
use raworc_core::events::{LogEvent, MessageAdded, MessageDelta, Outcome, Speaker, TurnResult};
use raworc_core::ids::{ContainerId, MessageId, SessionId};
use raworc_core::session::{Event, Running};
use raworc_store::messages::{self, MessageRow};
use raworc_store::sessions::{self, SessionRow};
use raworc_store::{StoreError, events};
use serde_json::Map;

use crate::app::Shared;
use crate::change::{Change, message_damaged};
use crate::error::Failure;
use crate::layers::workspace_access;

/// How a turn ended.
#[derive(Clone)]
pub struct TurnEnd {
    /// What it means for the message.
    pub outcome: (Outcome, Option<MessageError>),
    /// From start to end.
    pub duration_micros: u64,
    /// What the answer says of its making.
    pub usage: MessageUsage,
    /// The answer; where there is none, it is all that the agent wrote in this turn.
    pub content: Option<String>,
}

/// Ends the turn that a session is in.
///
/// # Errors
/// Where the store fails.
pub async fn finish(
    change: &mut Change<'_>,
    container: ContainerId,
    running: Running,
    end: TurnEnd,
) -> Result<(), Failure> {
    let finished = Event::MessageFinished { generation: container.generation, turn: running.turn };
    let Some(mut message) = change.message(running.message).await? else {
        change.tell_end(running, Outcome::Failed, message_damaged()).await?;
        return change.step(&finished).await;
    };
    let TurnEnd { outcome, duration_micros, usage, content } = end;
    change.row.busy_micros = change.row.busy_micros.saturating_add(duration_micros);
    let reply_id = answer(change, running, &message, (&usage, content)).await?;
    let result = TurnResult {
        reply_id,
        exit_code: usage.exit_code,
        signal: usage.signal,
        duration_seconds: usage.duration_seconds,
        output_bytes_dropped: usage.output_bytes_dropped,
        output_file: usage.output_file,
    };
    change.finish_message(&mut message, outcome, Some(running.turn), Some(result)).await?;
    change.step(&finished).await
}

/// Adds the agent's answer to the conversation.
async fn answer(
    change: &mut Change<'_>,
    running: Running,
    message: &MessageRow,
    (usage, content): (&MessageUsage, Option<String>),
) -> Result<MessageId, StoreError> {
    let session = change.row.id;
    let since = message.started_seq.unwrap_or(message.seq);
    let content = match content {
        Some(content) => content,
        None => written(change, running, since).await?,
    };
    let started = events::batch(change.tx(), session, since.saturating_sub(1), (1, usize::MAX)).await?.rows;
    let agent = started.first().and_then(|event| match LogEvent::read(&event.kind, &event.data) {
        Some(LogEvent::MessageStarted(started)) => started.agent,
        _ => None,
    });
    let id = MessageId(change.tx().new_id());
    let actor = format!("agent:{}", agent.as_deref().unwrap_or_default());
    let added = MessageAdded {
        message_id: id,
        turn_id: Some(running.turn),
        role: Speaker::Agent,
        reply_to: message.id,
        agent: agent.clone(),
    };
    let seq = change.log_as(&actor, added).await?;
    let row = MessageRow {
        id,
        session_id: session,
        seq,
        role: Role::Agent,
        content,
        agent,
        status: Status::Done,
        reply_to: Some(message.id),
        attempts: message.attempts,
        losses: 0,
        started_seq: None,
        cancel_wanted: false,
        error: None,
        usage: Some(usage.clone()),
        metadata: Map::new(),
        created_at: change.now,
        finished_at: Some(change.now),
        finished_seq: Some(seq),
    };
    messages::insert(change.tx(), &row).await?;
    Ok(id)
}

/// All that the agent wrote in this turn, in the order it came.
async fn written(change: &mut Change<'_>, running: Running, since: u64) -> Result<String, StoreError> {
    let session = change.row.id;
    let mut content = String::new();
    for data in events::data_of_kind(change.tx(), session, MessageDelta::KIND, since).await? {
        match LogEvent::read(MessageDelta::KIND, &data) {
            // A turn that an older build began has none of its own.
            Some(LogEvent::MessageDelta(delta)) if delta.turn_id.is_none_or(|turn| turn == running.turn) => {
                content.push_str(&delta.text);
            }
            _ => {}
        }
    }
    Ok(content)
}

/// Runs what ends a message, `end`, so that a checkpoint follows where the workspace has changed. What `end` gets says whether it has;
/// it returns the session, where its message has ended.
///
/// # Errors
/// Where `end` fails, or the store does.
pub async fn then_save<F>(app: &Shared, session: SessionId, end: impl FnOnce(bool) -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<Option<SessionRow>, Failure>>,
{
    // What ran has ended, so it has written all that the checkpoint is to have.
    let has_changed = has_changed(app, session).await?;
    // Who learns that the message has ended, and asks for the checkpoint, waits for it.
    app.checkpoint_queue.expect(session);
    let ended = end(has_changed).await;
    if let Ok(Some(cause)) = ended.as_ref().map(|row| row.as_ref().and_then(|row| row.save_due)) {
        app.checkpoint_queue.enqueue(session, cause);
    }
    if !app.checkpoint_queue.release_expectation(session) {
        app.hub.notify(&[session]);
    }
    ended.map(|_| ())
}

/// Whether the end of a message is an occasion to save the workspace.
async fn has_changed(app: &Shared, session: SessionId) -> Result<bool, Failure> {
    let row = {
        let mut connection = app.store.read().await?;
        sessions::find(&mut connection, session).await?
    };
    let Some(row) = row.filter(|row| row.settings.checkpoints.wants(Cause::Message)) else { return Ok(false) };
    Ok(workspace_access::is_changed(app, &row).await.unwrap_or(true))
}
