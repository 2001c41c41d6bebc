//! Sessions.

mod write;

pub use write::{configure, insert, update, update_log};

use std::collections::BTreeMap;

use raworc_core::checkpoints::{Backup, Cause, Plan};
use raworc_core::conversation::Rewound;
use raworc_core::ids::{AccountId, ContainerId, LayerId, SessionId};
use raworc_core::quantity::Bytes;
use raworc_core::session::{self, State};
use raworc_core::time::Time;
use serde::{Deserialize, Serialize};
use serde_json::Map;

use crate::StoreError;
use crate::rows::Row;
use crate::sql::{Batch, Read, WhereClause, sql};

/// What a session was told to be like, and that no state machine looks at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The owner's.
    pub metadata: Map<String, serde_json::Value>,
    /// Processors.
    pub cpu: f64,
    /// Memory.
    pub memory: Bytes,
    /// Processes and threads.
    pub pids: u32,
    /// What it may take of the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bytes>,
    /// Environment of everything that runs in it.
    pub env: BTreeMap<String, String>,
    /// Whether processes left running keep it from resting.
    pub background_activity: bool,
    /// When its workspace is saved.
    #[serde(default)]
    pub checkpoints: Plan,
    /// The image its containers run; none where that is the machine's own programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageUsed>,
    /// Where its checkpoints are sent by themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<Backup>,
    /// The checkpoint from elsewhere that it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<ImageUsed>,
}

/// How backups get on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BackupState {
    /// The newest checkpoint that was sent.
    pub checkpoint: Option<u64>,
    /// When.
    pub at: Option<Time>,
    /// How often sending failed since.
    pub failures: u32,
    /// Why, the last time.
    pub error: Option<String>,
}

/// An image as it was when a session was made with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageUsed {
    /// Its name.
    pub name: String,
    /// The digest of its manifest.
    pub digest: String,
    /// What it has programs find in their environment, `NAME=VALUE` each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
}

/// A session.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionRow {
    /// Its id.
    pub id: SessionId,
    /// Its name.
    pub name: String,
    /// Its first prompt, or empty.
    pub starting_prompt: String,
    /// Who made it.
    pub owner_id: AccountId,
    /// Their name.
    pub owner_name: String,
    /// What it is like.
    pub settings: Settings,
    /// What it was made from.
    pub parent_id: Option<SessionId>,
    /// Which of that one's checkpoints.
    pub parent_checkpoint: Option<u64>,
    /// What its workspace stands on: a layer that never changes, and all below it.
    pub layer_id: Option<LayerId>,
    /// What the root of its containers stands on, where that is an image.
    pub image_layer_id: Option<LayerId>,
    /// The layer it writes to.
    pub writable_id: LayerId,
    /// The number of its newest checkpoint.
    pub checkpoints: u64,
    /// The occasion for which its workspace is still to be saved.
    pub save_due: Option<Cause>,
    /// How it went back to earlier points, in order.
    pub rewinds: Vec<Rewound>,
    /// When its newest checkpoint is to be sent to its registry.
    pub backup_at: Option<Time>,
    /// How that went so far.
    pub backup: BackupState,
    /// Since when its files are gone for good.
    pub purged_at: Option<Time>,
    /// The state machine's part.
    pub machine: session::Session,
    /// The number of its newest event.
    pub last_seq: u64,
    /// The newest report of the current container's host that is stored.
    pub host_received: u64,
    /// Grows with each change.
    pub version: i64,
    /// Grows with each change of what people configure.
    pub edition: i64,
    /// User messages that ended.
    pub messages_ended: u64,
    /// Time spent on them.
    pub busy_micros: u64,
    /// When it was made.
    pub created_at: Time,
    /// When it last changed.
    pub updated_at: Time,
}

/// Which sessions to list. Newest first.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only of this account.
    pub owner: Option<AccountId>,
    /// Only of the account of this name.
    pub owner_name: Option<String>,
    /// Only in this state.
    pub state: Option<State>,
    /// Only made from this one.
    pub parent: Option<SessionId>,
    /// Only with this in the name.
    pub name_contains: Option<String>,
    /// Only with exactly this name.
    pub name: Option<String>,
    /// Deleted ones too.
    pub include_deleted: bool,
    /// Only after this one.
    pub after: Option<(Time, SessionId)>,
}

