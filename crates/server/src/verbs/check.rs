//! Checks of what callers send; each collects every field at fault.

use std::collections::BTreeMap;
use std::time::Duration;

use raworc_api::checkpoint::{BackupWanted, CheckpointPlanWanted};
use raworc_api::problem::{FieldError, Problem};
use raworc_api::session::ResourcesWanted;
use raworc_core::checkpoints::{Backup, Plan, Policy};
use raworc_core::limits::{
    BACKUP_EVERY_DEFAULT, CHECKPOINT_EVERY_SECONDS, CHECKPOINTS_KEPT, CPU_DEFAULT, MEMORY_BYTES_DEFAULT,
    MEMORY_BYTES_MIN, METADATA_BYTES_MAX, PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX, PIDS_DEFAULT, PIDS_MIN,
};
use raworc_core::names;
use raworc_core::quantity::Bytes;
use raworc_oci::Reference;
use raworc_runtime::Resources;
use serde_json::{Map, Value};

use crate::error::Failure;
use crate::policy::ceilings::{CPU_MIN, Ceilings, DISK_BYTES_MIN};

/// Deepest `metadata`. Whoever reads a list of sessions has to read it, and JSON parsers stop at a hundred or so.
const METADATA_DEPTH_MAX: usize = 32;

/// What was found wrong so far.
#[derive(Default)]
pub struct Checks {
    errors: Vec<FieldError>,
}

impl Checks {
    /// Notes a fault.
    pub fn fault(&mut self, field: &str, message: impl Into<String>) {
        self.errors.push(FieldError { field: field.to_owned(), message: message.into() });
    }

    /// Notes a check's fault.
    pub fn check(&mut self, field: &str, outcome: Result<(), String>) {
        if let Err(message) = outcome {
            self.fault(field, message);
        }
    }

    /// A number within bounds.
    pub fn range(&mut self, field: &str, value: Option<u64>, bounds: &std::ops::RangeInclusive<u64>) {
        if let Some(value) = value.filter(|value| !bounds.contains(value)) {
            self.fault(field, format!("must be {} to {}, is {value}", bounds.start(), bounds.end()));
        }
    }

    /// The caller's own object.
    pub fn metadata(&mut self, metadata: Option<&Map<String, Value>>) {
        let bytes = metadata.map_or(0, |map| serde_json::to_string(map).map_or(usize::MAX, |text| text.len()));
        if bytes > METADATA_BYTES_MAX {
            self.fault("metadata", format!("{bytes} bytes as JSON, at most {METADATA_BYTES_MAX} are allowed"));
        }
        let depth = metadata.into_iter().flat_map(Map::values).map(depth).max().unwrap_or(0);
        if depth > METADATA_DEPTH_MAX {
            self.fault("metadata", format!("{depth} levels deep, at most {METADATA_DEPTH_MAX} are allowed"));
        }
    }

    /// An environment.
    pub fn env(&mut self, field: &str, env: Option<&BTreeMap<String, String>>) {
        if let Some(env) = env {
            self.check(field, names::check_env(env.iter()));
        }
    }

    /// Limits of a container, which go as far as those of the server.
    pub fn resources(&mut self, wanted: Option<&ResourcesWanted>, most: &Ceilings) {
        let Some(wanted) = wanted else { return };
        self.disk(wanted, most);
        if let Some(cpu) = wanted.cpu.filter(|cpu| !(CPU_MIN..=most.cpu).contains(cpu)) {
            self.fault("resources.cpu", format!("must be {CPU_MIN} to {} (of this server), is {cpu}", most.cpu));
        }
        let memory = MEMORY_BYTES_MIN..=most.memory_bytes;
        if let Some(Bytes(bytes)) = wanted.memory.filter(|bytes| !memory.contains(&bytes.0)) {
            let message = format!(
                "must be {MEMORY_BYTES_MIN} (16Mi) to {} bytes (of this server), is {bytes}",
                most.memory_bytes
            );
            self.fault("resources.memory", message);
        }
        if let Some(pids) = wanted.pids.filter(|pids| !(PIDS_MIN..=most.pids).contains(pids)) {
            self.fault("resources.pids", format!("must be {PIDS_MIN} to {} (of this server), is {pids}", most.pids));
        }
    }

