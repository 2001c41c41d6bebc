//! Health of the server.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`; `degraded` if a part fails and the rest works; `unavailable` if nothing can be served.
    pub status: String,
    /// The status of each part: `ok`, or what is wrong.
    pub parts: BTreeMap<String, String>,
    /// Problems and their remedies. For administrators only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<HealthProblem>,
    /// Damaged records, which are set aside. For administrators only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<DamagedRecord>,
    /// The server's background loops. For administrators only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub loops: BTreeMap<String, LoopHealth>,
}

/// A problem of the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthProblem {
    /// The affected part.
    pub part: String,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

/// A damaged record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DamagedRecord {
    /// Its database table.
    pub table: String,
    /// Its id in the table.
    pub id: String,
    /// The first damaged column.
    pub column: String,
    /// What is wrong with the column.
    pub reason: String,
}

/// The health of a background loop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoopHealth {
    /// `ok`; `failing` if the last run failed; `restarted` if it ended unexpectedly and was restarted recently.
    pub status: String,
    /// How often it was restarted.
    pub restarts: u32,
    /// Seconds since the last successful run since the server started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run_seconds: Option<u64>,
}

/// `GET /system/loops`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoopList {
    /// All loops, by name.
    pub items: Vec<LoopStatus>,
}

/// A background loop of the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoopStatus {
    /// Its name, as in the log.
    pub name: String,
    /// What triggers a run.
    pub trigger: String,
    /// How much it does at the same time, or per run.
    pub bound: String,
    /// Its health.
    #[serde(flatten)]
    pub health: LoopHealth,
}

/// `GET /version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// Always `raworc`.
    pub name: String,
    /// The release.
    pub version: String,
}
