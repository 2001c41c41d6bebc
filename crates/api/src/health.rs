//! How the server is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok` where every part works, otherwise `degraded`.
    pub status: String,
    /// `store` and `runtime`, each `ok` or `unavailable`.
    pub parts: BTreeMap<String, String>,
}

/// `GET /version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// Always `raworc`.
    pub name: String,
    /// The release.
    pub version: String,
}
