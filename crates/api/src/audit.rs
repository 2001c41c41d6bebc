//! The audit trail.

use jiff::Timestamp;
use raworc_core::ids::AccountId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// The outcome of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuditOutcome {
    /// The action was done.
    Done,
    /// The account lacked permission.
    Refused,
}

/// An entry of the audit trail: an account did something, or was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// Its id; later entries have greater ones.
    pub id: String,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The account's name at that time.
    pub actor: String,
    /// The account's id.
    #[schema(value_type = String, format = "uuid")]
    pub account_id: AccountId,
    /// The action, such as `session.create`; if refused, the call, such as `DELETE /accounts/{id}`.
    pub action: String,
    /// Its target: an id or a name; if refused, the path of the call.
    pub target: String,
    /// The outcome.
    pub outcome: AuditOutcome,
}

/// `GET /audit`. Newest first.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListAudit {
    /// Only entries of this account name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// Only this action, such as `session.delete`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Only this target: an id, as in entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Only this outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<AuditOutcome>,
    /// Only entries after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>, format = DateTime)]
    pub after: Option<Timestamp>,
    /// Only entries before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>, format = DateTime)]
    pub before: Option<Timestamp>,
    /// Maximum number of entries, 1 to 500; default 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// The `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}
