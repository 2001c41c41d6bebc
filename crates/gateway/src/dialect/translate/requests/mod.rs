//! Reads and writes requests: for each dialect a reader and a writer.

mod openai;
mod read_chat;
mod read_messages;
mod read_responses;
mod write_chat;
mod write_messages;
mod write_responses;

use super::conversation::Request;
use super::exchange::Untranslatable;
use crate::dialect::Dialect;
use crate::dialect::json::Json;

pub use write_messages::input;

/// Reads a request of that dialect.
///
/// # Errors
/// If it says what no other dialect can.
pub fn read(dialect: Dialect, body: &Json) -> Result<Request, Untranslatable> {
    match dialect {
        Dialect::ChatCompletions => read_chat::read(body),
        Dialect::Responses => read_responses::read(body),
        Dialect::Messages => read_messages::read(body),
        Dialect::Gemini => Err(gemini()),
    }
}

/// Writes a request in that dialect.
///
/// # Errors
/// If the dialect can't say it.
pub fn write(
    dialect: Dialect,
    request: &Request,
    model: &str,
    max_output_tokens: Option<u64>,
) -> Result<Json, Untranslatable> {
    match dialect {
        Dialect::ChatCompletions => write_chat::write(request, model),
        Dialect::Responses => write_responses::write(request, model),
        Dialect::Messages => Ok(write_messages::write(request, model, max_output_tokens)),
        Dialect::Gemini => Err(gemini()),
    }
}

fn gemini() -> Untranslatable {
    Untranslatable::new(
        "generateContent",
        "Gemini's API is spoken with providers of kind `gemini` only, and only it with those",
    )
}

/// A whole number of a request.
fn whole_number(body: &Json, name: &str) -> Result<Option<u64>, Untranslatable> {
    match body.some(name) {
        None => Ok(None),
        Some(_) => {
            let number = body.number(name).map(Some);
            number.ok_or_else(|| Untranslatable::new(name, "it is to be a whole number that is not negative"))
        }
    }
}

/// The text of a member that has to be there.
fn required<'a>(at: &'a Json, name: &str, path: &str) -> Result<&'a str, Untranslatable> {
    at.text(name).ok_or_else(|| Untranslatable::new(format!("{path}.{name}"), "it is to be a string"))
}

/// Drops the tools that a provider would run itself, as long as others are left: an offer of which the model makes no use. Where they are
/// all that is offered, the request is about them.
fn drop_hosted(
    tools: &[Json],
    is_hosted: impl Fn(&str) -> bool,
) -> Result<impl Iterator<Item = (usize, &Json)>, Untranslatable> {
    let is_hosted = move |tool: &Json| tool.text("type").is_some_and(&is_hosted);
    if let Some(tool) = tools.first().filter(|_| tools.iter().all(&is_hosted)) {
        let kind = tool.text_or_empty("type");
        return Err(Untranslatable::new(
            "tools",
            format!("`{kind}` is run by the provider, and this one does not have it"),
        ));
    }
    Ok(tools.iter().enumerate().filter(move |(_, tool)| !is_hosted(tool)))
}
