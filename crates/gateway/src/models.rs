//! Lists of models, as the clients of each dialect read them.

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::answer::{self, Body};
use crate::dialect::Dialect;
use crate::failure::Problem;
use crate::ports::ListedModel;

/// Nothing here knows when a model was made, and clients want a time.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// All of them, or the one with this id.
pub fn answer(form: Dialect, models: &[ListedModel], id: Option<&str>) -> Response<Body> {
    let Some(id) = id else { return answer::json(StatusCode::OK, text(&list(form, models))) };
    let is_meant = |model: &&ListedModel| {
        let qualified = model.id.strip_prefix(model.provider.as_str()).and_then(|rest| rest.strip_prefix('/'));
        model.id == id || qualified == Some(id)
    };
    match models.iter().find(is_meant) {
        Some(model) => answer::json(StatusCode::OK, text(&one(form, model))),
        None => {
            let message = "there is no such model here; the list of models has all that may be named";
            answer::problem(form, &Problem::new(StatusCode::NOT_FOUND, "unknown_model", message))
        }
    }
}

fn list(form: Dialect, models: &[ListedModel]) -> Value {
    let entries: Vec<Value> = models.iter().map(|model| one(form, model)).collect();
    match form {
        Dialect::Gemini => json!({ "models": entries }),
        Dialect::Messages => {
            let (first, last) = (models.first().map(|model| &model.id), models.last().map(|model| &model.id));
            json!({ "data": entries, "has_more": false, "first_id": first, "last_id": last })
        }
        Dialect::ChatCompletions | Dialect::Responses => json!({ "object": "list", "data": entries }),
    }
}

fn one(form: Dialect, model: &ListedModel) -> Value {
    let id = &model.id;
    match form {
        Dialect::Gemini => json!({
            "name": format!("models/{id}"),
            "displayName": id,
            "supportedGenerationMethods": ["generateContent", "countTokens"],
        }),
        Dialect::Messages => json!({ "type": "model", "id": id, "display_name": id, "created_at": CREATED }),
        Dialect::ChatCompletions | Dialect::Responses => {
            json!({ "id": id, "object": "model", "created": 0, "owned_by": model.provider })
        }
    }
}

fn text(value: &Value) -> Bytes {
    value.to_string().into()
}
