//! Reads the database directly, so that checks do not depend on the server.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension as _, params};

use raworc_core::ids::LayerId;
use raworc_workspace::LayerStack;

type Result<T> = anyhow::Result<T>;

/// The fields of a session that concern its workspace.
pub struct Session {
    /// Its id.
    pub id: String,
    /// The layer stack of its next container.
    pub stack: LayerStack,
    /// Whether its files were permanently removed.
    pub is_purged: bool,
    /// How many of its newest checkpoints are kept, besides those with a label.
    pub keep_last: usize,
}

/// Every session.
pub fn sessions(records: &Connection) -> Result<Vec<Session>> {
    let mut statement = records.prepare_cached(
        "SELECT id, layer_id, writable_id, purged_at IS NOT NULL, json_extract(settings, '$.checkpoints.keep_last') \
         FROM sessions ORDER BY id",
    )?;
    type Row = (String, Option<String>, String, bool, usize);
    let rows = statement.query_map([], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get::<_, u32>(4)? as usize))
    })?;
    let mut sessions = Vec::new();
    for row in rows {
        let (id, top, writable, is_purged, keep_last): Row = row?;
        let stack = LayerStack { layers: chain(records, top)?, writable: Some(writable.parse()?) };
        sessions.push(Session { id, stack, is_purged, keep_last });
    }
    Ok(sessions)
}

/// Numbers of a session's ready checkpoints, and whether they have a label.
pub fn ready(records: &Connection, session: &str) -> Result<Vec<(u64, bool)>> {
    let mut statement = records.prepare_cached(
        "SELECT n, label IS NOT NULL FROM checkpoints WHERE session_id = ?1 AND status = 'ready' ORDER BY n",
    )?;
    let rows = statement.query_map([session], |row| Ok((u64::from(row.get::<_, u32>(0)?), row.get(1)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The last event of a checkpoint.
pub fn seq(records: &Connection, session: &str, n: u64) -> Result<u64> {
    const FIND: &str = "SELECT seq FROM checkpoints WHERE session_id = ?1 AND n = ?2";
    let seq: i64 = records.prepare_cached(FIND)?.query_row(params![session, i64::try_from(n)?], |row| row.get(0))?;
    Ok(u64::try_from(seq)?)
}

/// The layers of a ready checkpoint, or `None`.
pub fn checkpoint(records: &Connection, session: &str, n: u64) -> Result<Option<Vec<LayerId>>> {
    const FIND: &str = "SELECT layer_id FROM checkpoints WHERE session_id = ?1 AND n = ?2 AND status = 'ready'";
    let found: Option<Option<String>> =
        records.prepare_cached(FIND)?.query_row(params![session, i64::try_from(n)?], |row| row.get(0)).optional()?;
    found.map(|top| chain(records, top)).transpose()
}

/// Whether a checkpoint is in progress.
pub fn is_saving(records: &Connection) -> Result<bool> {
    const FIND: &str = "SELECT EXISTS (SELECT 1 FROM checkpoints WHERE status IN ('pending', 'saving')) \
                        OR EXISTS (SELECT 1 FROM sessions WHERE save_due IS NOT NULL)";
    Ok(records.prepare_cached(FIND)?.query_row([], |row| row.get(0))?)
}

/// Whether a layer is sealed.
pub fn is_sealed(records: &Connection, layer: LayerId) -> Result<bool> {
    const FIND: &str = "SELECT EXISTS (SELECT 1 FROM layers WHERE id = ?1)";
    Ok(records.prepare_cached(FIND)?.query_row([layer.to_string()], |row| row.get(0))?)
}

/// All recorded layers.
pub fn layers(records: &Connection) -> Result<BTreeSet<LayerId>> {
    ids(records, "SELECT id FROM layers")
}

/// The layers that sessions and checkpoints use.
pub fn needed(records: &Connection) -> Result<BTreeSet<LayerId>> {
    ids(
        records,
        "WITH RECURSIVE needed (id) AS (\
             SELECT layer_id FROM sessions WHERE layer_id IS NOT NULL \
             UNION SELECT layer_id FROM checkpoints WHERE layer_id IS NOT NULL \
             UNION SELECT parent_id FROM layers JOIN needed USING (id) WHERE parent_id IS NOT NULL) \
         SELECT id FROM needed",
    )
}

fn ids(records: &Connection, text: &str) -> Result<BTreeSet<LayerId>> {
    let mut statement = records.prepare_cached(text)?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    rows.map(|id| Ok(id?.parse()?)).collect()
}

fn chain(records: &Connection, top: Option<String>) -> Result<Vec<LayerId>> {
    const FIND: &str = "SELECT parent_id FROM layers WHERE id = ?1";
    let (mut chain, mut next) = (Vec::new(), top);
    while let Some(id) = next {
        let parent = records.prepare_cached(FIND)?.query_row([&id], |row| row.get(0)).optional()?;
        next = parent.ok_or_else(|| anyhow::anyhow!("the layer {id} is needed and not recorded"))?;
        chain.push(id.parse()?);
    }
    Ok(chain)
}