pub(crate) fn session(row: &Row<'_>) -> Result<SessionRow, StoreError> {
    row.record("sessions", |row| {
        Ok(SessionRow {
            id: row.id("id")?,
            name: row.text("name")?,
            starting_prompt: row.text("starting_prompt")?,
            owner_id: row.id("owner_id")?,
            owner_name: row.text("owner_name")?,
            settings: row.json("settings")?,
            parent_id: row.optional_id("parent_id")?,
            parent_checkpoint: row.optional_count("parent_checkpoint")?,
            layer_id: row.optional_id("layer_id")?,
            image_layer_id: row.optional_id("image_layer_id")?,
            writable_id: row.id("writable_id")?,
            checkpoints: row.count("checkpoints")?,
            save_due: row.optional_word("save_due")?,
            rewinds: row.json("rewinds")?,
            backup_at: row.optional_time("backup_at")?,
            backup: row.json("backup")?,
            purged_at: row.optional_time("purged_at")?,
            machine: row.json("machine")?,
            last_seq: row.count("last_seq")?,
            host_received: row.count("host_received")?,
            version: row.count("version")?,
            edition: row.count("edition")?,
            messages_ended: row.count("messages_ended")?,
            busy_micros: row.count("busy_micros")?,
            created_at: row.time("created_at")?,
            updated_at: row.time("updated_at")?,
        })
    })
}

/// A session whose next backup is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupDue {
    /// Which.
    pub session: SessionId,
    /// Whose.
    pub owner: AccountId,
    /// Where to; none where that has just been taken back.
    pub registry: Option<String>,
}

/// Sessions whose next backup is due, those that have waited longest first. All of them: how many are sent at the same time is
/// decided for each owner and registry, and none of them shall hide another's.
///
/// # Errors
/// Where the store fails.
pub async fn with_backup_due(connection: &mut Read, now: Time) -> Result<Vec<BackupDue>, StoreError> {
    let due = sql("SELECT * FROM sessions WHERE backup_at IS NOT NULL AND backup_at <= $1 ORDER BY backup_at")
        .bind(now.0)
        .fetch_sound(connection, session)
        .await?;
    let due = due.rows.into_iter().map(|row| {
        let registry = row.settings.backup.map(|backup| backup.registry);
        BackupDue { session: row.id, owner: row.owner_id, registry }
    });
    Ok(due.collect())
}

/// Sessions that were deleted by then and still have files.
///
/// # Errors
/// Where the store fails.
pub async fn to_purge(connection: &mut Read, until: Time) -> Result<Vec<SessionId>, StoreError> {
    let found = sql("SELECT id FROM sessions WHERE deleted_at IS NOT NULL AND deleted_at <= $1 AND purged_at IS NULL")
        .bind(until.0)
        .fetch_sound(connection, |row| row.id("id"))
        .await?;
    Ok(found.rows)
}

/// Sessions whose workspace is still to be saved.
///
/// # Errors
/// Where the store fails.
pub async fn with_save_due(connection: &mut Read) -> Result<Vec<SessionId>, StoreError> {
    let found = sql("SELECT id FROM sessions WHERE save_due IS NOT NULL").fetch_sound(connection, |row| row.id("id"));
    Ok(found.await?.rows)
}

/// The session of this id.
///
/// # Errors
/// Where the store fails.
pub async fn find(connection: &mut Read, id: SessionId) -> Result<Option<SessionRow>, StoreError> {
    sql("SELECT * FROM sessions WHERE id = $1").bind(id.to_string()).fetch_optional(connection, session).await
}

/// Sessions, newest first: at most `limit`, and about so many bytes.
///
/// # Errors
/// Where the store fails.
pub async fn list(
    connection: &mut Read,
    filter: &Filter,
    bounds: (u32, usize),
) -> Result<Batch<SessionRow>, StoreError> {
    let mut conditions = WhereClause::default();
    if let Some(owner) = filter.owner {
        conditions.and("owner_id = ?", [owner.to_string().into()]);
    }
    if let Some(name) = &filter.owner_name {
        conditions.and("owner_name = ?", [name.clone().into()]);
    }
    if let Some(state) = filter.state {
        conditions.and("state = ?", [state.as_str().into()]);
    }
    if let Some(parent) = filter.parent {
        conditions.and("parent_id = ?", [parent.to_string().into()]);
    }
    if let Some(text) = &filter.name_contains {
        conditions.and("name LIKE ? ESCAPE '\\'", [format!("%{}%", escape_like(text)).into()]);
    }
    if let Some(name) = &filter.name {
        conditions.and("name = ?", [name.clone().into()]);
    }
    if let Some((at, id)) = filter.after {
        // The first bound is what an index can use; the second breaks ties.
        conditions.and("created_at <= ?", [at.0.into()]);
        conditions.and("(created_at < ? OR id < ?)", [at.0.into(), id.to_string().into()]);
    }
    if !filter.include_deleted {
        conditions.and("deleted_at IS NULL", []);
    }
    let listed = conditions.select("SELECT * FROM sessions", "ORDER BY created_at DESC, id DESC");
    listed.fetch_batch(connection, bounds, session).await
}

