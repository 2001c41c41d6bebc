//! What this machine lacks for running containers, in plain words.

use std::path::Path;

/// Whether something is as it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is.
    Ok,
    /// Containers run, but not as well as they could.
    Warning,
    /// Containers don't run.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What, in a word or two.
    pub name: &'static str,
    /// How it is.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it; empty where nothing is to be done.
    pub remedy: String,
}

/// Looks at everything.
#[must_use]
pub fn doctor(_data_dir: &Path) -> Vec<Check> {
    Vec::new()
}
