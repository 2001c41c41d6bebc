//! Accounts and their tokens.

use std::time::Duration;

use raworc_api::account::{CreateAccount, CreateToken};
use raworc_api::problem::Code;
use raworc_core::ids::{AccountId, TokenId};
use raworc_core::limits::TTL_SECONDS;
use raworc_core::names;
use raworc_core::permissions::{Action, Actor, Role};
use raworc_core::time::Time;
use raworc_store::accounts::{self, AccountRow, TokenRow};
use raworc_store::{Sound, Store, StoreError, audit};
use uuid::Uuid;

use super::check::Checks;
use crate::app::Shared;
use crate::error::Failure;
use crate::policy::auth;
use crate::policy::permit;

/// The name of the first administrator.
const ADMIN: &str = "admin";

/// Makes the first administrator where there is no account yet; the secret of their token.
///
/// # Errors
/// Where the store fails.
pub async fn first_start(store: &Store, now: Time) -> Result<Option<String>, Failure> {
    let secret = auth::new_secret();
    let hash = auth::hash(&secret);
    let account = new_account(ADMIN.into(), Role::Admin, now);
    let token = new_token(Uuid::now_v7(), account.id, "first start".into(), None, now);
    let is_first = store
        .write(move |tx| {
            Box::pin(async move {
                if accounts::any(tx).await? {
                    return Ok::<_, Failure>(false);
                }
                accounts::insert(tx, &account).await?;
                accounts::insert_token(tx, &token, &hash).await?;
                Ok(true)
            })
        })
        .await?;
    Ok(is_first.then_some(secret))
}

/// Gives the first administrator a new token, for a machine on which its file was lost.
///
/// # Errors
/// Where the store fails, or that account is gone.
pub async fn replace_admin_token(store: &Store, now: Time) -> Result<String, Failure> {
    let secret = auth::new_secret();
    let hash = auth::hash(&secret);
    store
        .write(move |tx| {
            Box::pin(async move {
                let account = accounts::find(tx, ADMIN).await?.ok_or_else(|| Failure::not_found("account", ADMIN))?;
                let token = new_token(tx.new_id(), account.id, "replaced at start".into(), None, now);
                accounts::insert_token(tx, &token, &hash).await?;
                Ok::<_, Failure>(())
            })
        })
        .await?;
    Ok(secret)
}

fn new_account(name: String, role: Role, now: Time) -> AccountRow {
    AccountRow { id: AccountId(Uuid::now_v7()), name, role, created_at: now, closed_at: None }
}

fn new_token(id: Uuid, account_id: AccountId, name: String, expires_at: Option<Time>, now: Time) -> TokenRow {
    TokenRow { id: TokenId(id), account_id, name, created_at: now, expires_at, revoked_at: None }
}

/// Makes an account.
///
/// # Errors
/// 409 where the name is taken.
pub async fn create(app: &Shared, actor: &Actor, body: CreateAccount) -> Result<AccountRow, Failure> {
    permit(actor, Action::ManageAccounts, "account", &body.name)?;
    let mut checks = Checks::default();
    checks.check("name", names::check_handle(&body.name));
    checks.done()?;
    let (actor, now) = (actor.clone(), app.now());
    let row = new_account(body.name, body.role, now);
    app.store
        .write(move |tx| {
            Box::pin(async move {
                audit::append(tx, now, &actor, "account.create", &row.id.to_string()).await?;
                match accounts::insert(tx, &row).await {
                    Ok(()) => Ok(row),
                    Err(StoreError::Conflict) => {
                        let detail = format!("there is an account {:?} already; choose another name", row.name);
                        Err(Failure::new(Code::NameTaken, detail))
                    }
                    Err(error) => Err(error.into()),
                }
            })
        })
        .await
}

