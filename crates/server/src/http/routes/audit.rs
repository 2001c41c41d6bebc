//! `/audit`

use axum::extract::State;
use axum::response::Response;
use raworc_api::audit::{AuditEntry, ListAudit};
use raworc_api::page::Page;
use raworc_api::problem::Problem;
use raworc_store::audit::Filter;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::Shared;
use crate::error::Failure;
use crate::http::extract::{Caller, Query};
use crate::http::page::page_of;
use crate::http::problems::Problems;
use crate::verbs::audit;
use crate::verbs::check::page_limit;
use crate::view;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(list))
}

/// Who did what to what, and who was refused; newest first. For administrators.
#[utoipa::path(get, path = "/audit", tag = "audit", params(ListAudit),
    responses((status = 200, body = Page<AuditEntry>), Problems))]
async fn list(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Query(query): Query<ListAudit>,
) -> Result<Response, Failure> {
    let limit = page_limit(query.limit)?;
    let wrong = |_| Problem::field("cursor", "must be the next_cursor of an earlier page");
    let filter = Filter {
        account: query.actor,
        action: query.action,
        target: query.target,
        outcome: query.outcome,
        after: query.after.map(Into::into),
        before: query.before.map(Into::into),
        cursor: query.cursor.map(|cursor| cursor.parse().map_err(wrong)).transpose()?,
    };
    let (batch, _place) = audit::list(&app, &actor, filter, limit).await?;
    app.budgets.json(page_of(batch, |row| row.id.to_string(), view::audit_entry)).await
}
