//! What the gateway asks of the program around it: who may call which model, and what becomes of the call.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use raworc_core::ids::ContainerId;
use raworc_core::models::{ProviderKind, TokenUsage};

pub use raworc_core::models::CallEnd;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::dialect::Dialect;

/// A key of a provider. It is written to nothing but requests to that provider.
#[derive(Clone)]
pub struct ProviderKey(pub String);

impl fmt::Debug for ProviderKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProviderKey(…)")
    }
}

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// An answer of a model.
    Generate,
    /// The number of tokens that a request has; costs nothing.
    CountTokens,
}

/// A call that a program in a container wants to make.
#[derive(Clone, Debug)]
pub struct Call {
    /// The container that it comes from; known from the connection, never from the request.
    pub container: ContainerId,
    /// The key that the program sent. It is worth nothing, and says at most which turn of this container calls.
    pub key: Option<String>,
    /// How the program speaks.
    pub dialect: Dialect,
    /// What it is for.
    pub operation: Operation,
    /// The model that it names, if any.
    pub model: Option<String>,
    /// Whether the answer is to be streamed.
    pub is_streaming: bool,
}

/// Where an admitted call goes.
#[derive(Clone, Debug)]
pub struct Target {
    /// The provider's name.
    pub provider: String,
    /// What it speaks.
    pub kind: ProviderKind,
    /// The beginning of its URLs. For kind `replay`: the path of a recording.
    pub base_url: String,
    /// Absent: requests have no key.
    pub key: Option<ProviderKey>,
    /// The model's name at the provider.
    pub model: String,
    /// Tokens of an answer at most, for dialects in which a request has to say it.
    pub max_output_tokens: Option<u64>,
    /// Time for one attempt until its first byte, and between any two bytes.
    pub timeout: Duration,
}

/// A call that may be made.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Names the call in what is recorded.
    pub id: Uuid,
    /// Where it goes.
    pub target: Target,
    /// Ends the call, for example because its turn was cancelled.
    pub cancelled: CancellationToken,
}

/// Why a call is not made. The message is for the program inside: it says what to do, and nothing internal.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The status of the answer.
    pub status: StatusCode,
    /// A stable code (`model_not_found`, `unavailable`, `fenced`).
    pub code: &'static str,
    /// One sentence.
    pub message: String,
    /// When it may be tried again.
    pub retry_after: Option<Duration>,
}

/// A tool call in an answer of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    /// Its id, as the model's answer has it.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// Its arguments: JSON, if the model keeps to the rules.
    pub arguments: String,
}

/// What happened to an admitted call.
#[derive(Clone, Debug)]
pub struct CallRecord {
    /// [`Admission::id`].
    pub id: Uuid,
    /// How it ended.
    pub end: CallEnd,
    /// The provider's last status, if it answered.
    pub status: Option<StatusCode>,
    /// Attempts that were made.
    pub attempts: u32,
    /// As far as the provider has told.
    pub usage: Option<TokenUsage>,
    /// From the beginning to the first byte of the answer.
    pub first_byte: Option<Duration>,
    /// From the beginning to the end.
    pub duration: Duration,
    /// The tool calls of the answer.
    pub tool_calls: Vec<ToolCall>,
    /// What went wrong, in one sentence without any secret.
    pub error: Option<String>,
    /// The body that was sent to the provider, without what exceeds the bound.
    pub request: Bytes,
    /// The body that the provider sent, without what exceeds the bound.
    pub answer: Bytes,
}

/// A model that programs may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedModel {
    /// What to name.
    pub id: String,
    /// The provider's name.
    pub provider: String,
}

/// The program around the gateway.
#[async_trait]
pub trait Ports: Send + Sync + 'static {
    /// The models that programs of this container may name.
    async fn models(&self, container: ContainerId) -> Vec<ListedModel>;

    /// Decides on a call, and registers it as running.
    async fn admit(&self, call: &Call) -> Result<Admission, Refusal>;

    /// Records the end of an admitted call; called exactly once for each.
    async fn finished(&self, record: CallRecord);
}
