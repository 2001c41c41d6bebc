//! When the records were looked through, and what was found then.

use raworc_core::ids::LayerId;
use raworc_store::Damage;
use tokio::time::Instant;

/// What was looked at, and when.
#[derive(Default)]
pub struct Looks(pub tokio::sync::Mutex<Looked>);

#[derive(Default)]
/// The same.
pub struct Looked {
    /// The state of the database as other processes have left it.
    pub version: Option<i64>,
    /// When.
    pub at: Option<Instant>,
    /// What was found then.
    pub damages: Vec<Damage>,
    /// Layers whose directory was not there.
    pub missing: Vec<LayerId>,
    /// When that was looked for.
    pub missing_at: Option<Instant>,
}
