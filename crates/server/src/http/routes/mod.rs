//! The REST API: one file per noun. A handler reads the request, calls a verb, and shows what it answers.

mod accounts;
mod agents;
mod audit;
mod checkpoints;
mod events;
mod files;
mod images;
mod messages;
mod model_calls;
mod providers;
mod secrets;
mod sessions;
mod system;
mod terminal;
mod transfers;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::{Extension, Router};
use raworc_api::PREFIX;
use raworc_api::problem::{Code, Problem};
use raworc_api::terminal::{ClientFrame, Notice};
use raworc_core::limits::BODY_BYTES_MAX;
use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;

use crate::app::Shared;
use crate::conditions;
use crate::error::problem_response;
use crate::http::{leased, unread};

#[derive(OpenApi)]
#[openapi(
    info(title = "Raworc", description = "Runs AI agents in sessions.", license(name = "Apache-2.0")),
    components(schemas(Problem, ClientFrame, Notice)),
    security(("token" = [])),
    modifiers(&Token)
)]
struct Document;

struct Token;

impl utoipa::Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    }
}

fn parts() -> OpenApiRouter<Shared> {
    OpenApiRouter::with_openapi(Document::openapi()).nest(
        PREFIX,
        OpenApiRouter::new()
            .merge(sessions::routes())
            .merge(messages::routes())
            .merge(events::routes())
            .merge(files::routes())
            .merge(terminal::routes())
            .merge(checkpoints::routes())
            .merge(images::routes())
            .merge(agents::routes())
            .merge(providers::routes())
            .merge(secrets::routes())
            .merge(accounts::routes())
            .merge(audit::routes())
            .merge(model_calls::routes())
            .merge(system::routes()),
    )
}

/// The OpenAPI document, as JSON.
pub fn openapi() -> String {
    let mut document = parts().into_openapi();
    name_operations(&mut document);
    let text = document.to_pretty_json().unwrap_or_default();
    // axum marks the rest of a path with a star; OpenAPI has no word for it.
    text.replace("{*path}", "{path}")
}

/// Operations are named after their functions, which several nouns share; a document names each one once.
fn name_operations(document: &mut utoipa::openapi::OpenApi) {
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete];
        for operation in operations.into_iter().filter_map(Option::as_mut) {
            if let (Some(tag), Some(id)) = (operation.tags.iter().flatten().next(), &mut operation.operation_id) {
                *id = format!("{tag}_{id}");
            }
        }
    }
}

/// Everything that can be called.
pub fn router(app: Shared) -> Router {
    let (router, _) = parts().split_for_parts();
    router
        .fallback(|| async { problem_response(&Problem::new(Code::NotFound, "there is nothing at this path")) })
        .method_not_allowed_fallback(|| async {
            problem_response(&Problem::new(Code::MethodNotAllowed, "this path does not take this method"))
        })
        .layer(Extension(system::Document(openapi)))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn(conditions::obey))
        .layer(middleware::from_fn_with_state(app.clone(), leased::hold))
        .layer(middleware::from_fn(unread::read))
        .layer(middleware::from_fn_with_state(app.clone(), count))
        .with_state(app)
}

async fn count(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    app.metrics.request(response.status().as_u16());
    response
}
