//! When the records were looked through, and what was found then.

use raworc_core::ids::LayerId;
use raworc_store::Damage;
use tokio::time::Instant;

/// The last look, for one task at a time.
#[derive(Default)]
pub struct Looks(pub tokio::sync::Mutex<Looked>);

/// What the last look found.
#[derive(Default)]
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
