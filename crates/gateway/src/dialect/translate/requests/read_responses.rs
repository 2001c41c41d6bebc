//! Reads requests in responses.

use super::super::conversation::{Part, Request, Role};
use super::super::exchange::Untranslatable;
use super::{drop_hosted, openai, required, whole_number};
use crate::dialect::json::Json;

/// What asks for something that no other dialect has.
const REFUSED: [(&str, &str); 4] = [
    ("previous_response_id", "send the whole conversation in `input`"),
    ("conversation", "send the whole conversation in `input`"),
    ("prompt", "send the instructions themselves"),
    ("background", "leave it out"),
];

/// Reads a request.
///
/// # Errors
/// If it says what no other dialect can.
pub fn read(body: &Json) -> Result<Request, Untranslatable> {
    Request::refuse(body, &REFUSED)?;
    let mut request = Request::default();
    openai::read_common(body, &mut request)?;
    request.max_tokens = whole_number(body, "max_output_tokens")?;
    request.format = openai::read_format(body.get("text").get("format"), "text.format")?;
    request.verbosity = body.get("text").text("verbosity").map(str::to_owned);
    request.effort = body.get("reasoning").text("effort").map(str::to_owned);
    for (at, tool) in drop_hosted(body.list("tools"), is_hosted)? {
        let path = format!("tools[{at}]");
        request.tools.push(match tool.text("type") {
            None | Some("function") => openai::read_function(tool, &path)?,
            Some("custom") => openai::read_custom(tool, &path)?,
            Some(_) => return Err(Untranslatable::new(path, "use a function")),
        });
    }
    openai::read_tool_choice(body, &mut request)?;
    if let Some(text) = body.text("instructions") {
        request.say(Role::System, vec![Part::Text(text.to_owned())]);
    }
    match body.get("input") {
        Json::Text(text) => request.say(Role::User, vec![Part::Text(text.clone())]),
        Json::List(items) => {
            for (at, item) in items.iter().enumerate() {
                read_item(item, &format!("input[{at}]"), &mut request)?;
            }
        }
        _ => return Err(Untranslatable::new("input", "it is to be a string or a list of items")),
    }
    Ok(request)
}

/// Tools that the provider runs itself.
fn is_hosted(kind: &str) -> bool {
    let beginnings = ["web_search", "file_search", "code_interpreter", "image_generation", "tool_search"];
    kind == "mcp" || beginnings.iter().any(|beginning| kind.starts_with(beginning))
}

fn read_item(item: &Json, path: &str, request: &mut Request) -> Result<(), Untranslatable> {
    match item.text("type").unwrap_or("message") {
        "message" => {
            let role = match item.text("role") {
                Some("system" | "developer") => Role::System,
                Some("user") => Role::User,
                Some("assistant") => Role::Assistant,
                _ => {
                    let reason = "it is to be `system`, `developer`, `user` or `assistant`";
                    return Err(Untranslatable::new(format!("{path}.role"), reason));
                }
            };
            request.say(role, read_content(item.get("content"), &format!("{path}.content"))?);
        }
        kind @ ("function_call" | "custom_tool_call") => {
            let id = required(item, "call_id", path)?.to_owned();
            let name = required(item, "name", path)?.to_owned();
            let arguments = match kind {
                "function_call" => item.text_or_empty("arguments").to_owned(),
                _ => openai::custom_arguments(item.text_or_empty("input")),
            };
            request.say(Role::Assistant, vec![Part::Call { id, name, arguments }]);
        }
        "function_call_output" | "custom_tool_call_output" => {
            let id = required(item, "call_id", path)?.to_owned();
            let parts = read_content(item.get("output"), &format!("{path}.output"))?;
            request.say(Role::User, vec![Part::Result { id, parts, is_error: false }]);
        }
        // What a provider reasoned or ran itself in earlier turns, which another can't read.
        "reasoning"
        | "web_search_call"
        | "file_search_call"
        | "code_interpreter_call"
        | "image_generation_call"
        | "mcp_list_tools" => {}
        kind => return Err(Untranslatable::new(path, format!("items of type `{kind}` are for one provider only"))),
    }
    Ok(())
}

fn read_content(content: &Json, path: &str) -> Result<Vec<Part>, Untranslatable> {
    let parts = match content {
        Json::Null => return Ok(Vec::new()),
        Json::Text(text) => return Ok(vec![Part::Text(text.clone())]),
        Json::List(parts) => parts,
        _ => return Err(Untranslatable::new(path, "it is to be a string or a list of parts")),
    };
    let read = |(at, part): (usize, &Json)| {
        let path = format!("{path}[{at}]");
        match part.text("type") {
            Some("input_text" | "output_text" | "text") => Ok(Part::Text(part.text_or_empty("text").to_owned())),
            Some("refusal") => Ok(Part::Text(part.text_or_empty("refusal").to_owned())),
            Some("input_image") => openai::read_image(part.text("image_url"), part.text("detail"), &path),
            Some("input_file") => openai::read_file(part, &path),
            _ => Err(Untranslatable::new(path, "it is to be of type `input_text`, `input_image` or `input_file`")),
        }
    };
    parts.iter().enumerate().map(read).collect()
}
