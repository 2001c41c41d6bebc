//! `/sessions/{id}/model-calls` and `/sessions/{id}/usage`

use axum::extract::State;
use axum::response::Response;
use raworc_api::model_call::{ModelCall, SessionUsage};
use raworc_core::ids::ModelCallId;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::Shared;
use crate::error::Failure;
use crate::http::extract::{Caller, Path};
use crate::http::problems::Problems;
use crate::verbs::model_calls;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(get)).routes(routes!(usage))
}

/// Get a call of a model by a program in the session, with what was said. Events `model.called` name them.
#[utoipa::path(get, path = "/sessions/{id}/model-calls/{call_id}", tag = "models",
    params(("id" = String, Path, description = "Id or name"), ("call_id" = String, Path, description = "The call's id")),
    responses((status = 200, body = ModelCall), Problems))]
async fn get(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path((id, call)): Path<(String, ModelCallId)>,
) -> Result<Response, Failure> {
    let call = model_calls::get(&app, &actor, &id, call).await?;
    app.budgets.json(call).await
}

/// What the session has used: calls of models, tokens and cost, also by agent and model.
#[utoipa::path(get, path = "/sessions/{id}/usage", tag = "models",
    params(("id" = String, Path, description = "Id or name")),
    responses((status = 200, body = SessionUsage), Problems))]
async fn usage(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(id): Path<String>,
) -> Result<axum::Json<SessionUsage>, Failure> {
    Ok(axum::Json(model_calls::usage(&app, &actor, &id).await?))
}
