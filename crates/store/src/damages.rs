//! Records that are not as they must be. Each is set aside: what asks for it is told so, and everything else goes on.
//!
//! Whoever meets one notes it, and [`Store::look_through`](crate::Store::look_through) looks for all of them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::StoreError;

/// So many are remembered at most.
const DAMAGES_MAX: usize = 1000;

/// What is wrong with a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Damage {
    /// The table that it is in.
    pub table: &'static str,
    /// What it is called there.
    pub id: String,
    /// The first column that is not as it must be.
    pub column: String,
    /// What is wrong with it.
    pub reason: String,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { table, id, column, reason } = self;
        write!(f, "{table} {id}: {column} {reason}")
    }
}

/// All that are known.
#[derive(Debug, Default)]
pub(crate) struct DamageRegistry(Mutex<BTreeMap<(&'static str, String), Damage>>);

impl DamageRegistry {
    /// Notes what this error says of a record, if it does.
    pub(crate) fn note(&self, error: &StoreError) {
        if let StoreError::Damaged(damage) = error
            && !damage.table.is_empty()
        {
            self.add(damage);
        }
    }

    fn add(&self, damage: &Damage) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (damage.table, damage.id.clone());
        if all.len() < DAMAGES_MAX && !all.contains_key(&key) {
            tracing::error!(%damage, "a record is damaged and set aside; see docs/errors/record_damaged.md");
            all.insert(key, damage.clone());
        }
    }

    /// These are all there are.
    pub(crate) fn replace(&self, found: &[Damage]) {
        found.iter().for_each(|damage| self.add(damage));
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(table, id), _| found.iter().any(|damage| damage.table == *table && damage.id == *id));
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Damage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
