//! Secrets of accounts.

use std::fmt;

use jiff::Timestamp;
use raworc_core::ids::SecretId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The value of a secret. It is shown nowhere.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretValue(pub String);

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue(…)")
    }
}

/// `POST /secrets` and `PUT /secrets/{name}`. PUT replaces everything but the value, if that is absent. A secret has either `hosts` or
/// `env`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretDefinition {
    /// Letters, digits, `-`, `_`, `.`; unique among those of its owner.
    pub name: String,
    /// Its value. It is stored encrypted, and never answered. Absent from PUT: it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, write_only)]
    pub value: Option<SecretValue>,
    /// Hosts that it is for: names in lower case, each with a port or without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// The header of requests to these hosts that it is put into; default `Authorization`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// The value of that header, with `{}` in the secret's place; default `Bearer {}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// The environment variable in the container that it is put into, where everything that runs there can read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
}

/// A secret, without its value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Secret {
    /// Its id.
    #[schema(value_type = String, format = "uuid")]
    pub id: SecretId,
    /// Its name.
    pub name: String,
    /// Hosts that it is for.
    pub hosts: Vec<String>,
    /// The header that it is put into; null: none.
    pub header: Option<String>,
    /// The value of that header, with `{}` in the secret's place; null: none.
    pub format: Option<String>,
    /// The environment variable that it is put into; null: none.
    pub env: Option<String>,
    /// Whether it is readable for what runs in a container: true for those with `env`.
    pub in_container: bool,
    /// When it was added.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}
