//! Agents.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::Timestamp;
use raworc_core::ids::AgentId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// How an agent runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AgentRuntime {
    /// Messages are shell scripts.
    #[default]
    Shell,
    /// A model answers, and uses tools in the session.
    Model,
}

impl AgentRuntime {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            AgentRuntime::Shell => "shell",
            AgentRuntime::Model => "model",
        }
    }
}

/// Settings of an agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// Environment variables that override the session's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Time limit of a message in seconds, 1 to 86400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// Runtime `model`: how often the model may be asked for one message, 1 to 10000; default 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u32>,
    /// Runtime `model`: the temperature, 0 to 2; the provider's own where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Runtime `model`: tokens of one answer at most; the model's own limit where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u64>,
}

/// `POST /agents` and `PUT /agents/{id}`. PUT replaces the whole definition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentDefinition {
    /// Letters, digits, `-`, `_`, `.`; unique.
    pub name: String,
    /// A description for people.
    #[serde(default)]
    pub description: String,
    /// Instructions for the agent.
    #[serde(default)]
    pub instructions: String,
    /// The model, for agents that use one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The image for sessions that have this agent and name no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// How it runs.
    #[serde(default)]
    pub runtime: AgentRuntime,
    /// Runtime `model`: the tools that it has: `bash`, `read_file`, `write_file`, `edit_file`, `list_files`, `search`; all of them where
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<String>>,
    /// Settings.
    #[serde(default)]
    pub config: AgentConfig,
    /// Your own data.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
}

/// An agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    /// Its id.
    pub id: AgentId,
    /// Its definition.
    #[serde(flatten)]
    pub definition: AgentDefinition,
    /// Whether it is part of Raworc and cannot be changed.
    pub builtin: bool,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// The fields of an [`Agent`] besides its definition.
#[derive(ToSchema)]
#[expect(dead_code, reason = "for the schema only")]
struct AgentRecord {
    /// Its id.
    #[schema(value_type = String, format = "uuid")]
    id: AgentId,
    /// Whether it is part of Raworc and cannot be changed.
    builtin: bool,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it was last changed.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

// Written by hand: the derived schema would refer to that of the definition, which allows no further fields.
impl PartialSchema for Agent {
    fn schema() -> RefOr<Schema> {
        match (AgentRecord::schema(), AgentDefinition::schema()) {
            (RefOr::T(Schema::Object(mut agent)), RefOr::T(Schema::Object(definition))) => {
                agent.description = Some("An agent in the registry.".into());
                agent.properties.extend(definition.properties);
                agent.required.extend(definition.required);
                agent.into()
            }
            (other, _) => other,
        }
    }
}

impl ToSchema for Agent {
    fn name() -> Cow<'static, str> {
        "Agent".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        AgentDefinition::schemas(schemas);
    }
}
