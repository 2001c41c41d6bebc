//! Messages.

use jiff::Timestamp;
use raworc_core::events;
use raworc_core::ids::{MessageId, SessionId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

/// `POST /sessions/{id}/messages`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SendMessage {
    /// The text; for the shell agent a script. 1 byte to 1 MiB.
    pub content: String,
    /// Id or name of one of the session's agents; absent: the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Anything of yours; an object of at most 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A person or program.
    User,
    /// An agent.
    Agent,
    /// Raworc.
    System,
}

impl From<Role> for events::Speaker {
    fn from(role: Role) -> Self {
        match role {
            Role::User => events::Speaker::User,
            Role::Agent => events::Speaker::Agent,
            Role::System => events::Speaker::System,
        }
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It waits.
    Queued,
    /// An agent works on it.
    Processing,
    /// It was answered.
    Done,
    /// It was tried and did not work; `error` says why.
    Failed,
    /// Someone stopped it.
    Cancelled,
}

impl Status {
    /// Nothing more will happen to it.
    pub fn is_final(self) -> bool {
        match self {
            Status::Queued | Status::Processing => false,
            Status::Done | Status::Failed | Status::Cancelled => true,
        }
    }
}

impl From<events::Outcome> for Status {
    fn from(outcome: events::Outcome) -> Self {
        match outcome {
            events::Outcome::Done => Status::Done,
            events::Outcome::Failed => Status::Failed,
            events::Outcome::Cancelled => Status::Cancelled,
        }
    }
}

/// One entry of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Message {
    /// Its id.
    #[schema(value_type = String, format = "uuid")]
    pub id: MessageId,
    /// Its place: the `seq` of the event that added it. Grows along the conversation, with gaps.
    pub seq: u64,
    /// Whose conversation.
    #[schema(value_type = String, format = "uuid")]
    pub session_id: SessionId,
    /// Who speaks.
    pub role: Role,
    /// The text. Of the shell agent: stdout and stderr as they came.
    pub content: String,
    /// Name of the agent that is to answer, or that spoke.
    pub agent: Option<String>,
    /// How far it is.
    pub status: Status,
    /// The user message this one answers.
    #[schema(value_type = Option<String>, format = "uuid")]
    pub reply_to: Option<MessageId>,
    /// How often an agent began to work on it.
    pub attempts: u32,
    /// Why it failed or was cancelled.
    pub error: Option<MessageError>,
    /// When it was added.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished_at: Option<Timestamp>,
    /// How it ran; of agent messages.
    pub usage: Option<MessageUsage>,
    /// Yours.
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
}

/// Why a message did not end well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MessageError {
    /// `exit_status`, `signal`, `timeout`, `not_started`, `cancelled`, `session_ended`, `host_died`, `out_of_memory`,
    /// `disk_quota_exceeded` or `record_damaged`.
    pub code: String,
    /// What happened.
    pub message: String,
}

impl From<MessageError> for events::MessageError {
    fn from(MessageError { code, message }: MessageError) -> Self {
        Self { code, message }
    }
}

/// How an answer came about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MessageUsage {
    /// The script's exit status, where it exited; 127 or 126 where what was to run it could not be.
    pub exit_code: Option<i32>,
    /// The signal that ended it, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// From start to end.
    pub duration_seconds: f64,
    /// Bytes of output that were left out, between the beginning and the end, because there was too much.
    pub output_bytes_dropped: u64,
    /// The file of the workspace that has all of the output, where some was left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_file: Option<String>,
}

/// A message with its answer, where there is one already.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MessageWithReply {
    /// The message.
    #[serde(flatten)]
    pub message: Message,
    /// What the agent said.
    pub reply: Option<Message>,
}

/// Query of `POST …/messages` and `GET …/messages/{id}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// Answer when the message has ended, or after so long; 0 to 600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_seconds: Option<u64>,
}

/// Query of `GET …/messages`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListMessages {
    /// Only in this status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(inline)]
    pub status: Option<Status>,
    /// Rows of a page, 1 to 500; 50 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Where to go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}
