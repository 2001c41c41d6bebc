//! The audit trail: who did what to what, when, and who was refused. Only ever added to.

use raworc_api::audit::AuditOutcome;
use raworc_core::ids::AccountId;
use raworc_core::permissions::Actor;
use raworc_core::time::Time;
use uuid::Uuid;

use crate::StoreError;
use crate::rows::{Row, word};
use crate::sql::{Batch, Read, WhereClause, sql};
use crate::tx::Tx;

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    /// Its id; later ones are greater.
    pub id: Uuid,
    /// When.
    pub at: Time,
    /// Who.
    pub account_id: AccountId,
    /// Their name then.
    pub account: String,
    /// What: `session.create`; of what was refused, the call.
    pub action: String,
    /// On what: an id, or a path.
    pub target: String,
    /// What came of it.
    pub outcome: AuditOutcome,
}

/// Which entries to list. Newest first.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only of the account of this name.
    pub account: Option<String>,
    /// Only this.
    pub action: Option<String>,
    /// Only on this.
    pub target: Option<String>,
    /// Only with this outcome.
    pub outcome: Option<AuditOutcome>,
    /// Only later than this.
    pub after: Option<Time>,
    /// Only earlier than this.
    pub before: Option<Time>,
    /// Only those that were added before this one.
    pub cursor: Option<Uuid>,
}

fn entry(row: &Row<'_>) -> Result<AuditRow, StoreError> {
    row.record("audit", |row| {
        Ok(AuditRow {
            id: row.id("id")?,
            at: row.time("at")?,
            account_id: row.id("account_id")?,
            account: row.text("account")?,
            action: row.text("action")?,
            target: row.text("target")?,
            outcome: row.word("outcome")?,
        })
    })
}

/// Adds an entry of what is done in the same transaction.
///
/// # Errors
/// Where the store fails.
pub async fn append(tx: &mut Tx, now: Time, actor: &Actor, action: &str, target: &str) -> Result<(), StoreError> {
    insert(tx, now, actor, (action, target, AuditOutcome::Done)).await
}

/// Adds an entry: an action, its target, and what came of it.
///
/// # Errors
/// Where the store fails.
pub async fn insert(
    tx: &mut Tx,
    now: Time,
    actor: &Actor,
    (action, target, outcome): (&str, &str, AuditOutcome),
) -> Result<(), StoreError> {
    sql("INSERT INTO audit (id, at, account_id, account, action, target, outcome) VALUES ($1, $2, $3, $4, $5, $6, $7)")
        .bind(tx.new_id().to_string())
        .bind(now.0)
        .bind(actor.account.to_string())
        .bind(actor.name.clone())
        .bind(action)
        .bind(target)
        .bind(word(outcome)?)
        .execute(tx)
        .await?;
    Ok(())
}

/// Entries, newest first: at most `limit`, and about so many bytes.
///
/// # Errors
/// Where the store fails.
pub async fn list(connection: &mut Read, filter: &Filter, bounds: (u32, usize)) -> Result<Batch<AuditRow>, StoreError> {
    let mut conditions = WhereClause::default();
    for (column, wanted) in [("account", &filter.account), ("action", &filter.action), ("target", &filter.target)] {
        if let Some(wanted) = wanted {
            conditions.and(&format!("{column} = ?"), [wanted.clone().into()]);
        }
    }
    if let Some(outcome) = filter.outcome {
        conditions.and("outcome = ?", [word(outcome)?.into()]);
    }
    if let Some(after) = filter.after {
        conditions.and("at > ?", [after.0.into()]);
    }
    if let Some(before) = filter.before {
        conditions.and("at < ?", [before.0.into()]);
    }
    if let Some(cursor) = filter.cursor {
        conditions.and("id < ?", [cursor.to_string().into()]);
    }
    conditions.select("SELECT * FROM audit", "ORDER BY id DESC").fetch_batch(connection, bounds, entry).await
}
