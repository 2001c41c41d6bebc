//! From records to what is shown outside.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use raworc_api::account::{Account, Token};
use raworc_api::agent::Agent;
use raworc_api::audit::AuditEntry;
use raworc_api::checkpoint::{Backup, Checkpoint, CheckpointPlan, CheckpointStatus};
use raworc_api::event::Event;
use raworc_api::image::{Image, ImageCheckpoint, SessionImage};
use raworc_api::message::Message;
use raworc_api::provider::{ModelPrice, Provider, ProviderModel};
use raworc_api::secret::Secret;
use raworc_api::session::{AssignedAgent, Resources, Session, SessionError, Usage};
use raworc_api::workspace::{FileEntry, FileKind};
use raworc_core::checkpoints::{self, Plan};
use raworc_core::models::Price;
use raworc_core::secrets::Target;
use raworc_core::time::Time;
use raworc_store::accounts::{AccountRow, TokenRow};
use raworc_store::agents::AgentRow;
use raworc_store::audit::AuditRow;
use raworc_store::checkpoints::{CheckpointRow, Status};
use raworc_store::events::EventRow;
use raworc_store::images::ImageRow;
use raworc_store::messages::MessageRow;
use raworc_store::providers::ProviderRow;
use raworc_store::secrets::SecretRow;
use raworc_store::sessions::{BackupState, ImageUsed, SessionRow};
use raworc_workspace::{Entry, EntryKind, FileTime};

/// A session with its agents.
pub fn session(row: SessionRow, agents: Vec<AssignedAgent>) -> Session {
    let machine = row.machine;
    let show = |at: Option<Time>| at.map(Time::to_timestamp);
    let restarts_at = show(machine.due_at);
    Session {
        id: row.id,
        name: row.name,
        starting_prompt: row.starting_prompt,
        state: machine.state,
        waiting_timeout_seconds: machine.waiting_timeout.as_secs(),
        ttl_seconds: machine.ttl.map(|ttl| ttl.as_secs()),
        created_by: row.owner_name,
        agents,
        metadata: row.settings.metadata,
        resources: Resources {
            cpu: row.settings.cpu,
            memory: row.settings.memory,
            pids: row.settings.pids,
            disk: row.settings.disk,
        },
        env: row.settings.env,
        background_activity: row.settings.background_activity,
        checkpoints: plan(&row.settings.checkpoints),
        backup: row.settings.backup.map(|plan| backup(plan, row.backup)),
        checkpoint: (row.checkpoints > 0).then_some(row.checkpoints),
        rewinding_to: machine.rewind,
        image: row.settings.image.map(used),
        from: row.settings.from.map(used),
        parent_session_id: row.parent_id,
        parent_checkpoint: row.parent_checkpoint,
        generation: machine.generation,
        error: machine
            .error
            .filter(|_| machine.state == raworc_core::session::State::Error)
            .map(|fault| SessionError { code: fault.code, message: fault.message, restarts_at }),
        queued_messages: machine.queued,
        last_seq: row.last_seq,
        usage: Usage { messages: row.messages_ended, busy_seconds: row.busy_micros as f64 / 1e6 },
        created_at: row.created_at.to_timestamp(),
        updated_at: row.updated_at.to_timestamp(),
        started_at: show(machine.started_at),
        last_activity_at: machine.last_activity_at.to_timestamp(),
        expires_at: show(machine.expires_at),
        paused_at: show(machine.paused_at),
        terminated_at: show(machine.terminated.map(|termination| termination.at)),
        termination_reason: machine.terminated.map(|termination| termination.reason),
        deleted_at: show(machine.deleted_at),
        purged_at: show(row.purged_at),
    }
}

fn plan(plan: &Plan) -> CheckpointPlan {
    CheckpointPlan {
        policy: plan.policy,
        every_seconds: plan.every.map(|every| every.as_secs()),
        keep_last: plan.keep_last,
    }
}

fn backup(plan: checkpoints::Backup, state: BackupState) -> Backup {
    Backup {
        registry: plan.registry,
        every_seconds: plan.every.as_secs(),
        checkpoint: state.checkpoint,
        at: state.at.map(Time::to_timestamp),
        error: state.error,
    }
}

fn used(image: ImageUsed) -> SessionImage {
    SessionImage { name: image.name, digest: image.digest }
}

/// An image.
pub fn image(row: ImageRow) -> Image {
    Image {
        id: row.id,
        name: row.name,
        digest: row.digest,
        size_bytes: row.bytes,
        files: row.files,
        checkpoint: row.summary.checkpoint.map(|of| ImageCheckpoint {
            session: of.session,
            n: of.n,
            label: of.label,
            messages: of.messages,
            taken_at: of.taken_at.to_timestamp(),
        }),
        shared: row.is_shared,
        created_by: row.owner_name,
        created_at: row.created_at.to_timestamp(),
    }
}

/// A checkpoint.
pub fn checkpoint(row: CheckpointRow) -> Checkpoint {
    Checkpoint {
        session_id: row.session_id,
        n: row.n,
        label: row.label,
        cause: row.cause,
        status: match row.status {
            Status::Pending => CheckpointStatus::Pending,
            Status::Saving => CheckpointStatus::Saving,
            Status::Ready => CheckpointStatus::Ready,
            Status::Failed => CheckpointStatus::Failed,
        },
        seq: row.seq,
        size_bytes: row.bytes,
        files: row.files,
        changed_bytes: row.changed_bytes,
        took_seconds: row.took_micros as f64 / 1e6,
        frozen_seconds: row.frozen_micros as f64 / 1e6,
        error: row.error,
        created_by: row.created_by,
        created_at: row.created_at.to_timestamp(),
    }
}

