//! Reads requests in chat completions.

use super::super::conversation::{Part, Request, Role};
use super::super::exchange::Untranslatable;
use super::{openai, required, whole_number};
use crate::dialect::json::Json;

/// What asks for something that no other dialect has.
const REFUSED: [(&str, &str); 7] = [
    ("functions", "use `tools`"),
    ("function_call", "use `tool_choice`"),
    ("audio", "ask for text"),
    ("web_search_options", "leave it out"),
    ("logprobs", "leave it out"),
    ("logit_bias", "leave it out"),
    ("moderation", "leave it out"),
];

/// Reads a request.
///
/// # Errors
/// If it says what no other dialect can.
pub fn read(body: &Json) -> Result<Request, Untranslatable> {
    Request::refuse(body, &REFUSED)?;
    if whole_number(body, "n")?.is_some_and(|number| number > 1) {
        return Err(Untranslatable::new("n", "ask for one answer at a time"));
    }
    if body.list("modalities").iter().any(|modality| modality.as_text() != Some("text")) {
        return Err(Untranslatable::new("modalities", "ask for text"));
    }
    let mut request = Request::default();
    openai::read_common(body, &mut request)?;
    request.max_tokens = whole_number(body, "max_completion_tokens")?.or(whole_number(body, "max_tokens")?);
    request.stop = match body.get("stop") {
        Json::Text(text) => vec![text.clone()],
        list => list.as_list().unwrap_or_default().iter().filter_map(Json::as_text).map(str::to_owned).collect(),
    };
    request.is_usage_asked = body.get("stream_options").flag("include_usage") == Some(true);
    request.format = openai::read_format(body.get("response_format"), "response_format")?;
    request.effort = body.text("reasoning_effort").map(str::to_owned);
    request.verbosity = body.text("verbosity").map(str::to_owned);
    for (at, tool) in body.list("tools").iter().enumerate() {
        let path = format!("tools[{at}]");
        request.tools.push(match tool.text("type") {
            None | Some("function") => openai::read_function(tool.get("function"), &format!("{path}.function"))?,
            Some("custom") => openai::read_custom(tool.get("custom"), &format!("{path}.custom"))?,
            Some(_) => return Err(Untranslatable::new(path, "use a function")),
        });
    }
    openai::read_tool_choice(body, &mut request)?;
    for (at, message) in body.list("messages").iter().enumerate() {
        read_message(message, &format!("messages[{at}]"), &mut request)?;
    }
    Ok(request)
}

fn read_message(message: &Json, path: &str, request: &mut Request) -> Result<(), Untranslatable> {
    let mut parts = read_content(message.get("content"), path)?;
    match message.text("role") {
        Some("system" | "developer") => request.say(Role::System, parts),
        Some("user") => request.say(Role::User, parts),
        Some("assistant") => {
            if !message.get("function_call").is_null() {
                return Err(Untranslatable::new(format!("{path}.function_call"), "use `tool_calls`"));
            }
            parts.extend(message.text("refusal").map(|text| Part::Text(text.to_owned())));
            for (at, call) in message.list("tool_calls").iter().enumerate() {
                parts.push(read_call(call, &format!("{path}.tool_calls[{at}]"))?);
            }
            request.say(Role::Assistant, parts);
        }
        Some("tool") => {
            let id = required(message, "tool_call_id", path)?.to_owned();
            request.say(Role::User, vec![Part::Result { id, parts, is_error: false }]);
        }
        _ => {
            let reason = "it is to be `system`, `developer`, `user`, `assistant` or `tool`";
            return Err(Untranslatable::new(format!("{path}.role"), reason));
        }
    }
    Ok(())
}

fn read_call(call: &Json, path: &str) -> Result<Part, Untranslatable> {
    let (at, arguments) = match call.some("custom") {
        Some(custom) => (custom, openai::custom_arguments(custom.text_or_empty("input"))),
        None => (call.get("function"), call.get("function").text_or_empty("arguments").to_owned()),
    };
    Ok(Part::Call {
        id: required(call, "id", path)?.to_owned(),
        name: required(at, "name", &format!("{path}.function"))?.to_owned(),
        arguments,
    })
}

fn read_content(content: &Json, path: &str) -> Result<Vec<Part>, Untranslatable> {
    let parts = match content {
        Json::Null => return Ok(Vec::new()),
        Json::Text(text) => return Ok(vec![Part::Text(text.clone())]),
        Json::List(parts) => parts,
        _ => return Err(Untranslatable::new(format!("{path}.content"), "it is to be a string or a list of parts")),
    };
    let read = |(at, part): (usize, &Json)| {
        let path = format!("{path}.content[{at}]");
        match part.text("type") {
            Some("text") => Ok(Part::Text(part.text_or_empty("text").to_owned())),
            Some("refusal") => Ok(Part::Text(part.text_or_empty("refusal").to_owned())),
            Some("image_url") => {
                let image = part.get("image_url");
                openai::read_image(image.text("url").or(image.as_text()), image.text("detail"), &path)
            }
            Some("file") => openai::read_file(part.get("file"), &path),
            _ => Err(Untranslatable::new(path, "it is to be of type `text`, `image_url` or `file`")),
        }
    };
    parts.iter().enumerate().map(read).collect()
}
