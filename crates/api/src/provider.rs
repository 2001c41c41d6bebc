//! Providers of models, and the models that there are.

use std::fmt;

use jiff::Timestamp;
use raworc_core::ids::ProviderId;
use raworc_core::models::ProviderKind;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// A key of a provider. It is shown nowhere.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ApiKey(pub String);

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// The price of a million tokens, in your currency. At most six digits after the point.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelPrice {
    /// Of tokens that the model reads.
    pub input_per_million: f64,
    /// Of tokens that the model writes.
    pub output_per_million: f64,
}

/// A model of a provider.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProviderModel {
    /// Its name at the provider.
    pub id: String,
    /// Other names for it here.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Tokens of a request and its answer together, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_tokens: Option<u64>,
    /// Tokens of an answer, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u64>,
    /// What it costs; absent: its calls count as free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<ModelPrice>,
}

/// `POST /providers` and `PUT /providers/{name}`. PUT replaces everything but the key, if that is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProviderDefinition {
    /// Letters, digits, `-`, `_`, `.`; unique.
    pub name: String,
    /// The API that it speaks: `openai` (any server with that API), `anthropic`, `gemini`, or `replay` (recordings).
    #[schema(value_type = String)]
    pub kind: ProviderKind,
    /// Where it is, `http` or `https`; absent: where the kind is at home. The URL of kind `openai` ends in the version, such as `/v1`;
    /// those of `anthropic` and `gemini` do not. Not for kind `replay`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// Its key; null: none. It is stored encrypted, and never answered. Absent from PUT: the key stays.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, write_only)]
    pub api_key: Option<Option<ApiKey>>,
    /// Its models; none: it takes every `PROVIDER/MODEL`.
    #[serde(default)]
    pub models: Vec<ProviderModel>,
    /// How long it may be silent before a call has failed, 1 to 3600 seconds; default 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
}

/// What is there, even if it is null.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<ApiKey>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// A provider, without its key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Provider {
    /// Its id.
    #[schema(value_type = String, format = "uuid")]
    pub id: ProviderId,
    /// Its name.
    pub name: String,
    /// The API that it speaks.
    #[schema(value_type = String)]
    pub kind: ProviderKind,
    /// Where it is; null for kind `replay`.
    pub base_url: Option<String>,
    /// Whether it has a key.
    pub has_key: bool,
    /// Its models; none: it takes every `PROVIDER/MODEL`.
    pub models: Vec<ProviderModel>,
    /// How long it may be silent before a call has failed.
    pub timeout_seconds: u64,
    /// Whether it is part of Raworc and cannot be changed.
    pub builtin: bool,
    /// When it was added.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

/// A model that `model` of an agent may name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Model {
    /// `PROVIDER/MODEL`.
    pub id: String,
    /// The provider's name.
    pub provider: String,
    /// The API that the provider speaks.
    #[schema(value_type = String)]
    pub kind: ProviderKind,
    /// Its name at the provider. It may be named by this alone, if no other provider has such a model.
    pub model: String,
    /// Other names for it, with or without `PROVIDER/`.
    pub aliases: Vec<String>,
    /// Tokens of a request and its answer together, at most; null: not known.
    pub context_tokens: Option<u64>,
    /// Tokens of an answer, at most; null: not known.
    pub max_output_tokens: Option<u64>,
    /// What it costs; null: its calls count as free.
    pub price: Option<ModelPrice>,
}

/// How a question to a provider went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProviderTest {
    /// Whether it answered as it should.
    pub works: bool,
    /// The time it took.
    pub duration_seconds: Option<f64>,
    /// How many models it has, where it was asked that.
    pub models: Option<u64>,
    /// What is wrong, and what to do.
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_key_is_not_a_null_one() {
        let parse = |fields: &str| {
            let text = format!(r#"{{"name": "a", "kind": "openai"{fields}}}"#);
            serde_json::from_str::<ProviderDefinition>(&text).unwrap()
        };
        let key = ApiKey("sk-secret".into());
        for (fields, expected) in
            [("", None), (r#", "api_key": null"#, Some(None)), (r#", "api_key": "sk-secret""#, Some(Some(key)))]
        {
            let definition = parse(fields);
            assert_eq!(definition.api_key, expected);
            let sent = serde_json::to_string(&definition).unwrap();
            assert_eq!(serde_json::from_str::<ProviderDefinition>(&sent).unwrap(), definition, "{sent}");
            assert!(!format!("{definition:?}").contains("sk-secret"));
        }
    }
}
