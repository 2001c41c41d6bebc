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
    /// What to call it; made up where absent. 1 to 128 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Becomes the first user message unless empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starting_prompt: Option<String>,
    /// Ids or names of agents; the first answers unless a message names another. Absent: `["shell"]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_ids: Option<Vec<String>>,
    /// Rest after so long without activity; 1 to 604800, 300 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_timeout_seconds: Option<u64>,
    /// End so long after creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Anything of yours; an object of at most 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// What the container may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourcesWanted>,
    /// Environment variables of everything that runs in the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// Whether processes left running in the container keep the session from resting; true where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background_activity: Option<bool>,
    /// When its workspace is saved, and how many versions are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<CheckpointPlanWanted>,
    /// Where its checkpoints are sent by themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupWanted>,
    /// The image its containers run: a name or id of one that is here, or a reference, from which it is pulled. Absent: that
    /// of the first agent that has one, or the machine's own programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The checkpoint of another server to go on from: a name or id of an image that is here, or a reference, from which it is
    /// pulled. What is absent here is as in the session it is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// `POST /sessions/{id}/remix`: what is absent is as in the session it is made from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemixSession {
    /// Which checkpoint to start from: its number. Absent: what is there now, of which a checkpoint is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<u64>,
    /// What to call it; made up where absent. 1 to 128 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Becomes the next user message unless empty; the other session's is not taken over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starting_prompt: Option<String>,
    /// Ids or names of agents; the first answers unless a message names another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_ids: Option<Vec<String>>,
    /// Rest after so long without activity; 1 to 604800.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_timeout_seconds: Option<u64>,
    /// End so long after creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Anything of yours; an object of at most 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// What the container may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourcesWanted>,
    /// Environment variables of everything that runs in the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// Whether processes left running in the container keep the session from resting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background_activity: Option<bool>,
    /// When its workspace is saved, and how many versions are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<CheckpointPlanWanted>,
    /// Where its checkpoints are sent by themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupWanted>,
    /// The image its containers run.
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
    /// This, and where it says nothing, what `base` says; but for the name and the prompt, which are each session's own.
    #[must_use]
    pub fn over(self, base: Self) -> Self {
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

/// Limits asked for; what is absent gets its default.
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
    /// Bytes on the disk, or as `"10Gi"`: of its workspace, and of what an image's container writes elsewhere. 0: no limit, which
    /// is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<MemoryAmount>)]
    pub disk: Option<Bytes>,
}

/// Bytes as a number, or a text such as `512Mi`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum MemoryAmount {
    /// Bytes.
    Bytes(u64),
    /// With a suffix.
    Text(String),
}

/// Limits in force.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Resources {
    /// Processors.
    pub cpu: f64,
    /// Bytes of memory.
    #[schema(value_type = u64)]
    pub memory: Bytes,
    /// Processes and threads.
    pub pids: u32,
    /// Bytes on the disk; `null` where there is no limit.
    #[schema(value_type = Option<u64>)]
    pub disk: Option<Bytes>,
}

/// `PUT /sessions/{id}`: what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateSession {
    /// A new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A new waiting timeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_timeout_seconds: Option<u64>,
    /// A new time to live, counted from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Replaces the metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// Used from the next container on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourcesWanted>,
    /// Replaces the environment; used from the next message on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// Whether background processes count as activity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background_activity: Option<bool>,
    /// When its workspace is saved, and how many versions are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<CheckpointPlanWanted>,
    /// Where its checkpoints are sent by themselves.
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
    /// Rests after so long without activity.
    pub waiting_timeout_seconds: u64,
    /// Ends so long after creation or restoration.
    pub ttl_seconds: Option<u64>,
    /// The name of the account that made it.
    pub created_by: String,
    /// The agents assigned, the first one first.
    pub agents: Vec<AssignedAgent>,
    /// Yours.
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
    /// Limits of its container.
    pub resources: Resources,
    /// Environment of everything that runs in it.
    pub env: BTreeMap<String, String>,
    /// Whether background processes count as activity.
    pub background_activity: bool,
    /// When its workspace is saved.
    pub checkpoints: CheckpointPlan,
    /// Where its checkpoints are sent by themselves.
    pub backup: Option<Backup>,
    /// The number of its newest checkpoint, if it has had one.
    pub checkpoint: Option<u64>,
    /// The checkpoint it is going back to.
    pub rewinding_to: Option<u64>,
    /// The image its containers run; absent where that is the machine's own programs.
    pub image: Option<SessionImage>,
    /// The checkpoint of another server that it was made from.
    pub from: Option<SessionImage>,
    /// Which session it was made from.
    #[schema(value_type = Option<String>, format = "uuid")]
    pub parent_session_id: Option<SessionId>,
    /// Which of that session's checkpoints.
    pub parent_checkpoint: Option<u64>,
    /// How many containers it has had.
    pub generation: Generation,
    /// Why it is in ERROR.
    pub error: Option<SessionError>,
    /// Messages that wait.
    pub queued_messages: u32,
    /// The `seq` of its newest event.
    pub last_seq: u64,
    /// What it has used.
    pub usage: Usage,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When anything about it last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// When its newest container became ready.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    /// The newest sign of use.
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
    /// Since when its files are gone for good.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub purged_at: Option<Timestamp>,
}

/// An agent as a session lists it.
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
    /// When it restarts by itself; absent where a person has to.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub restarts_at: Option<Timestamp>,
}

/// What a session has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// User messages that ended.
    pub messages: u64,
    /// Time spent working on them.
    pub busy_seconds: f64,
}

/// Filters of `GET /sessions`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListSessions {
    /// Only in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub state: Option<State>,
    /// Only made by the account of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Only made from this session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>, format = "uuid")]
    pub parent: Option<SessionId>,
    /// Only where the name contains this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub q: Option<String>,
    /// Deleted ones too.
    #[serde(default)]
    pub include_deleted: bool,
    /// Rows of a page, 1 to 500; 50 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Where to go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// `PUT /sessions/{id}/agents`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AssignAgents {
    /// Ids or names, at least one; the first answers unless a message names another.
    pub agent_ids: Vec<String>,
}