fn escape_like(text: &str) -> String {
    text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_")
}

/// Sessions whose container is to be started or stopped: what the loop of containers has to carry out.
///
/// # Errors
/// Where the store fails.
pub async fn with_wanted_container(connection: &mut Read) -> Result<Vec<SessionId>, StoreError> {
    let found =
        sql("SELECT id FROM sessions WHERE container <> 'none' AND (container = 'starting' OR container = 'stopping')")
            .fetch_sound(connection, |row| row.id("id"))
            .await?;
    Ok(found.rows)
}

/// Every container that is meant to be there (those of sessions whose record is damaged are not: nobody could say what of),
/// whether it is being started, up, or being stopped.
///
/// # Errors
/// Where the store fails.
pub async fn containers(connection: &mut Read) -> Result<Vec<ContainerId>, StoreError> {
    containers_where(connection, |_| true).await
}

/// Every container whose host has polled.
///
/// # Errors
/// Where the store fails.
pub async fn containers_up(connection: &mut Read) -> Result<Vec<ContainerId>, StoreError> {
    containers_where(connection, |container| container == session::Container::Up).await
}

async fn containers_where(
    connection: &mut Read,
    wanted: impl Fn(session::Container) -> bool,
) -> Result<Vec<ContainerId>, StoreError> {
    let found = sql("SELECT * FROM sessions WHERE container <> 'none'").fetch_sound(connection, session).await?;
    Ok(found
        .rows
        .into_iter()
        .filter(|row| wanted(row.machine.container))
        .map(|row| ContainerId { session: row.id, generation: row.machine.generation })
        .collect())
}

/// Sessions whose deadline has come, the most overdue first.
///
/// # Errors
/// Where the store fails.
pub async fn due(connection: &mut Read, now: Time, limit: u32) -> Result<Vec<SessionId>, StoreError> {
    let found = sql(
        "SELECT id FROM sessions WHERE deadline_at IS NOT NULL AND deadline_at <= $1 ORDER BY deadline_at LIMIT $2",
    )
    .bind(now.0)
    .bind(i64::from(limit))
    .fetch_sound(connection, |row| row.id("id"))
    .await?;
    Ok(found.rows)
}

/// Sessions that wait for something that may not take long: all but those that only wait for the end of their time.
///
/// # Errors
/// Where the store fails.
pub async fn waiting(connection: &mut Read) -> Result<Vec<SessionId>, StoreError> {
    let found =
        sql("SELECT id FROM sessions WHERE deadline_at IS NOT NULL AND (container <> 'none' OR state = 'ERROR')")
            .fetch_sound(connection, |row| row.id("id"))
            .await?;
    Ok(found.rows)
}

/// The next deadline of any session.
///
/// # Errors
/// Where the store fails.
pub async fn next_deadline(connection: &mut Read) -> Result<Option<Time>, StoreError> {
    sql("SELECT deadline_at FROM sessions WHERE deadline_at IS NOT NULL ORDER BY deadline_at")
        .fetch_first(connection, |row| row.time("deadline_at"))
        .await
}

/// How many sessions are in each state, deleted ones left out.
///
/// # Errors
/// Where the store fails.
pub async fn count_by_state(connection: &mut Read) -> Result<BTreeMap<String, u64>, StoreError> {
    let rows = sql("SELECT state, COUNT(*) AS n FROM sessions WHERE deleted_at IS NULL GROUP BY state")
        .fetch_sound(connection, |row| Ok((row.text("state")?, row.count("n")?)))
        .await?;
    Ok(rows.rows.into_iter().collect())
}

/// Whether a session is deleted; one that is not there is.
///
/// # Errors
/// Where the store fails.
pub async fn is_deleted(connection: &mut Read, id: SessionId) -> Result<bool, StoreError> {
    let found = sql("SELECT 1 AS found FROM sessions WHERE id = $1 AND deleted_at IS NULL")
        .bind(id.to_string())
        .fetch_optional(connection, |row| row.integer("found"))
        .await?;
    Ok(found.is_none())
}
