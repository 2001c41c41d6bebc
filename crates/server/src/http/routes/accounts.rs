//! `/accounts` and `/me`

use axum::extract::State;
use axum::http::StatusCode;
use raworc_api::account::{Account, CreateAccount, CreateToken, NewToken, Token};
use raworc_api::page::{Page, PageQuery};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::Shared;
use crate::error::Failure;
use crate::http::extract::{Caller, Json, Path, Query};
use crate::http::page::page;
use crate::http::problems::Problems;
use crate::policy::lease::Lease;
use crate::verbs::accounts;
use crate::verbs::check::page_limit;
use crate::view;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(get, close))
        .routes(routes!(create_token, list_tokens))
        .routes(routes!(revoke_token))
        .routes(routes!(me))
}

/// Make an account.
#[utoipa::path(post, path = "/accounts", tag = "accounts", request_body = CreateAccount,
    responses((status = 201, body = Account), Problems))]
async fn create(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Json(body): Json<CreateAccount>,
) -> Result<(StatusCode, axum::Json<Account>), Failure> {
    let row = accounts::create(&app, &actor, body).await?;
    Ok((StatusCode::CREATED, axum::Json(view::account(row))))
}

/// List accounts by name.
#[utoipa::path(get, path = "/accounts", tag = "accounts", params(PageQuery),
    responses((status = 200, body = Page<Account>), Problems))]
async fn list(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Page<Account>>, Failure> {
    let limit = page_limit(query.limit)?;
    let rows = accounts::list(&app, &actor, query.cursor.as_deref().unwrap_or_default(), limit + 1).await?;
    Ok(axum::Json(page(rows, limit, |row| row.name.clone(), view::account)))
}

/// Get an account.
#[utoipa::path(get, path = "/accounts/{id}", tag = "accounts",
    params(("id" = String, Path, description = "Id or name")), responses((status = 200, body = Account), Problems))]
async fn get(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(id): Path<String>,
) -> Result<axum::Json<Account>, Failure> {
    Ok(axum::Json(view::account(accounts::get(&app, &actor, &id).await?)))
}

/// Close an account: its tokens stop working, its sessions stay.
#[utoipa::path(delete, path = "/accounts/{id}", tag = "accounts",
    params(("id" = String, Path, description = "Id or name")),
    responses((status = 204, description = "It is closed"), Problems))]
async fn close(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    accounts::close(&app, &actor, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The caller's own account.
#[utoipa::path(get, path = "/me", tag = "accounts", responses((status = 200, body = Account), Problems))]
async fn me(State(app): State<Shared>, Caller(actor): Caller) -> Result<axum::Json<Account>, Failure> {
    let id = actor.account.to_string();
    Ok(axum::Json(view::account(accounts::get(&app, &actor, &id).await?)))
}

/// Make a token. Its secret is in this answer and nowhere else.
#[utoipa::path(post, path = "/accounts/{id}/tokens", tag = "accounts", request_body = CreateToken,
    params(("id" = String, Path, description = "Id or name of the account")),
    responses((status = 201, body = NewToken), Problems))]
async fn create_token(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(id): Path<String>,
    Json(body): Json<CreateToken>,
) -> Result<(StatusCode, axum::Json<NewToken>), Failure> {
    let (row, token) = accounts::create_token(&app, &actor, id, body).await?;
    Ok((StatusCode::CREATED, axum::Json(NewToken { record: view::token(row), token })))
}

/// List an account's tokens, oldest first; never their secrets.
#[utoipa::path(get, path = "/accounts/{id}/tokens", tag = "accounts",
    params(("id" = String, Path, description = "Id or name of the account"), PageQuery),
    responses((status = 200, body = Page<Token>), Problems))]
async fn list_tokens(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(id): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Page<Token>>, Failure> {
    let limit = page_limit(query.limit)?;
    let after = query.cursor.as_deref().unwrap_or_default();
    let rows = accounts::list_tokens(&app, &actor, &id, after, limit + 1).await?;
    Ok(axum::Json(page(rows, limit, |row| row.id.to_string(), view::token)))
}

/// Revoke a token.
#[utoipa::path(delete, path = "/accounts/{id}/tokens/{token_id}", tag = "accounts",
    params(("id" = String, Path, description = "Id or name of the account"),
           ("token_id" = String, Path, format = "uuid")),
    responses((status = 204, description = "It no longer works"), Problems))]
async fn revoke_token(
    State(app): State<Shared>,
    Caller(actor): Caller,
    lease: Lease,
    Path((id, token)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    // It may be the one that this is asked with.
    lease.let_end();
    let token = token.parse().map_err(|_| Failure::not_found("token", &token))?;
    accounts::revoke_token(&app, &actor, &id, token).await?;
    Ok(StatusCode::NO_CONTENT)
}
