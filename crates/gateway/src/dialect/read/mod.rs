//! Reads answers: one file for each dialect.
//!
//! Readers take what providers were seen to send, not only what is documented: calls without a number, arguments that come at once at
//! the end, a stream without its last event. They never fail on a byte; what can't be read is a [`Delta::Failed`].

mod chat;
mod gemini;
mod messages;
mod responses;

use super::Dialect;
use super::json::Json;
use super::neutral::{Delta, Failure, ReadStream};

/// Reads the streams of a dialect.
#[must_use]
pub fn stream(dialect: Dialect) -> Box<dyn ReadStream> {
    match dialect {
        Dialect::ChatCompletions => Box::new(chat::Stream::default()),
        Dialect::Responses => Box::new(responses::Stream::default()),
        Dialect::Messages => Box::new(messages::Stream::default()),
        Dialect::Gemini => Box::new(gemini::Stream::default()),
    }
}

/// Reads a whole answer.
pub fn answer(dialect: Dialect, body: &[u8], out: &mut Vec<Delta>) {
    let Ok(body) = Json::read(body) else {
        out.push(Delta::Failed(Failure::bad_answer("the provider's answer is no JSON")));
        return;
    };
    match dialect {
        _ if !body.is_object() && (dialect != Dialect::Gemini || body.as_list().is_none()) => {
            out.push(Delta::Failed(Failure::bad_answer("the provider's answer is no JSON object")));
        }
        Dialect::ChatCompletions => chat::answer(&body, out),
        Dialect::Responses => responses::answer(&body, out),
        Dialect::Messages => messages::answer(&body, out),
        Dialect::Gemini => gemini::answer(&body, out),
    }
}

/// Pushes text, but never an empty piece of it.
fn push_text(out: &mut Vec<Delta>, delta: fn(String) -> Delta, text: Option<&str>) {
    if let Some(text) = text.filter(|text| !text.is_empty()) {
        out.push(delta(text.to_owned()));
    }
}

/// The JSON of an event's data.
fn event_json(data: &str, out: &mut Vec<Delta>) -> Option<Json> {
    match Json::read(data.as_bytes()) {
        Ok(body) if body.is_object() => Some(body),
        _ => {
            out.push(Delta::Failed(Failure::bad_answer("the provider sent an event that is no JSON object")));
            None
        }
    }
}