    /// Where checkpoints are to be sent.
    pub fn backup(&mut self, wanted: Option<&BackupWanted>) {
        let Some(wanted) = wanted else { return };
        self.range("backup.every_seconds", wanted.every_seconds, &CHECKPOINT_EVERY_SECONDS);
        if wanted.registry.is_empty() {
            return;
        }
        let parsed = wanted.registry.parse::<Reference>();
        match parsed {
            Ok(reference) if wanted.registry == format!("{}/{}", reference.host(), reference.repository()) => {}
            Ok(_) => {
                self.fault("backup.registry", "must be REGISTRY/REPOSITORY without a tag: each checkpoint gets its own")
            }
            Err(error) => self.fault("backup.registry", format!("must be REGISTRY/REPOSITORY: {error}")),
        }
    }

    /// The name of an image, or a reference.
    pub fn image(&mut self, field: &str, name: &str) {
        // An id is one, too.
        if uuid::Uuid::parse_str(name).is_err() {
            self.check(field, names::check_image(name));
        }
    }

    /// A limit on the disk.
    fn disk(&mut self, wanted: &ResourcesWanted, most: &Ceilings) {
        let bounds = DISK_BYTES_MIN..=most.disk_bytes;
        let may_be_none = !most.disk_is_always_limited;
        let is_fine = |bytes: u64| (bytes == 0 && may_be_none) || bounds.contains(&bytes);
        if let Some(Bytes(bytes)) = wanted.disk.filter(|bytes| !is_fine(bytes.0)) {
            let none = if may_be_none { "0 (no limit) or " } else { "" };
            let message = format!(
                "must be {none}{DISK_BYTES_MIN} (1Mi) to {} bytes (of this server), is {bytes}",
                most.disk_bytes
            );
            self.fault("resources.disk", message);
        }
    }

    /// A plan for checkpoints.
    pub fn plan(&mut self, wanted: Option<&CheckpointPlanWanted>) {
        let Some(wanted) = wanted else { return };
        self.range("checkpoints.keep_last", wanted.keep_last.map(u64::from), &CHECKPOINTS_KEPT);
        self.range("checkpoints.every_seconds", wanted.every_seconds, &CHECKPOINT_EVERY_SECONDS);
        if wanted.policy == Some(Policy::Every) && wanted.every_seconds.is_none() {
            self.fault("checkpoints.every_seconds", "must be there with the policy `every`");
        }
    }

    /// Goes on where nothing was wrong.
    pub fn done(self) -> Result<(), Failure> {
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::fields(self.errors).into()) }
    }
}

/// Limits with defaults for what is absent. What was not asked for, but comes from elsewhere (another session, a checkpoint
/// of another server), is cut to what this server gives.
pub fn resources_or_default(wanted: Option<ResourcesWanted>, most: &Ceilings) -> Resources {
    let wanted = wanted.unwrap_or_default();
    most.clamp(Resources {
        cpu: wanted.cpu.unwrap_or(CPU_DEFAULT),
        memory_bytes: wanted.memory.map_or(MEMORY_BYTES_DEFAULT, |bytes| bytes.0),
        pids: wanted.pids.unwrap_or(PIDS_DEFAULT),
    })
}

/// A limit on the disk, if there is to be one.
pub fn disk(wanted: Option<ResourcesWanted>) -> Option<Bytes> {
    wanted.and_then(|wanted| wanted.disk).filter(|bytes| bytes.0 > 0)
}

/// Where checkpoints are sent, as someone wants it; nowhere where they say nothing, or that.
pub fn backup(wanted: Option<BackupWanted>) -> Option<Backup> {
    let wanted = wanted.filter(|wanted| !wanted.registry.is_empty())?;
    let every = wanted.every_seconds.map_or(BACKUP_EVERY_DEFAULT, Duration::from_secs);
    Some(Backup { registry: wanted.registry, every })
}

/// A plan with what someone wants to be different.
pub fn plan(before: Plan, wanted: Option<CheckpointPlanWanted>) -> Plan {
    let wanted = wanted.unwrap_or_default();
    Plan {
        policy: wanted.policy.unwrap_or(before.policy),
        every: wanted.every_seconds.map(Duration::from_secs).or(before.every),
        keep_last: wanted.keep_last.unwrap_or(before.keep_last),
    }
}

/// How many lists and objects are around the innermost value. What was parsed is no deeper than the parser's own bound.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// The rows of a page.
pub fn page_limit(limit: Option<u32>) -> Result<u32, Failure> {
    match limit {
        None => Ok(PAGE_ROWS_DEFAULT),
        Some(limit) if (1..=PAGE_ROWS_MAX).contains(&limit) => Ok(limit),
        Some(limit) => Err(Problem::field("limit", format!("must be 1 to {PAGE_ROWS_MAX}, is {limit}")).into()),
    }
}
