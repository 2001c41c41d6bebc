//! Writes requests in responses.

use super::super::conversation::{Format, Part, Request, Role, Source, ToolChoice, texts};
use super::super::exchange::Untranslatable;
use super::openai;
use super::write_chat::begins_as_error;
use crate::dialect::json::{Json, object};

/// Responses refuse a smaller bound of the answer.
const OUTPUT_TOKENS_MIN: u64 = 16;

/// Writes a request.
///
/// # Errors
/// If it has what responses don't.
pub fn write(request: &Request, model: &str) -> Result<Json, Untranslatable> {
    if !request.stop.is_empty() {
        return Err(Untranslatable::new("stop", "responses have no stop sequences; leave them out"));
    }
    let leading = request.turns.iter().take_while(|turn| turn.role == Role::System).count();
    let (instructions, turns) = request.turns.split_at(leading);
    let mut input = Vec::new();
    for turn in turns {
        write_turn(turn.role, &turn.parts, &mut input)?;
    }
    // The conversation stays with the program; the provider is not to keep it.
    let mut out = object! { "model": model, "input": input, "store": false };
    if !instructions.is_empty() {
        let texts: Vec<&str> = instructions.iter().flat_map(|turn| texts(&turn.parts)).collect();
        out.set("instructions", texts.join("\n\n"));
    }
    out.set_some("max_output_tokens", request.max_tokens.map(|tokens| tokens.max(OUTPUT_TOKENS_MIN)));
    openai::write_common(request, &mut out);
    out.set_some("reasoning", request.effort.as_ref().map(|effort| object! { "effort": effort }));
    let mut text = object! {};
    text.set_some("format", request.format.as_ref().map(write_format));
    text.set_some("verbosity", request.verbosity.as_ref());
    if !text.is_empty() {
        out.set("text", text);
    }
    if !request.tools.is_empty() {
        let write = |tool| {
            let mut out = object! { "type": "function" };
            openai::write_function(tool, &mut out);
            // Absent means true here, and false elsewhere.
            out.set("strict", tool.is_strict.unwrap_or(false));
            out
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
            let mut out = object! { "type": "json_schema" };
            openai::write_schema(format, &mut out);
            out
        }
    }
}

fn write_tool_choice(choice: &ToolChoice) -> Json {
    match choice {
        ToolChoice::None => "none".into(),
        ToolChoice::Auto => "auto".into(),
        ToolChoice::Required => "required".into(),
        ToolChoice::Tool(name) => object! { "type": "function", "name": name },
    }
}

fn write_turn(role: Role, parts: &[Part], out: &mut Vec<Json>) -> Result<(), Untranslatable> {
    let (role, text_type) = match role {
        Role::System => ("system", "input_text"),
        Role::User => ("user", "input_text"),
        Role::Assistant => ("assistant", "output_text"),
    };
    let mut content = Vec::new();
    let end_message = |content: &mut Vec<Json>, out: &mut Vec<Json>| {
        if !content.is_empty() {
            out.push(object! { "type": "message", "role": role, "content": std::mem::take(content) });
        }
    };
    for part in parts {
        match part {
            Part::Call { id, name, arguments } => {
                end_message(&mut content, out);
                let arguments = if arguments.is_empty() { "{}" } else { arguments };
                out.push(object! { "type": "function_call", "call_id": id, "name": name, "arguments": arguments });
            }
            Part::Result { id, parts, is_error } => {
                end_message(&mut content, out);
                let output = write_output(parts, *is_error)?;
                out.push(object! { "type": "function_call_output", "call_id": id, "output": output });
            }
            _ => content.extend(write_part(part, text_type)?),
        }
    }
    end_message(&mut content, out);
    Ok(())
}

fn write_output(parts: &[Part], is_error: bool) -> Result<Json, Untranslatable> {
    let mark = Part::Text("Error:".to_owned());
    let said: Vec<String> = texts(parts).into_iter().map(str::to_owned).collect();
    let mark = Some(&mark).filter(|_| is_error && !begins_as_error(&said));
    let parts: Vec<&Part> = mark.into_iter().chain(parts).collect();
    match parts.as_slice() {
        [] => Ok("".into()),
        [Part::Text(text)] => Ok(text.into()),
        parts => {
            let mut out = Vec::new();
            for part in parts {
                out.extend(write_part(part, "input_text")?);
            }
            Ok(out.into())
        }
    }
}

fn write_part(part: &Part, text_type: &str) -> Result<Option<Json>, Untranslatable> {
    Ok(Some(match part {
        Part::Text(text) if text.is_empty() => return Ok(None),
        Part::Text(text) => object! { "type": text_type, "text": text },
        Part::Image(source, detail) => {
            let detail = detail.as_deref().unwrap_or("auto");
            object! { "type": "input_image", "image_url": source.to_url(), "detail": detail }
        }
        Part::File(source @ Source::Data { .. }, name) => {
            let name = name.as_deref().unwrap_or("document");
            object! { "type": "input_file", "filename": name, "file_data": source.to_url() }
        }
        Part::File(Source::Url(url), _) => object! { "type": "input_file", "file_url": url },
        Part::Call { .. } | Part::Result { .. } => {
            return Err(Untranslatable::new("content", "calls and results have turns of their own"));
        }
    }))
}
