//! Every kind of event. Order: sessions, messages and their turns, tools, commands, terminals, files, checkpoints, models, records.
//!
//! Times are RFC 3339 in UTC, spans of time are in seconds, sizes in bytes. A field that is an `Option` is null where there is none;
//! one that is also marked with `skip_serializing_if` is left out.

use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use super::parts::{ImageName, MessageError, StreamEnd, StreamStart, TurnResult};
use super::words::{EnforcedBy, Outcome, Speaker};
use crate::checkpoints::Cause;
use crate::ids::{AgentId, MessageId, ModelCallId, SessionId, TurnId};
use crate::link::OutputStream;
use crate::models::CallEnd;
use crate::quantity::Bytes;
use crate::session::{FaultCode, Reason, State, TerminationReason};

events! {
    /// A session was created: the first event of every log.
    "session.created" SessionCreated {
        /// Its name.
        name: String,
        /// The names of its agents, in order.
        agents: Vec<String>,
        /// The image that its containers run, where it named one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<ImageName>,
        /// The image of a checkpoint that it goes on from, where it does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<ImageName>,
        /// The session that it was made from, of a remix.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent_session_id: Option<SessionId>,
        /// The number of that session's checkpoint, of a remix.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent_checkpoint: Option<u64>,
    }

    /// What people configure of a session was changed.
    "session.updated" SessionUpdated {
        /// The names of the fields; none where the request changed nothing.
        fields: Vec<String>,
        /// The names of its agents, where these were changed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agents: Option<Vec<String>>,
    }

    /// The session went from one state to another.
    "session.state_changed" SessionStateChanged {
        /// The state before.
        from: State,
        /// The state from now on.
        to: State,
        /// Why.
        reason: Reason,
    }

    /// The session failed, and goes to ERROR.
    "session.failed" SessionFailed {
        /// What kind of failure.
        code: FaultCode,
        /// What happened, for people.
        message: String,
        /// When it is started again; null where a person has to.
        restarts_at: Option<Timestamp>,
    }

    /// Someone paused the session: messages wait, and do not wake it.
    "session.paused" SessionPaused {}

    /// Someone resumed the session.
    "session.resumed" SessionResumed {}

    /// The session was terminated: it takes no more messages.
    "session.terminated" SessionTerminated {
        /// Why.
        reason: TerminationReason,
    }

    /// Someone deleted the session: it is hidden.
    "session.deleted" SessionDeleted {}

    /// Someone took back the end of the session.
    "session.restored" SessionRestored {}

    /// Someone asked for a new container.
    "session.restarted" SessionRestarted {}

    /// Its container waits for others to start, or for work on its workspace. Told every 20 seconds.
    "session.start_waiting" SessionStartWaiting {}

    /// The session took as much of the disk as it may.
    "session.disk_quota_exceeded" SessionDiskQuotaExceeded {
        /// Bytes that it takes; null where they are too many to be counted.
        used_bytes: Option<u64>,
        /// Bytes that it may take; null where its limit was lifted meanwhile.
        limit_bytes: Option<Bytes>,
        /// What was done about it.
        enforced_by: EnforcedBy,
    }

    /// The files of the deleted session were removed.
    "session.purged" SessionPurged {}

    /// The session is to go back to a checkpoint.
    "session.rewinding" SessionRewinding {
        /// The number of the checkpoint.
        checkpoint: u64,
        /// The number of the checkpoint of what was there before.
        saved_as: u64,
    }

    /// The session went back to a checkpoint: workspace and conversation are as they were then.
    "session.rewound" SessionRewound {
        /// The number of the checkpoint.
        checkpoint: u64,
        /// The number of the checkpoint of what was there before.
        saved_as: u64,
    }

    /// The session did not go back, and is as it was.
    "session.rewind_failed" SessionRewindFailed {
        /// The number of the checkpoint.
        checkpoint: u64,
        /// Why, for people.
        error: String,
    }

    /// A message was added to the conversation, and waits for its turn.
    "message.queued" MessageQueued {
        /// The message.
        message_id: MessageId,
        /// Who speaks: always `user`.
        role: Speaker,
        /// The name of the agent that is to answer; null: the first.
        agent: Option<String>,
        /// The text, 1 byte to 1 MiB.
        content: String,
    }

    /// A message that the session took over from its parent, or from an imported checkpoint.
    "message.inherited" MessageInherited {
        /// Its id here. Ids are unique within a session only: a message that is shared with the parent has the same id there.
        message_id: MessageId,
        /// Who speaks.
        role: Speaker,
        /// Its id in the parent; null for an imported one.
        from: Option<MessageId>,
        /// The name of the agent that was to answer, or that spoke.
        agent: Option<String>,
    }

    /// A turn begins: an agent works on a message. Its end follows, as `message.finished` or `message.requeued`.
    "message.started" MessageStarted {
        /// The message.
        message_id: MessageId,
        /// The turn; left out in logs of earlier builds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        turn_id: Option<TurnId>,
        /// How often work on the message has begun, with this one: 1, 2, 3, ….
        attempt: u32,
        /// The name of the agent; null where it is gone, and the turn fails at once.
        agent: Option<String>,
        /// The agent's id; left out where it is gone, and in logs of earlier builds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agent_id: Option<AgentId>,
        /// How the agent runs in this turn, whatever becomes of its definition: `shell` or `model`; left out as `agent_id` is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        runtime: Option<String>,
    }

    /// The agent wrote something.
    "message.delta" MessageDelta {
        /// The message that is answered.
        message_id: MessageId,
        /// The turn; left out in logs of earlier builds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        turn_id: Option<TurnId>,
        /// Where it was written to.
        stream: OutputStream,
        /// What was written. Never ends within a character.
        text: String,
    }

    /// The agent's answer is in the conversation.
    "message.added" MessageAdded {
        /// The answer.
        message_id: MessageId,
        /// The turn; left out in logs of earlier builds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        turn_id: Option<TurnId>,
        /// Who speaks: always `agent`.
        role: Speaker,
        /// The message that is answered.
        reply_to: MessageId,
        /// The name of the agent.
        agent: Option<String>,
    }

    /// A turn ended without a result, since its container was lost or is to be replaced: the message waits again.
    "message.requeued" MessageRequeued {
        /// The message.
        message_id: MessageId,
        /// The turn; left out in logs of earlier builds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        turn_id: Option<TurnId>,
        /// How often work on the message has begun.
        attempts: u32,
    }

    /// A message ended, and with it the turn that was going on, if there was one.
    "message.finished" MessageFinished {
        /// The message.
        message_id: MessageId,
        /// The turn; left out where none was going on, and in logs of earlier builds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        turn_id: Option<TurnId>,
        /// How it ended.
        status: Outcome,
        /// Why it did not end well; null where it did.
        error: Option<MessageError>,
        /// What became of the turn, where its host reported the end.
        #[serde(flatten)]
        result: Option<TurnResult>,
    }

    /// A command begins.
    "exec.started" ExecStarted {
        /// The command.
        exec_id: Uuid,
        /// What runs, the first 1024 characters.
        command: String,
        /// What it begins with.
        #[serde(flatten)]
        start: StreamStart,
    }

    /// A command ended.
    "exec.finished" ExecFinished {
        /// The command.
        exec_id: Uuid,
        /// How.
        #[serde(flatten)]
        end: StreamEnd,
    }

    /// A terminal begins.
    "terminal.opened" TerminalOpened {
        /// The terminal.
        terminal_id: Uuid,
        /// What runs in it, the first 1024 characters; `shell` where nothing else was asked for.
        command: String,
        /// What it begins with.
        #[serde(flatten)]
        start: StreamStart,
    }

    /// A terminal ended.
    "terminal.closed" TerminalClosed {
        /// The terminal.
        terminal_id: Uuid,
        /// How.
        #[serde(flatten)]
        end: StreamEnd,
    }

    /// Someone wrote a file or directory of the workspace from outside.
    "file.written" FileWritten {
        /// Its path in the workspace, with U+FFFD for what is not UTF-8.
        path: String,
        /// The path in base64, where it is not UTF-8.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path_bytes: Option<String>,
    }

    /// Someone removed a file or directory of the workspace from outside.
    "file.deleted" FileDeleted {
        /// Its path in the workspace, with U+FFFD for what is not UTF-8.
        path: String,
        /// The path in base64, where it is not UTF-8.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path_bytes: Option<String>,
    }

    /// A checkpoint can be used from now on.
    "checkpoint.created" CheckpointCreated {
        /// Its number.
        n: u64,
        /// Its name, where someone gave it one.
        label: Option<String>,
        /// Why it was taken.
        cause: Cause,
        /// The last event that belongs to it.
        seq: u64,
        /// Bytes of all its files.
        size_bytes: u64,
        /// Bytes of what it has changed.
        changed_bytes: u64,
        /// Number of its files.
        files: u64,
    }

    /// A checkpoint is fixed, and the disk does not take it yet: it is tried until it does.
    "checkpoint.delayed" CheckpointDelayed {
        /// Its number.
        n: u64,
        /// Why, for people.
        error: String,
    }

    /// The workspace could not be saved, and is kept as it is.
    "checkpoint.failed" CheckpointFailed {
        /// The checkpoint's number, where someone had asked for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        n: Option<u64>,
        /// Why it was to be taken.
        cause: Option<Cause>,
        /// What is wrong, for people.
        error: String,
    }

    /// Someone gave a checkpoint up.
    "checkpoint.deleted" CheckpointDeleted {
        /// Its number.
        n: u64,
    }

    /// Someone sent a checkpoint to a registry.
    "checkpoint.pushed" CheckpointPushed {
        /// Its number.
        n: u64,
        /// What it is called there.
        reference: String,
        /// The digest of its manifest there.
        digest: String,
        /// How many files have no form in an image, and did not go along.
        left_out: u64,
    }

    /// The server sent a checkpoint to the registry that the session names.
    "checkpoint.backed_up" CheckpointBackedUp {
        /// Its number.
        n: u64,
        /// What it is called there.
        reference: String,
        /// The digest of its manifest there.
        digest: String,
    }

    /// A checkpoint could not be sent there, and is tried again. Told the first time in a row.
    "checkpoint.backup_failed" CheckpointBackupFailed {
        /// Its number.
        n: u64,
        /// Why, for people.
        error: String,
    }

    /// A model wants a tool to be used. The calls of one answer of the model are told together, before the first of them begins.
    "tool.called" ToolCalled {
        /// Names the call.
        call_id: Uuid,
        /// The message that is answered.
        message_id: MessageId,
        /// The turn.
        turn_id: TurnId,
        /// The agent.
        agent: String,
        /// Which of the model's answers in this turn it belongs to, counted from 1.
        step: u32,
        /// The tool's name, as the model has it.
        tool: String,
        /// What the tool is given: an object, or where the model has written none, its text.
        input: Value,
    }

    /// A tool call has ended; the model is told the same.
    "tool.finished" ToolFinished {
        /// Names the call.
        call_id: Uuid,
        /// The message that is answered.
        message_id: MessageId,
        /// The turn in which it ended.
        turn_id: TurnId,
        /// What came of it. Where it is long, its beginning and its end, with a mark between them.
        output: String,
        /// It did not do what it was to do, or nobody knows whether it did.
        is_error: bool,
        /// How long it took; null where nobody saw its end.
        duration_seconds: Option<f64>,
    }

    /// The model is asked anew, since its answer was cut off. What it has written since the last tool call is no part of its answer.
    "agent.step_discarded" AgentStepDiscarded {
        /// The message that is answered.
        message_id: MessageId,
        /// The turn.
        turn_id: TurnId,
        /// The step, counted from 1.
        step: u32,
        /// Why, for people.
        reason: String,
    }

    /// A program in the session called a model, by the gateway. `GET /sessions/{id}/model-calls/{call_id}` has what was said.
    "model.called" ModelCalled {
        /// Names the call.
        call_id: ModelCallId,
        /// The turn in which the program ran; null for one that ran in none.
        turn_id: Option<TurnId>,
        /// The agent whose turn it was.
        agent: Option<String>,
        /// The provider's name.
        provider: String,
        /// The model's name at the provider.
        model: String,
        /// What the program asked for, where that is another model: one that no provider has is answered by the agent's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        requested_model: Option<String>,
        /// Tokens that the model read, those of its cache included; null where the provider has not told.
        input_tokens: Option<u64>,
        /// Tokens that the model wrote, its reasoning included.
        output_tokens: Option<u64>,
        /// Tokens of the input that the provider had in its cache.
        cached_tokens: Option<u64>,
        /// What it cost, in the currency of the model's price; null where it has none, or the provider has not told the tokens.
        cost: Option<f64>,
        /// From the call to the end of the answer.
        duration_seconds: f64,
        /// From the call to the first byte of the answer.
        first_byte_seconds: Option<f64>,
        /// The provider's last HTTP status; null where none came.
        status: Option<u16>,
        /// How it ended.
        end: CallEnd,
        /// How many times the provider was asked.
        attempts: u32,
        /// What went wrong, for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    }

    /// Stands in the place of an event whose record is damaged.
    "record.damaged" RecordDamaged {
        /// The column that cannot be read.
        column: String,
    }
}
