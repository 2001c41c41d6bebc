//! Events: the log of a session.

use jiff::Timestamp;
use raworc_core::ids::{Generation, SessionId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

/// One entry of a session's log.
///
/// | type | data |
/// | --- | --- |
/// | `session.created` | `name` |
/// | `session.updated` | `fields` |
/// | `session.state_changed` | `from, to, reason` |
/// | `session.failed` | `code, message` |
/// | `session.paused · resumed · terminated · deleted · restored · restarted` | `reason` where there is one |
/// | `message.queued` | `message_id, role, agent, content` |
/// | `message.started` | `message_id, attempt, agent` |
/// | `message.delta` | `message_id, stream, text` |
/// | `message.added` | `message_id, role, reply_to, agent`: an agent's answer |
/// | `message.requeued` | `message_id` |
/// | `message.finished` | `message_id, reply_id, status, error, exit_code, signal, duration_seconds, output_bytes_dropped, output_file` |
/// | `exec.started` | `exec_id, command` |
/// | `exec.finished` | `exec_id, exit_code, duration_seconds`, or `error` (`not_started`, `abandoned`, `lost`) |
/// | `file.written · deleted` | `path` |
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// 1, 2, 3, … without gaps.
    pub seq: u64,
    /// Whose log.
    #[schema(value_type = String, format = "uuid")]
    pub session_id: SessionId,
    /// `noun.verb`.
    #[serde(rename = "type")]
    pub kind: String,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Who: the name of an account, `agent:NAME`, or `system`.
    pub actor: String,
    /// In which container.
    pub generation: Generation,
    /// Depends on the type.
    #[schema(value_type = Object)]
    pub data: Map<String, Value>,
}

/// Query of `GET …/events`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListEvents {
    /// Only events with a greater `seq`. As SSE, also those after `Last-Event-ID` only: of the two, the greater counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Rows of a page, 1 to 500; 50 where absent. Not for SSE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}
