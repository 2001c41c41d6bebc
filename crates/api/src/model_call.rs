//! Calls of models by programs in sessions, and what they come to.

use jiff::Timestamp;
use raworc_core::ids::{ModelCallId, SessionId, TurnId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A call of a model, with what was said. Its other figures are in its event, `model.called`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelCall {
    /// Its id.
    #[schema(value_type = String, format = "uuid")]
    pub id: ModelCallId,
    /// The session.
    #[schema(value_type = String, format = "uuid")]
    pub session_id: SessionId,
    /// The number of its event.
    pub seq: u64,
    /// When it ended.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The turn in which the program ran.
    #[schema(value_type = Option<String>, format = "uuid")]
    pub turn_id: Option<TurnId>,
    /// The agent whose turn it was.
    pub agent: Option<String>,
    /// The provider's name.
    pub provider: String,
    /// The model's name at the provider.
    pub model: String,
    /// The body that the provider was sent; its first MiB.
    pub request: String,
    /// The body that the provider answered: a JSON document, or the text of a stream; its first MiB.
    pub answer: String,
}

/// What the calls of one model by one agent come to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelUsage {
    /// The agent; null for programs that ran outside of turns.
    pub agent: Option<String>,
    /// The provider's name.
    pub provider: String,
    /// The model's name at the provider.
    pub model: String,
    /// How many calls.
    pub calls: u64,
    /// Tokens that the model read.
    pub input_tokens: u64,
    /// Tokens that the model wrote.
    pub output_tokens: u64,
    /// The cost, in the currency of the model's price; calls of models without a price are free.
    pub cost: f64,
}

/// What a session has used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SessionUsage {
    /// Calls of models.
    pub calls: u64,
    /// Tokens that models read.
    pub input_tokens: u64,
    /// Tokens that models wrote.
    pub output_tokens: u64,
    /// The cost of all calls.
    pub cost: f64,
    /// The same by agent and model.
    pub models: Vec<ModelUsage>,
}
