//! Every kind of event. Order: sessions, messages and their turns, commands, terminals, files, checkpoints, records.
//!
//! Times are RFC 3339 in UTC, spans of time are in seconds, sizes in bytes. A field that is an `Option` is null where there is none;
//! one that is also marked with `skip_serializing_if` is left out.

use jiff::Timestamp;
use uuid::Uuid;

use super::words::{EnforcedBy, Outcome, Speaker, StreamError};
use crate::checkpoints::Cause;
use crate::ids::{MessageId, SessionId, TurnId};
use crate::link::OutputStream;
use crate::quantity::Bytes;
use crate::session::{FaultCode, Reason, State, TerminationReason};

object! {
    /// An image that a session uses.
    ImageName {
        /// Its name.
        name: String,
        /// The digest of its manifest, `sha256:…`.
        digest: String,
    }
}

object! {
    /// Why a message did not end well.
    MessageError {
        /// `exit_status`, `signal`, `timeout`, `not_started`, `cancelled`, `session_ended`, `host_died`, `out_of_memory`,
        /// `disk_quota_exceeded` or `record_damaged`.
        code: String,
        /// What happened, for people.
        message: String,
    }
}

object! {
    /// What became of a turn whose host reported its end.
    TurnResult {
        /// The agent's message.
        reply_id: MessageId,
        /// The exit status, 0 to 255; null where it did not exit.
        exit_code: Option<i32>,
        /// The signal that ended it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
        /// From start to end.
        duration_seconds: f64,
        /// Bytes of output that were left out because there was too much.
        output_bytes_dropped: u64,
        /// The file of the workspace that has all of the output, where some was left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output_file: Option<String>,
    }
}

object! {
    /// How a command or a terminal ended.
    StreamEnd {
        /// The exit status, 0 to 255; null where it did not exit, or nobody saw it.
        exit_code: Option<i32>,
        /// From start to end, where its host reported it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        duration_seconds: Option<f64>,
        /// The signal that ended it, where its streams were attached.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
        /// Why there is no exit status.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<StreamError>,
    }
}

object! {
    /// What a terminal, or a command with its streams attached, begins with.
    StreamStart {
        /// Its streams are attached: true, or left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attached: Option<bool>,
        /// Characters in a line, 1 to 4096, where there is a terminal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        columns: Option<u16>,
        /// Lines, 1 to 4096, where there is a terminal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rows: Option<u16>,
    }
}

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

    /// Stands in the place of an event whose record is damaged.
    "record.damaged" RecordDamaged {
        /// The column that cannot be read.
        column: String,
    }
}
