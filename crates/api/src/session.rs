//! Sessions.

use std::collections::BTreeMap;

use jiff::Timestamp;
use raworc_core::ids::{AgentId, Generation, SessionId};
use raworc_core::quantity::Bytes;
use raworc_core::session::{FaultCode, State, TerminationReason};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use crate::checkpoint::{Backup, BackupWanted, CheckpointPlan, CheckpointPlanWanted};
use crate::image::SessionImage;

/// `POST /sessions`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSession {
    /// The name, 1 to 128 characters; absent: generated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The first user message, unless empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starting_prompt: Option<String>,
    /// Ids or names of agents; the first answers messages that name none. Absent: `["shell"]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_ids: Option<Vec<String>>,
    /// Stop the container after this time without activity; 1 to 604800, default 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_timeout_seconds: Option<u64>,
    /// Terminate this long after creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Your own data; an object of at most 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// Resource limits of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourcesWanted>,
    /// Environment variables of all programs in the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// Whether background processes count as activity; default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background_activity: Option<bool>,
    /// When checkpoints are taken, and how many are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<CheckpointPlanWanted>,
    /// Automatic backups of its checkpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupWanted>,
    /// The image for its containers: the id or name of one on this server, or a reference to pull. Absent: that of
    /// the first agent that has one, or the machine's own programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// A checkpoint of another server to start from: the id or name of an image on this server, or a reference to
    /// pull. Fields that are absent here are taken from the original session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// `POST /sessions/{id}/remix`: absent fields are taken from the original session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemixSession {
    /// The number of the checkpoint to start from. Absent: the current state, which is saved as a checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<u64>,
    /// The name, 1 to 128 characters; absent: generated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The next user message, unless empty; the original's prompt is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starting_prompt: Option<String>,
    /// Ids or names of agents; the first answers messages that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_ids: Option<Vec<String>>,
    /// Stop the container after this time without activity; 1 to 604800.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_timeout_seconds: Option<u64>,
    /// Terminate this long after creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Your own data; an object of at most 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// Resource limits of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourcesWanted>,
    /// Environment variables of all programs in the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// Whether background processes count as activity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background_activity: Option<bool>,
    /// When checkpoints are taken, and how many are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<CheckpointPlanWanted>,
    /// Automatic backups of its checkpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupWanted>,
    /// The image for its containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

impl From<RemixSession> for CreateSession {
    fn from(body: RemixSession) -> Self {
        let RemixSession {
            checkpoint: _,
            name,
            starting_prompt,
            agent_ids,
            waiting_timeout_seconds,
            ttl_seconds,
            metadata,
            resources,
            env,
            background_activity,
            checkpoints,
            backup,
            image,
        } = body;
        Self {
            name,
            starting_prompt,
            agent_ids,
            waiting_timeout_seconds,
            ttl_seconds,
            metadata,
            resources,
            env,
            background_activity,
            checkpoints,
            backup,
            image,
            from: None,
        }
    }
}

impl CreateSession {
    /// Fills absent fields from `base`, except name and prompt.
    #[must_use]
    pub fn with_defaults_from(self, base: Self) -> Self {
        let resources = match (self.resources, base.resources) {
            (Some(over), Some(base)) => Some(ResourcesWanted {
                cpu: over.cpu.or(base.cpu),
                memory: over.memory.or(base.memory),
                pids: over.pids.or(base.pids),
                disk: over.disk.or(base.disk),
            }),
            (over, base) => over.or(base),
        };
        let checkpoints = match (self.checkpoints, base.checkpoints) {
            (Some(over), Some(base)) => Some(CheckpointPlanWanted {
                policy: over.policy.or(base.policy),
                every_seconds: over.every_seconds.or(base.every_seconds),
                keep_last: over.keep_last.or(base.keep_last),
            }),
            (over, base) => over.or(base),
        };
        Self {
            name: self.name,
            starting_prompt: self.starting_prompt,
            agent_ids: self.agent_ids.or(base.agent_ids),
            waiting_timeout_seconds: self.waiting_timeout_seconds.or(base.waiting_timeout_seconds),
            ttl_seconds: self.ttl_seconds.or(base.ttl_seconds),
            metadata: self.metadata.or(base.metadata),
            resources,
            env: self.env.or(base.env),
            background_activity: self.background_activity.or(base.background_activity),
            checkpoints,
            backup: self.backup.or(base.backup),
            image: self.image.or(base.image),
            from: self.from,
        }
    }
}

/// Requested limits; absent fields get their default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResourcesWanted {
    /// Processors, such as 0.5 or 2; default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// Memory in bytes or as `"512Mi"`; default 512 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<MemoryAmount>)]
    pub memory: Option<Bytes>,
    /// Processes and threads; default 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Disk space in bytes or as `"10Gi"`: of the workspace, and of what containers with an image write elsewhere. 0:
    /// no limit, the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<MemoryAmount>)]
    pub disk: Option<Bytes>,
}

/// Bytes as a number, or as text such as `512Mi`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum MemoryAmount {
    /// Bytes.
    Bytes(u64),
    /// With a unit.
    Text(String),
}

