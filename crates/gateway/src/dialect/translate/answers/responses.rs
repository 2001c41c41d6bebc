//! Writes answers in responses.

use http::StatusCode;

use super::super::exchange::Exchange;
use super::id_with;
use crate::dialect::json::{Json, object};
use crate::dialect::neutral::{Answer, AnswerPart, Failure, Stop, Usage};

/// Members of a request that the answer to it repeats, with what they are if the request does not have them.
pub fn echo(request: &Json) -> Json {
    let defaults = object! {
        "instructions": Json::Null,
        "max_output_tokens": Json::Null,
        "metadata": object! {},
        "parallel_tool_calls": true,
        "previous_response_id": Json::Null,
        "reasoning": object! { "effort": Json::Null, "summary": Json::Null },
        "store": false,
        "temperature": Json::Null,
        "text": object! { "format": object! { "type": "text" } },
        "tool_choice": "auto",
        "tools": Vec::new(),
        "top_p": Json::Null,
        "truncation": "disabled",
        "user": Json::Null,
    };
    let Json::Object(mut members) = defaults else { return defaults };
    for (name, value) in &mut members {
        // Nothing is stored, whatever the request wishes.
        if let Some(given) = request.some(name).filter(|_| name != "store") {
            given.clone_into(value);
        }
    }
    Json::Object(members)
}

/// Writes a whole answer.
pub fn whole(exchange: &Exchange, answer: &Answer) -> Json {
    let stem = id_with("", &answer.id);
    let output =
        answer.parts.iter().enumerate().map(|(at, part)| item(exchange, &stem, at, part, "completed")).collect();
    let (status, reason) = match answer.stop() {
        Stop::Length => ("incomplete", Some("max_output_tokens")),
        Stop::Refusal => ("incomplete", Some("content_filter")),
        Stop::End | Stop::Sequence | Stop::Tools => ("completed", None),
    };
    let mut response = head(exchange, answer, status);
    response.set("incomplete_details", reason.map(|reason| object! { "reason": reason }));
    response.set("output", Json::List(output));
    response.set("usage", usage(answer.usage.unwrap_or_default()));
    response
}

/// A response without output.
pub fn head(exchange: &Exchange, answer: &Answer, status: &str) -> Json {
    let mut response = object! {
        "id": id_with("resp_", &answer.id),
        "object": "response",
        "created_at": exchange.created,
        "status": status,
        "error": Json::Null,
        "incomplete_details": Json::Null,
        "model": &answer.model,
        "output": Vec::new(),
        "usage": Json::Null,
    };
    if let Json::Object(members) = &exchange.echo {
        for (name, value) in members {
            response.set(name, value);
        }
    }
    response
}

/// The error of a response. Its codes are a closed list.
pub fn error(failure: &Failure) -> Json {
    let code = match failure.status {
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_exceeded",
        StatusCode::BAD_REQUEST => "invalid_prompt",
        _ => "server_error",
    };
    object! { "code": code, "message": &failure.message }
}

fn usage(usage: Usage) -> Json {
    object! {
        "input_tokens": usage.input,
        "input_tokens_details": object! { "cached_tokens": usage.cached },
        "output_tokens": usage.output,
        "output_tokens_details": object! { "reasoning_tokens": usage.reasoning },
        "total_tokens": usage.input.saturating_add(usage.output),
    }
}

/// The id of the item at that place.
pub fn item_id(stem: &str, at: usize, part: &AnswerPart) -> String {
    let prefix = match part {
        AnswerPart::Text(_) | AnswerPart::Refusal(_) => "msg",
        AnswerPart::Reasoning(_) => "rs",
        AnswerPart::Call { .. } => "fc",
    };
    format!("{prefix}_{stem}_{at}")
}

/// The item that a part of an answer is.
pub fn item(exchange: &Exchange, stem: &str, at: usize, part: &AnswerPart, status: &str) -> Json {
    let id = item_id(stem, at, part);
    match part {
        AnswerPart::Text(_) | AnswerPart::Refusal(_) => {
            let content = content(part).into_iter().collect::<Json>();
            object! { "id": id, "type": "message", "status": status, "role": "assistant", "content": content }
        }
        AnswerPart::Reasoning(_) => {
            object! { "id": id, "type": "reasoning", "summary": content(part).into_iter().collect::<Json>() }
        }
        AnswerPart::Call { id: call_id, name, arguments, .. } if exchange.is_freeform(name) => object! {
            "id": id, "type": "custom_tool_call", "status": status, "call_id": call_id, "name": name, "input": arguments,
        },
        AnswerPart::Call { id: call_id, name, arguments, .. } => object! {
            "id": id, "type": "function_call", "status": status, "call_id": call_id, "name": name, "arguments": arguments,
        },
    }
}

/// What is in an item of text, refusal or reasoning.
pub fn content(part: &AnswerPart) -> Option<Json> {
    match part {
        AnswerPart::Text(text) => {
            Some(object! { "type": "output_text", "text": text, "annotations": Vec::new(), "logprobs": Vec::new() })
        }
        AnswerPart::Refusal(text) => Some(object! { "type": "refusal", "refusal": text }),
        AnswerPart::Reasoning(text) => Some(object! { "type": "summary_text", "text": text }),
        AnswerPart::Call { .. } => None,
    }
}
