//! What the answer to a translated request has to know of it, and why a request is not translated.

use crate::dialect::Dialect;
use crate::dialect::json::Json;

/// A request that the other dialect can't say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the provider of this model has no `{field}`: {reason}")]
pub struct Untranslatable {
    /// Where in the request it is.
    pub field: String,
    /// What is wrong, or what to do.
    pub reason: String,
}

impl Untranslatable {
    pub(super) fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

/// A request that was translated, as far as its answer has to know it.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub(super) client: Dialect,
    pub(super) provider: Dialect,
    pub(super) model: String,
    pub(super) created: u64,
    pub(super) is_usage_asked: bool,
    /// The tools that take plain text in place of arguments.
    pub(super) freeform: Vec<String>,
    /// Members of the request that an answer in responses repeats.
    pub(super) echo: Json,
}
