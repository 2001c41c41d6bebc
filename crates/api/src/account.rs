//! Accounts and tokens.

use jiff::Timestamp;
use raworc_core::ids::{AccountId, TokenId};
use raworc_core::permissions::Role;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `POST /accounts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateAccount {
    /// Letters, digits, `-`, `_`, `.`; unique.
    pub name: String,
    /// `admin` or `member`.
    #[schema(value_type = String)]
    pub role: Role,
}

/// An account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Account {
    /// Its id.
    #[schema(value_type = String, format = "uuid")]
    pub id: AccountId,
    /// Its name.
    pub name: String,
    /// `admin` or `member`.
    #[schema(value_type = String)]
    pub role: Role,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was closed; its tokens stopped working then.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub closed_at: Option<Timestamp>,
}

/// `POST /accounts/{id}/tokens`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// What the token is for.
    pub name: String,
    /// Expires after this time; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<u64>,
}

/// A token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its id.
    #[schema(value_type = String, format = "uuid")]
    pub id: TokenId,
    /// The account it belongs to.
    #[schema(value_type = String, format = "uuid")]
    pub account_id: AccountId,
    /// What it is for.
    pub name: String,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it expires.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub revoked_at: Option<Timestamp>,
}

/// A new token, the only time its secret is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewToken {
    /// The token.
    #[serde(flatten)]
    pub record: Token,
    /// The secret, for `Authorization: Bearer`.
    pub token: String,
}
