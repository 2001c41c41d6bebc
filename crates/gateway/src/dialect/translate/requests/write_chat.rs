//! Writes requests in chat completions.

use super::super::conversation::{Format, Part, Request, Role, Source, ToolChoice, Turn, texts};
use super::super::exchange::Untranslatable;
use super::openai;
use crate::dialect::json::{Json, object};

/// Writes a request.
///
/// # Errors
/// If it has what chat completions don't.
pub fn write(request: &Request, model: &str) -> Result<Json, Untranslatable> {
    let mut messages = Vec::new();
    for turn in &request.turns {
        write_turn(turn, &mut messages)?;
    }
    let mut out = object! { "model": model, "messages": messages };
    // The older `max_tokens` is refused by models that reason.
    out.set_some("max_completion_tokens", request.max_tokens);
    openai::write_common(request, &mut out);
    if request.is_streaming {
        out.set("stream_options", object! { "include_usage": true });
    }
    if !request.stop.is_empty() {
        out.set("stop", request.stop.iter().map(Json::from).collect::<Json>());
    }
    out.set_some("reasoning_effort", request.effort.as_ref());
    out.set_some("verbosity", request.verbosity.as_ref());
    out.set_some("response_format", request.format.as_ref().map(write_format));
    if !request.tools.is_empty() {
        let write = |tool| {
            let mut function = object! {};
            openai::write_function(tool, &mut function);
            function.set_some("strict", tool.is_strict);
            object! { "type": "function", "function": function }
        };
        out.set("tools", request.tools.iter().map(write).collect::<Json>());
        out.set_some("tool_choice", request.tool_choice.as_ref().map(write_tool_choice));
    }
    Ok(out)
}

fn write_format(format: &Format) -> Json {
    match format {
        Format::JsonObject => object! { "type": "json_object" },
        Format::Schema { .. } => {
            let mut schema = object! {};
            openai::write_schema(format, &mut schema);
            object! { "type": "json_schema", "json_schema": schema }
        }
    }
}

fn write_tool_choice(choice: &ToolChoice) -> Json {
    match choice {
        ToolChoice::None => "none".into(),
        ToolChoice::Auto => "auto".into(),
        ToolChoice::Required => "required".into(),
        ToolChoice::Tool(name) => object! { "type": "function", "function": object! { "name": name } },
    }
}

fn write_turn(turn: &Turn, out: &mut Vec<Json>) -> Result<(), Untranslatable> {
    match turn.role {
        Role::System => out.push(object! { "role": "system", "content": texts(&turn.parts).join("\n\n") }),
        Role::Assistant => out.push(write_assistant(&turn.parts)),
        Role::User => write_user(&turn.parts, out)?,
    }
    Ok(())
}

fn write_assistant(parts: &[Part]) -> Json {
    let mut calls = Vec::new();
    for part in parts {
        if let Part::Call { id, name, arguments } = part {
            let arguments = if arguments.is_empty() { "{}" } else { arguments };
            let function = object! { "name": name, "arguments": arguments };
            calls.push(object! { "id": id, "type": "function", "function": function });
        }
    }
    let content = match texts(parts).as_slice() {
        [] if calls.is_empty() => "".into(),
        [] => Json::Null,
        [text] => Json::from(*text),
        texts => texts.iter().map(|&text| object! { "type": "text", "text": text }).collect(),
    };
    let mut message = object! { "role": "assistant", "content": content };
    if !calls.is_empty() {
        message.set("tool_calls", calls);
    }
    message
}

/// Results come first: they have to follow their calls at once. Images in them move to a message behind: a result has only text here.
fn write_user(parts: &[Part], out: &mut Vec<Json>) -> Result<(), Untranslatable> {
    let mut rest = Vec::new();
    for part in parts {
        if let Part::Result { id, parts, is_error } = part {
            let (texts, others): (Vec<&Part>, Vec<&Part>) =
                parts.iter().partition(|part| matches!(part, Part::Text(_)));
            let mut texts: Vec<String> = texts.into_iter().filter_map(text_of).collect();
            if *is_error && !begins_as_error(&texts) {
                texts.insert(0, "Error:".to_owned());
            }
            if !others.is_empty() {
                texts.push("(What else the tool gave is in the next message of the user.)".to_owned());
                rest.push(object! { "type": "text", "text": format!("From the tool call {id}:") });
                for part in others {
                    rest.push(write_part(part)?);
                }
            }
            let content = match texts.as_slice() {
                [] => "".into(),
                [text] => Json::from(text),
                texts => texts.iter().map(|text| object! { "type": "text", "text": text }).collect(),
            };
            out.push(object! { "role": "tool", "tool_call_id": id, "content": content });
        }
    }
    let said: Vec<&Part> = parts.iter().filter(|part| !matches!(part, Part::Result { .. })).collect();
    if let ([Part::Text(text)], true) = (said.as_slice(), rest.is_empty()) {
        out.push(object! { "role": "user", "content": text });
        return Ok(());
    }
    for part in said {
        rest.push(write_part(part)?);
    }
    if !rest.is_empty() {
        out.push(object! { "role": "user", "content": rest });
    }
    Ok(())
}

fn text_of(part: &Part) -> Option<String> {
    match part {
        Part::Text(text) => Some(text.clone()),
        _ => None,
    }
}

/// Whether texts say themselves that they are an error.
pub fn begins_as_error(texts: &[String]) -> bool {
    let first = texts.first().map(|text| text.trim_start().to_lowercase());
    first.is_some_and(|text| text.starts_with("error") || text.starts_with("<tool_use_error"))
}

fn write_part(part: &Part) -> Result<Json, Untranslatable> {
    Ok(match part {
        Part::Text(text) => object! { "type": "text", "text": text },
        Part::Image(source, detail) => {
            let mut image = object! { "url": source.to_url() };
            image.set_some("detail", detail.as_ref());
            object! { "type": "image_url", "image_url": image }
        }
        Part::File(source @ Source::Data { .. }, name) => {
            let name = name.as_deref().unwrap_or("document");
            object! { "type": "file", "file": object! { "filename": name, "file_data": source.to_url() } }
        }
        Part::File(Source::Url(_), _) => {
            return Err(Untranslatable::new("document", "send the document itself, not its URL"));
        }
        Part::Call { .. } | Part::Result { .. } => {
            return Err(Untranslatable::new("content", "a call belongs to the assistant, and a result to the user"));
        }
    })
}
