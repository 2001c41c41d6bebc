//! Looks for records that are damaged, in every table.

use raworc_core::ids::SessionId;

use crate::rows::{Row, damaged};
use crate::set_aside::{self, Repeated};
use crate::sql::sql;
use crate::{
    Damage, Store, StoreError, accounts, agents, checkpoints, conversation, events, images, layers, messages,
    model_calls, providers, secrets, settings, streams,
};

/// Rows that are looked at before others have their turn.
const BATCH: i64 = 256;

/// What a look through all records found.
#[derive(Clone, Debug, Default)]
pub struct ScanReport {
    /// What is damaged.
    pub damages: Vec<Damage>,
    /// Sessions whose columns say something else than their machines, and what.
    pub repeated: Vec<(SessionId, Repeated)>,
}

type Look = fn(&Row<'_>) -> Result<(), StoreError>;

/// Every table but `sessions`, and how a record of it is read. (Entries of `audit` repeat nothing and are repeated nowhere: one that is
/// damaged is left out of a list.)
const TABLES: [(&str, Look); 16] = [
    ("settings", |row| settings::value_of(row).map(drop)),
    ("accounts", |row| accounts::account(row).map(drop)),
    ("tokens", |row| accounts::token(row).and_then(|_| row.record("tokens", token_hash))),
    ("agents", |row| agents::agent(row).map(drop)),
    ("providers", |row| providers::provider(row).map(drop)),
    ("secrets", |row| secrets::secret(row).map(drop)),
    ("session_agents", |row| row.record("session_agents", session_agent)),
    ("layers", |row| layers::layer(row).and_then(|_| row.record("layers", archive))),
    ("images", |row| images::image(row).and_then(|_| row.record("images", image_content))),
    ("checkpoints", |row| checkpoints::checkpoint(row).map(drop)),
    ("messages", |row| {
        messages::numbered(row).and_then(|_| row.record("messages", |row| row.boolean("rewound").map(drop)))
    }),
    (conversation::TABLE, |row| conversation::segment(row).map(drop)),
    ("events", |row| events::event(row).map(drop)),
    ("streams", |row| streams::stream(row).map(drop)),
    ("model_calls", |row| model_calls::with_exchange(row).map(drop)),
    ("idempotency_keys", |row| row.record("idempotency_keys", key)),
];

/// What a record of one table says of one in another: table, column, the other table.
const REFERENCES: [(&str, &str, &str); 17] = [
    ("tokens", "account_id", "accounts"),
    ("secrets", "owner_id", "accounts"),
    ("sessions", "owner_id", "accounts"),
    ("sessions", "layer_id", "layers"),
    ("sessions", "image_layer_id", "layers"),
    ("session_agents", "session_id", "sessions"),
    ("session_agents", "agent_id", "agents"),
    ("layers", "parent_id", "layers"),
    ("images", "owner_id", "accounts"),
    ("images", "layer_id", "layers"),
    ("checkpoints", "session_id", "sessions"),
    ("checkpoints", "layer_id", "layers"),
    ("messages", "session_id", "sessions"),
    (conversation::TABLE, "session_id", "sessions"),
    (conversation::TABLE, "source_id", "sessions"),
    ("streams", "session_id", "sessions"),
    ("model_calls", "session_id", "sessions"),
];

fn token_hash(row: &Row<'_>) -> Result<(), StoreError> {
    let hash = row.text("hash")?;
    let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hash { Ok(()) } else { Err(damaged("hash", "is not a hash")) }
}

fn session_agent(row: &Row<'_>) -> Result<(), StoreError> {
    row.count::<u64>("place").map(drop)
}

fn archive(row: &Row<'_>) -> Result<(), StoreError> {
    row.optional_text("diff_id")?;
    row.optional_json::<serde_json::Value>("blob")?;
    row.count::<u64>("left_out").map(drop)
}

fn image_content(row: &Row<'_>) -> Result<(), StoreError> {
    row.optional_json::<serde_json::Value>("content").map(drop)
}

fn key(row: &Row<'_>) -> Result<(), StoreError> {
    row.text("account_id")?;
    row.text("key")?;
    row.text("fingerprint")?;
    row.text("resource_id")?;
    row.time("created_at").map(drop)
}

impl Store {
    /// Looks through all records, a few at a time; what is damaged is known then.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn look_through(&self) -> Result<ScanReport, StoreError> {
        let (mut damages, mut found) = (Vec::new(), ScanReport::default());
        for (session, repeated) in self.rows("sessions", set_aside::repeats, &mut damages).await? {
            if repeated != Repeated::Consistent {
                found.repeated.push((session.id, repeated));
            }
        }
        for (table, look) in TABLES {
            self.rows(table, look, &mut damages).await?;
        }
        for reference in REFERENCES {
            self.dangling(reference, &mut damages).await?;
        }
        found.repeated.extend(self.miscounted().await?);
        self.damages.replace(&damages);
        found.damages = damages;
        Ok(found)
    }

    /// A number that differs from what it was last time where another process has changed the database since.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn version_elsewhere(&self) -> Result<i64, StoreError> {
        self.write(|tx| {
            Box::pin(async move {
                // (SQLite counts the commits of all connections but the one that asks. The writer is the only one of ours that
                // commits anything.)
                let version = sql("SELECT data_version AS version FROM pragma_data_version")
                    .fetch_optional(tx, |row| row.integer("version"))
                    .await?;
                Ok(version.unwrap_or(0))
            })
        })
        .await
    }

    /// All rows of a table that are as they must be.
    async fn rows<T>(
        &self,
        table: &str,
        read: impl Fn(&Row<'_>) -> Result<T, StoreError>,
        damages: &mut Vec<Damage>,
    ) -> Result<Vec<T>, StoreError> {
        let (mut all, mut after) = (Vec::new(), 0);
        loop {
            let mut connection = self.read().await?;
            let batch = sql(format!("SELECT rowid AS place_, * FROM {table} WHERE rowid > $1 ORDER BY rowid LIMIT $2"))
                .bind(after)
                .bind(BATCH)
                .fetch_all(&mut connection, |row| Ok((row.integer("place_")?, read(row))))
                .await?;
            drop(connection);
            let Some((last, _)) = batch.last() else { return Ok(all) };
            after = *last;
            for (_, row) in batch {
                match row {
                    Ok(row) => all.push(row),
                    Err(StoreError::Damaged(damage)) => damages.push(*damage),
                    Err(error) => return Err(error),
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Records that name one which is not there.
    async fn dangling(
        &self,
        (table, column, other): (&'static str, &str, &str),
        damages: &mut Vec<Damage>,
    ) -> Result<(), StoreError> {
        let mut connection = self.read().await?;
        let text = format!(
            "SELECT * FROM {table} WHERE {column} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {other} AS other_ WHERE other_.id = {table}.{column})"
        );
        let named = sql(text).fetch_all(&mut connection, |row| Ok(row.identity())).await?;
        for id in named {
            if !damages.iter().any(|damage| damage.table == table && damage.id == id) {
                let (column, reason) = (column.to_owned(), format!("names no record of {other}"));
                damages.push(Damage { table, id, column, reason });
            }
        }
        Ok(())
    }

    /// Sessions that do not know their newest event or checkpoint.
    async fn miscounted(&self) -> Result<Vec<(SessionId, Repeated)>, StoreError> {
        let mut connection = self.read().await?;
        let found = sql(format!(
            "SELECT id FROM sessions WHERE last_seq < (SELECT seq FROM events \
             WHERE session_id = sessions.id AND typeof(seq) = 'integer' ORDER BY seq DESC LIMIT 1) \
             OR last_seq < ({}) OR checkpoints < (SELECT MAX(n) FROM checkpoints \
             WHERE session_id = sessions.id AND typeof(n) = 'integer')",
            conversation::LAST_SEQ
        ))
        .fetch_sound(&mut connection, |row| row.id("id"))
        .await?;
        Ok(found.rows.into_iter().map(|id| (id, Repeated::Stale)).collect())
    }
}