/// The limits of a session.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Resources {
    /// Processors.
    pub cpu: f64,
    /// Bytes of memory.
    #[schema(value_type = u64)]
    pub memory: Bytes,
    /// Processes and threads.
    pub pids: u32,
    /// Disk space in bytes; `null` for no limit.
    #[schema(value_type = Option<u64>)]
    pub disk: Option<Bytes>,
}

/// `PUT /sessions/{id}`: absent fields stay unchanged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateSession {
    /// The new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The new waiting timeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_timeout_seconds: Option<u64>,
    /// The new time to live, from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Replaces the metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// New limits, used from the next container on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourcesWanted>,
    /// Replaces the environment, from the next message on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// Whether background processes count as activity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background_activity: Option<bool>,
    /// When checkpoints are taken, and how many are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<CheckpointPlanWanted>,
    /// Automatic backups of its checkpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupWanted>,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// Its id.
    #[schema(value_type = String, format = "uuid")]
    pub id: SessionId,
    /// Its name.
    pub name: String,
    /// The first prompt, or empty.
    pub starting_prompt: String,
    /// `INIT`, `READY`, `IDLE`, `BUSY` or `ERROR`.
    #[schema(value_type = String, example = "READY")]
    pub state: State,
    /// The container stops after this time without activity.
    pub waiting_timeout_seconds: u64,
    /// It terminates this long after creation or restoration.
    pub ttl_seconds: Option<u64>,
    /// The name of the account that created it.
    pub created_by: String,
    /// Its agents; the first is the default.
    pub agents: Vec<AssignedAgent>,
    /// Your own data.
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
    /// Limits of its container.
    pub resources: Resources,
    /// Environment variables of all its programs.
    pub env: BTreeMap<String, String>,
    /// Whether background processes count as activity.
    pub background_activity: bool,
    /// When checkpoints are taken, and how many are kept.
    pub checkpoints: CheckpointPlan,
    /// Automatic backups of its checkpoints.
    pub backup: Option<Backup>,
    /// The number of its newest checkpoint, if it has one.
    pub checkpoint: Option<u64>,
    /// The checkpoint that is being restored.
    pub rewinding_to: Option<u64>,
    /// The image of its containers; absent if they run the machine's own programs.
    pub image: Option<SessionImage>,
    /// The checkpoint of another server that it was created from.
    pub from: Option<SessionImage>,
    /// The session that it was made from.
    #[schema(value_type = Option<String>, format = "uuid")]
    pub parent_session_id: Option<SessionId>,
    /// The number of that session's checkpoint that it was made from.
    pub parent_checkpoint: Option<u64>,
    /// How many containers it has had.
    pub generation: Generation,
    /// Why it is in ERROR.
    pub error: Option<SessionError>,
    /// Number of queued messages.
    pub queued_messages: u32,
    /// The `seq` of its newest event.
    pub last_seq: u64,
    /// Its usage so far.
    pub usage: Usage,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// When its newest container became ready.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    /// When it was last active.
    #[schema(value_type = String, format = DateTime)]
    pub last_activity_at: Timestamp,
    /// When `ttl_seconds` runs out.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// Since when it is paused.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub paused_at: Option<Timestamp>,
    /// When it was terminated.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub terminated_at: Option<Timestamp>,
    /// `manual`, `ttl` or `deleted`.
    #[schema(value_type = Option<String>)]
    pub termination_reason: Option<TerminationReason>,
    /// When it was deleted.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub deleted_at: Option<Timestamp>,
    /// When its files were permanently removed.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub purged_at: Option<Timestamp>,
}

/// An agent of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AssignedAgent {
    /// Its id.
    #[schema(value_type = String, format = "uuid")]
    pub id: AgentId,
    /// Its name.
    pub name: String,
    /// Its model, if it has one.
    pub model: Option<String>,
}

/// Why a session is in ERROR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionError {
    /// `start_failed`, `start_timeout`, `host_lost`, `container_exited`, `container_killed`, `out_of_memory`,
    /// `container_gone` or `disk_quota_exceeded`.
    #[schema(value_type = String)]
    pub code: FaultCode,
    /// What happened.
    pub message: String,
    /// When it restarts automatically; absent if a person has to restart it.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub restarts_at: Option<Timestamp>,
}

/// The usage of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Number of user messages that ended.
    pub messages: u64,
    /// Seconds spent on them.
    pub busy_seconds: f64,
}

/// Filters of `GET /sessions`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListSessions {
    /// Only sessions in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub state: Option<State>,
    /// Only made by the account of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Only sessions made from this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>, format = "uuid")]
    pub parent: Option<SessionId>,
    /// Only sessions whose name contains this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub q: Option<String>,
    /// Include deleted sessions.
    #[serde(default)]
    pub include_deleted: bool,
    /// Page size, 1 to 500; default 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// The `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// `PUT /sessions/{id}/agents`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AssignAgents {
    /// Ids or names, at least one; the first answers messages that name none.
    pub agent_ids: Vec<String>,
}