/// An agent as a session lists it.
pub fn assigned(row: AgentRow) -> AssignedAgent {
    AssignedAgent { id: row.id, name: row.definition.name, model: row.definition.model }
}

/// An agent.
pub fn agent(row: AgentRow) -> Agent {
    Agent {
        id: row.id,
        definition: row.definition,
        builtin: row.builtin,
        created_at: row.created_at.to_timestamp(),
        updated_at: row.updated_at.to_timestamp(),
    }
}

/// A provider, without its key.
pub fn provider(row: ProviderRow) -> Provider {
    let models = row.models.into_iter().map(|model| ProviderModel {
        id: model.id,
        aliases: model.aliases,
        context_tokens: model.context_tokens,
        max_output_tokens: model.max_output_tokens,
        price: model.price.map(price),
    });
    Provider {
        id: row.id,
        name: row.name,
        kind: row.kind,
        base_url: row.base_url,
        has_key: row.api_key.is_some(),
        models: models.collect(),
        timeout_seconds: row.timeout.as_secs(),
        builtin: row.builtin,
        created_at: row.created_at.to_timestamp(),
        updated_at: row.updated_at.to_timestamp(),
    }
}

/// A secret, without its value.
pub fn secret(row: SecretRow) -> Secret {
    let (hosts, header, format, env) = match row.target {
        Target::Hosts { hosts, header, format } => (hosts, Some(header), Some(format), None),
        Target::Env(env) => (Vec::new(), None, None, Some(env)),
    };
    Secret {
        id: row.id,
        name: row.name,
        in_container: env.is_some(),
        hosts,
        header,
        format,
        env,
        created_at: row.created_at.to_timestamp(),
        updated_at: row.updated_at.to_timestamp(),
    }
}

/// A price. It is stored in millionths.
pub fn price(price: Price) -> ModelPrice {
    let shown = |micros: u64| micros as f64 / 1e6;
    ModelPrice {
        input_per_million: shown(price.input_micros_per_million),
        output_per_million: shown(price.output_micros_per_million),
    }
}

/// A message.
pub fn message(row: MessageRow) -> Message {
    Message {
        id: row.id,
        seq: row.seq,
        session_id: row.session_id,
        role: row.role,
        content: row.content,
        agent: row.agent,
        status: row.status,
        reply_to: row.reply_to,
        attempts: row.attempts,
        error: row.error,
        created_at: row.created_at.to_timestamp(),
        finished_at: row.finished_at.map(Time::to_timestamp),
        usage: row.usage,
        metadata: row.metadata,
    }
}

/// An event.
pub fn event(row: EventRow) -> Event {
    Event {
        seq: row.seq,
        session_id: row.session_id,
        kind: row.kind,
        at: row.at.to_timestamp(),
        actor: row.actor,
        generation: row.generation,
        data: row.data,
    }
}

/// An entry of the audit trail.
pub fn audit_entry(row: AuditRow) -> AuditEntry {
    AuditEntry {
        id: row.id.to_string(),
        at: row.at.to_timestamp(),
        actor: row.account,
        account_id: row.account_id,
        action: row.action,
        target: row.target,
        outcome: row.outcome,
    }
}

/// An account.
pub fn account(row: AccountRow) -> Account {
    Account {
        id: row.id,
        name: row.name,
        role: row.role,
        created_at: row.created_at.to_timestamp(),
        closed_at: row.closed_at.map(Time::to_timestamp),
    }
}

/// A token's record.
pub fn token(row: TokenRow) -> Token {
    Token {
        id: row.id,
        account_id: row.account_id,
        name: row.name,
        created_at: row.created_at.to_timestamp(),
        expires_at: row.expires_at.map(Time::to_timestamp),
        revoked_at: row.revoked_at.map(Time::to_timestamp),
    }
}

/// Bytes of a name as text, and in base64 where the text does not tell them.
pub fn name(bytes: &[u8]) -> (String, Option<String>) {
    let text = String::from_utf8_lossy(bytes);
    let exact = matches!(text, Cow::Owned(_)).then(|| STANDARD.encode(bytes));
    (text.into_owned(), exact)
}

/// A time of a file. What is farther away than a date can say is at the end of time.
pub fn moment((seconds, nanoseconds): FileTime) -> Timestamp {
    let end = if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::new(seconds, nanoseconds.cast_signed()).unwrap_or(end)
}

/// A kind of file.
pub fn kind(kind: EntryKind) -> FileKind {
    match kind {
        EntryKind::File => FileKind::File,
        EntryKind::Directory => FileKind::Directory,
        EntryKind::Symlink => FileKind::Symlink,
        EntryKind::Other => FileKind::Other,
    }
}

/// An entry of a directory.
pub fn entry(entry: Entry) -> FileEntry {
    let (name, name_bytes) = name(&entry.name);
    let (target, target_bytes) = entry.target.as_deref().map(self::name).unzip();
    FileEntry {
        name,
        name_bytes,
        kind: kind(entry.kind),
        size: entry.size,
        mode: entry.mode,
        modified_at: moment(entry.modified),
        target,
        target_bytes: target_bytes.flatten(),
    }
}
