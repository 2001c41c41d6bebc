//! Take the next message of a session: a turn begins, which its host or the server runs.

use std::collections::BTreeMap;

use raworc_api::agent::AgentRuntime;
use raworc_api::message::{MessageError, Status};
use raworc_core::events::{LogEvent, MessageStarted, Outcome};
use raworc_core::ids::{ContainerId, TurnId};
use raworc_core::limits::OUTPUT_BYTES_MAX;
use raworc_core::link::{Program, WORKSPACE_PATH, Work, WorkId};
use raworc_core::session::{Event, Running, State};
use raworc_store::agents::{self, AgentRow};
use raworc_store::messages::{self, MessageRow};
use raworc_store::sessions::SessionRow;
use raworc_store::{Read, Sound, StoreError, events};

use crate::app::Shared;
use crate::change::{Change, SYSTEM};
use crate::error::Failure;

/// What a turn is.
#[derive(Clone, Debug)]
pub enum Task {
    /// The host runs it.
    Host(Work),
    /// It runs in the server.
    Server(Running),
}

/// Takes the next message, if one waits and this container may have it: BUSY from then on.
///
/// # Errors
/// Where the store fails.
pub async fn take_message(app: &Shared, container: ContainerId) -> Result<Option<Task>, Failure> {
    let now = app.now();
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let mut change = Change::load(tx, container.session, now, SYSTEM).await?;
                let before = change.row.last_seq;
                let work = take(&mut change, container).await?;
                // Also where the message ended instead, because its agent has gone.
                if change.row.last_seq != before {
                    change.save().await?;
                }
                Ok(work)
            })
        })
        .await
}

async fn take(change: &mut Change<'_>, container: ContainerId) -> Result<Option<Task>, Failure> {
    let machine = &change.row.machine;
    if machine.generation != container.generation || machine.state != State::Ready || machine.queued == 0 {
        return Ok(None);
    }
    let session = change.row.id;
    let Some(mut message) = messages::queued(change.tx(), session, 1).await?.pop() else {
        return Ok(None);
    };
    message.attempts += 1;
    let turn = TurnId(change.tx().new_id());
    let running = Running { turn, message: message.id, attempt: message.losses + 1 };
    change.step(&Event::MessageTaken { generation: container.generation, running }).await?;
    let Sound { rows: assigned, damaged } = agents::assigned(change.tx(), session).await?;
    let agent = match &message.agent {
        Some(name) => assigned.into_iter().find(|agent| agent.definition.name == *name),
        // One that is damaged may be the first: nobody else speaks for it.
        None => assigned.into_iter().next().filter(|_| damaged.is_empty()),
    };
    let name = agent.as_ref().map(|agent| agent.definition.name.clone());
    let attempt = message.attempts;
    let agent_id = agent.as_ref().map(|agent| agent.id);
    let runtime = agent.as_ref().map(|agent| agent.definition.runtime.as_str().to_owned());
    let started =
        MessageStarted { message_id: message.id, turn_id: Some(turn), attempt, agent: name, agent_id, runtime };
    message.started_seq = Some(change.log(started).await?);
    message.status = Status::Processing;
    messages::update(change.tx(), &message).await?;
    match agent {
        Some(agent) => Ok(Some(task(&change.row, running, &message, &agent))),
        None => {
            fail_without_agent(change, container, turn, &mut message, !damaged.is_empty()).await?;
            Ok(None)
        }
    }
}

/// The agent that the message names was taken from the session after the message was sent, or its record is damaged.
async fn fail_without_agent(
    change: &mut Change<'_>,
    container: ContainerId,
    turn: TurnId,
    message: &mut MessageRow,
    is_damaged: bool,
) -> Result<(), Failure> {
    let name = message.agent.as_deref().unwrap_or_default();
    let why = if is_damaged {
        "the record of an agent of the session is damaged; have an administrator mend it (`raworc health` names it), or assign \
         another agent, and send the message again"
            .to_owned()
    } else {
        format!("the session no longer has the agent {name:?}; assign it and send the message again")
    };
    let error = MessageError { code: "not_started".into(), message: why };
    change.finish_message(message, (Outcome::Failed, Some(error)), Some(turn), None).await?;
    change.step(&Event::MessageFinished { generation: container.generation, turn }).await
}

/// What is to be done in a turn.
fn task(session: &SessionRow, running: Running, message: &MessageRow, agent: &AgentRow) -> Task {
    match agent.definition.runtime {
        AgentRuntime::Shell => host_task(session, running, message, agent),
        AgentRuntime::Model => Task::Server(running),
    }
}

/// What is to be done in a turn that the host runs.
pub fn host_task(session: &SessionRow, running: Running, message: &MessageRow, agent: &AgentRow) -> Task {
    let program = Program::Shell { script: message.content.clone() };
    Task::Host(work(session, running.turn, message, (agent, program)))
}

/// The beginning of the turn that is going on at a message, as its log has it: whose turn it is does not change with the session's agents.
///
/// # Errors
/// Where the store fails.
pub async fn beginning(connection: &mut Read, message: &MessageRow) -> Result<Option<MessageStarted>, StoreError> {
    let Some(seq) = message.started_seq else { return Ok(None) };
    let found = events::batch(connection, message.session_id, seq.saturating_sub(1), (1, usize::MAX)).await?.rows;
    Ok(found.first().and_then(|event| match LogEvent::read(&event.kind, &event.data) {
        Some(LogEvent::MessageStarted(started)) if started.message_id == message.id => Some(started),
        _ => None,
    }))
}

/// The agent whose turn it is; none where it is no longer registered.
///
/// # Errors
/// Where the store fails.
pub async fn agent_of(connection: &mut Read, started: &MessageStarted) -> Result<Option<AgentRow>, StoreError> {
    match (started.agent_id, &started.agent) {
        (Some(id), _) => agents::find(connection, &id.to_string()).await,
        (None, Some(name)) => agents::find(connection, name).await,
        (None, None) => Ok(None),
    }
}

/// What the host is to do in a turn.
fn work(session: &SessionRow, turn: TurnId, message: &MessageRow, (agent, program): (&AgentRow, Program)) -> Work {
    let mut env: BTreeMap<String, String> = session.settings.env.clone();
    env.extend(agent.definition.config.env.clone());
    env.insert("RAWORC_SESSION_ID".into(), session.id.to_string());
    env.insert("RAWORC_SESSION_NAME".into(), session.name.clone());
    env.insert("RAWORC_MESSAGE_ID".into(), message.id.to_string());
    Work {
        id: WorkId::Turn(turn),
        program,
        env,
        directory: WORKSPACE_PATH.to_owned(),
        timeout_seconds: agent.definition.config.timeout_seconds,
        output_bytes_max: OUTPUT_BYTES_MAX,
    }
}
