//! Agents: the registry.

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
    /// The message is a script.
    #[default]
    Shell,
}

/// Settings of an agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// Environment variables, on top of the session's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Ends a message that takes longer; 1 to 86400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
}

/// `POST /agents` and `PUT /agents/{id}`. A PUT replaces the whole definition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentDefinition {
    /// Letters, digits, `-`, `_`, `.`; unique.
    pub name: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// For the agent.
    #[serde(default)]
    pub instructions: String,
    /// Which model it uses, for those that use one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The image that sessions with this agent run, unless they name one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// How it runs.
    #[serde(default)]
    pub runtime: AgentRuntime,
    /// Settings.
    #[serde(default)]
    pub config: AgentConfig,
    /// Anything of yours.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
}

/// An agent in the registry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    /// Its id.
    pub id: AgentId,
    /// What it is.
    #[serde(flatten)]
    pub definition: AgentDefinition,
    /// It came with Raworc and cannot be changed.
    pub builtin: bool,
    /// When it was registered.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// What an [`Agent`] has beside its definition.
#[derive(ToSchema)]
#[expect(dead_code, reason = "for the schema only")]
struct Registered {
    /// Its id.
    #[schema(value_type = String, format = "uuid")]
    id: AgentId,
    /// It came with Raworc and cannot be changed.
    builtin: bool,
    /// When it was registered.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it last changed.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

// By hand: the derived schema refers to that of the definition, which allows no further fields.
impl PartialSchema for Agent {
    fn schema() -> RefOr<Schema> {
        match (Registered::schema(), AgentDefinition::schema()) {
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
