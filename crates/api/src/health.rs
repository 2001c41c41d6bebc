//! How the server is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok` where everything works; `degraded` where something does not, and the rest goes on; `unavailable` where nothing can be
    /// served.
    pub status: String,
    /// Each part, and a word for how it is: `ok`, or what is wrong.
    pub parts: BTreeMap<String, String>,
    /// What is wrong, and what to do. Told to administrators only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<HealthProblem>,
    /// Records that are damaged, and therefore set aside. Told to administrators only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<DamagedRecord>,
    /// What the server does by itself, over and over. Told to administrators only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub loops: BTreeMap<String, LoopHealth>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthProblem {
    /// With which part.
    pub part: String,
    /// What.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

/// A record that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DamagedRecord {
    /// The table of the database that it is in.
    pub table: String,
    /// What it is called there.
    pub id: String,
    /// The first column that is not as it must be.
    pub column: String,
    /// What is wrong with it.
    pub reason: String,
}

/// One of the things that the server does by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoopHealth {
    /// `ok`; `failing` where it could not do its work the last time; `restarted` where it ended and was begun anew a moment ago.
    pub status: String,
    /// How often it was begun anew.
    pub restarts: u32,
    /// Seconds since it last did its work, where it has since the server started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run_seconds: Option<u64>,
}

/// `GET /system/loops`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoopList {
    /// All of them, by name.
    pub items: Vec<LoopStatus>,
}

/// One of the things that the server does by itself, over and over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoopStatus {
    /// What it is called, in the log, too.
    pub name: String,
    /// What has it do its work.
    pub trigger: String,
    /// How much it does at the same time, or in one go.
    pub bound: String,
    /// How it gets on.
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