/// Closes an account: its tokens stop working, its sessions stay.
///
/// # Errors
/// 404; 409 where it is the caller's own.
pub async fn close(app: &Shared, actor: &Actor, id_or_name: String) -> Result<(), Failure> {
    permit(actor, Action::ManageAccounts, "account", &id_or_name)?;
    let (actor, now) = (actor.clone(), app.now());
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let row =
                    accounts::find(tx, &id_or_name).await?.ok_or_else(|| Failure::not_found("account", &id_or_name))?;
                if row.id == actor.account {
                    let detail = "you cannot close your own account; another administrator can";
                    return Err(Failure::new(Code::InvalidState, detail));
                }
                audit::append(tx, now, &actor, "account.close", &row.id.to_string()).await?;
                accounts::close(tx, row.id, now).await?;
                tx.revoked(row.id);
                Ok(())
            })
        })
        .await
}

/// One account; everyone may see their own.
///
/// # Errors
/// 404.
pub async fn get(app: &Shared, actor: &Actor, id_or_name: &str) -> Result<AccountRow, Failure> {
    let mut connection = app.store.read().await?;
    let found = accounts::find(&mut connection, id_or_name).await?;
    let row = found.ok_or_else(|| Failure::not_found("account", id_or_name))?;
    permit(actor, Action::ManageTokens { owner: row.id }, "account", id_or_name)?;
    Ok(row)
}

/// Accounts by name, after the name `after`.
///
/// # Errors
/// 403.
pub async fn list(app: &Shared, actor: &Actor, after: &str, limit: u32) -> Result<Sound<AccountRow>, Failure> {
    permit(actor, Action::ManageAccounts, "account", "")?;
    let mut connection = app.store.read().await?;
    Ok(accounts::list(&mut connection, after, limit).await?)
}

/// Makes a token; its record and its secret, which is not stored.
///
/// # Errors
/// 404, 422; 409 where the account is closed.
pub async fn create_token(
    app: &Shared,
    actor: &Actor,
    id_or_name: String,
    body: CreateToken,
) -> Result<(TokenRow, String), Failure> {
    let owner = get(app, actor, &id_or_name).await?;
    let mut checks = Checks::default();
    checks.check("name", names::check_title(&body.name));
    checks.range("expires_in_seconds", body.expires_in_seconds, &TTL_SECONDS);
    checks.done()?;
    if owner.closed_at.is_some() {
        let detail = "the account is closed: a token of it would not work";
        return Err(Failure::new(Code::InvalidState, detail));
    }
    let (actor, now) = (actor.clone(), app.now());
    let expires_at = body.expires_in_seconds.map(|seconds| now + Duration::from_secs(seconds));
    let row = new_token(Uuid::now_v7(), owner.id, body.name, expires_at, now);
    let secret = auth::new_secret();
    let hash = auth::hash(&secret);
    app.store
        .write(move |tx| {
            Box::pin(async move {
                audit::append(tx, now, &actor, "token.create", &row.id.to_string()).await?;
                accounts::insert_token(tx, &row, &hash).await?;
                Ok((row, secret))
            })
        })
        .await
}

/// An account's tokens, after the id `after`.
///
/// # Errors
/// 404.
pub async fn list_tokens(
    app: &Shared,
    actor: &Actor,
    id_or_name: &str,
    after: &str,
    limit: u32,
) -> Result<Sound<TokenRow>, Failure> {
    let owner = get(app, actor, id_or_name).await?;
    let mut connection = app.store.read().await?;
    Ok(accounts::list_tokens(&mut connection, owner.id, after, limit).await?)
}

/// Revokes a token.
///
/// # Errors
/// 404.
pub async fn revoke_token(app: &Shared, actor: &Actor, id_or_name: &str, id: TokenId) -> Result<(), Failure> {
    let owner = get(app, actor, id_or_name).await?;
    let (actor, now) = (actor.clone(), app.now());
    app.store
        .write(move |tx| {
            Box::pin(async move {
                audit::append(tx, now, &actor, "token.revoke", &id.to_string()).await?;
                if accounts::revoke_token(tx, owner.id, id, now).await? {
                    tx.revoked(owner.id);
                    Ok(())
                } else {
                    Err(Failure::not_found("token", &id.to_string()))
                }
            })
        })
        .await
}
