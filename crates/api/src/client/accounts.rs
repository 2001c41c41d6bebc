//! Calls about accounts and tokens.

use raworc_core::ids::TokenId;
use reqwest::Method;

use super::path::Path;
use super::{Client, Result};
use crate::account::{Account, CreateAccount, CreateToken, NewToken, Token};
use crate::audit::{AuditEntry, ListAudit};
use crate::page::{Page, PageQuery};

impl Client {
    /// `GET /me`: the account of the token.
    pub async fn me(&self) -> Result<Account> {
        self.fetch(Path::new("me"), &()).await
    }

    /// `POST /accounts`.
    pub async fn create_account(&self, body: &CreateAccount) -> Result<Account> {
        self.post(Path::new("accounts"), body).await
    }

    /// `GET /accounts`.
    pub async fn list_accounts(&self, query: &PageQuery) -> Result<Page<Account>> {
        self.fetch(Path::new("accounts"), query).await
    }

    /// `GET /audit`.
    pub async fn list_audit(&self, query: &ListAudit) -> Result<Page<AuditEntry>> {
        self.fetch(Path::new("audit"), query).await
    }

    /// `GET /accounts/{id}`.
    pub async fn get_account(&self, id: &str) -> Result<Account> {
        self.fetch(Path::new("accounts").id(id), &()).await
    }

    /// `DELETE /accounts/{id}`: closes it; its tokens stop working.
    pub async fn close_account(&self, id: &str) -> Result<()> {
        self.done(self.request(Method::DELETE, Path::new("accounts").id(id))?).await
    }

    /// `POST /accounts/{id}/tokens`.
    pub async fn create_token(&self, account: &str, body: &CreateToken) -> Result<NewToken> {
        self.post(Path::new("accounts").id(account).then("tokens"), body).await
    }

    /// `GET /accounts/{id}/tokens`.
    pub async fn list_tokens(&self, account: &str, query: &PageQuery) -> Result<Page<Token>> {
        self.fetch(Path::new("accounts").id(account).then("tokens"), query).await
    }

    /// `DELETE /accounts/{id}/tokens/{token_id}`.
    pub async fn revoke_token(&self, account: &str, token: TokenId) -> Result<()> {
        let path = Path::new("accounts").id(account).then("tokens").id(token);
        self.done(self.request(Method::DELETE, path)?).await
    }
}
