//! Writes requests in messages.

use super::super::conversation::{Format, Part, Request, Role, Source, Tool, ToolChoice, texts};
use crate::dialect::json::{Json, object};

/// Tokens of an answer where neither request nor model says how many; messages demand a bound.
const OUTPUT_TOKENS_DEFAULT: u64 = 8192;
/// The highest temperature of messages; other dialects go further.
const TEMPERATURE_MAX: f64 = 1.0;

/// Writes a request.
pub fn write(request: &Request, model: &str, max_output_tokens: Option<u64>) -> Json {
    let asked = request.max_tokens.or(max_output_tokens).unwrap_or(OUTPUT_TOKENS_DEFAULT);
    let max_tokens = asked.min(max_output_tokens.unwrap_or(u64::MAX)).max(1);
    let mut out = object! { "model": model, "max_tokens": max_tokens, "messages": write_turns(request) };
    let system = write_system(request);
    if !system.is_empty() {
        out.set("system", system);
    }
    out.set_some("temperature", request.temperature.as_ref().map(write_temperature));
    out.set_some("top_p", request.top_p.as_ref());
    if request.is_streaming {
        out.set("stream", true);
    }
    if !request.stop.is_empty() {
        out.set("stop_sequences", request.stop.iter().map(Json::from).collect::<Json>());
    }
    if let Some(Format::Schema { schema, .. }) = &request.format {
        let format = object! { "type": "json_schema", "schema": schema };
        out.set("output_config", object! { "format": format });
    }
    write_tools(request, &mut out);
    out
}

fn write_temperature(temperature: &Json) -> Json {
    match temperature {
        Json::Number(number) if number.as_f64().is_some_and(|number| number > TEMPERATURE_MAX) => 1_u64.into(),
        _ => temperature.clone(),
    }
}

/// Instructions have one place here, before the conversation, wherever they are elsewhere.
fn write_system(request: &Request) -> Json {
    let turns = request.turns.iter().filter(|turn| turn.role == Role::System);
    let mut all: Vec<&str> = turns.flat_map(|turn| texts(&turn.parts)).collect();
    if request.format == Some(Format::JsonObject) {
        all.push("Answer with a single JSON object and nothing around it.");
    }
    match all.as_slice() {
        [] => Json::Null,
        [text] => Json::from(*text),
        all => all.iter().map(|&text| object! { "type": "text", "text": text }).collect(),
    }
}

/// Messages: neighbours of one role are one of them, since all results of an answer's calls have to be in the next message.
fn write_turns(request: &Request) -> Vec<Json> {
    let mut messages: Vec<(Role, Vec<Json>)> = Vec::new();
    for turn in request.turns.iter().filter(|turn| turn.role != Role::System) {
        let blocks = turn.parts.iter().filter_map(write_part);
        match messages.last_mut() {
            Some((role, last)) if *role == turn.role => last.extend(blocks),
            _ => messages.push((turn.role, blocks.collect())),
        }
    }
    let write = |(role, mut blocks): (Role, Vec<Json>)| {
        if blocks.is_empty() {
            return None;
        }
        let role = if role == Role::Assistant {
            "assistant"
        } else {
            // Results have to be in front of everything else.
            blocks.sort_by_key(|block| block.text("type") != Some("tool_result"));
            "user"
        };
        let content = match blocks.as_slice() {
            [block] if block.text("type") == Some("text") => block.get("text").clone(),
            _ => blocks.into(),
        };
        Some(object! { "role": role, "content": content })
    };
    messages.into_iter().filter_map(write).collect()
}

/// Empty texts are left out: they are refused here.
fn write_part(part: &Part) -> Option<Json> {
    Some(match part {
        Part::Text(text) if text.is_empty() => return None,
        Part::Text(text) => object! { "type": "text", "text": text },
        Part::Image(source, _) => object! { "type": "image", "source": write_source(source) },
        Part::File(source, name) => {
            let mut block = object! { "type": "document", "source": write_source(source) };
            block.set_some("title", name.as_ref());
            block
        }
        Part::Call { id, name, arguments } => {
            object! { "type": "tool_use", "id": tool_id(id), "name": name, "input": input(arguments) }
        }
        Part::Result { id, parts, is_error } => {
            let blocks: Vec<Json> = parts.iter().filter_map(write_part).collect();
            let mut block = object! { "type": "tool_result", "tool_use_id": tool_id(id) };
            match blocks.as_slice() {
                [] => {}
                [only] if only.text("type") == Some("text") => block.set("content", only.get("text")),
                _ => block.set("content", blocks),
            }
            if *is_error {
                block.set("is_error", true);
            }
            block
        }
    })
}

fn write_source(source: &Source) -> Json {
    match source {
        Source::Url(url) => object! { "type": "url", "url": url },
        Source::Data { media_type, data } => object! { "type": "base64", "media_type": media_type, "data": data },
    }
}

/// An id with the characters that messages allow; the same id always becomes the same one.
fn tool_id(id: &str) -> String {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    id.chars().map(|c| if is_allowed(c) { c } else { '_' }).collect()
}

/// Arguments as the object that messages demand. Those of a model that wrote no JSON object are in it as they are.
pub fn input(arguments: &str) -> Json {
    match Json::read(arguments.as_bytes()) {
        Ok(input) if input.is_object() => input,
        _ if arguments.trim().is_empty() => object! {},
        _ => object! { "invalid_arguments": arguments },
    }
}

/// A conversation with calls needs tools, even where no more may be called.
fn write_tools(request: &Request, out: &mut Json) {
    let mut tools: Vec<Json> = request.tools.iter().map(write_tool).collect();
    let mut choice = request.tool_choice.clone();
    if tools.is_empty() {
        let mut names: Vec<&str> = Vec::new();
        for part in request.turns.iter().flat_map(|turn| &turn.parts) {
            if let Part::Call { name, .. } = part
                && !names.contains(&name.as_str())
            {
                names.push(name);
                tools.push(object! { "name": name, "input_schema": object! { "type": "object" } });
            }
        }
        choice = Some(ToolChoice::None);
    }
    if tools.is_empty() {
        return;
    }
    out.set("tools", tools);
    let mut written = match (&choice, request.is_parallel) {
        (None, None | Some(true)) => return,
        (None | Some(ToolChoice::Auto), _) => object! { "type": "auto" },
        (Some(ToolChoice::None), _) => object! { "type": "none" },
        (Some(ToolChoice::Required), _) => object! { "type": "any" },
        (Some(ToolChoice::Tool(name)), _) => object! { "type": "tool", "name": name },
    };
    if request.is_parallel == Some(false) && choice != Some(ToolChoice::None) {
        written.set("disable_parallel_tool_use", true);
    }
    out.set("tool_choice", written);
}

fn write_tool(tool: &Tool) -> Json {
    let mut out = object! { "name": &tool.name };
    out.set_some("description", tool.description.as_ref());
    let mut schema = tool.schema.clone().filter(Json::is_object).unwrap_or_else(|| object! {});
    if schema.text("type") != Some("object") {
        schema.set("type", "object");
    }
    out.set("input_schema", schema);
    out.set_some("strict", tool.is_strict.filter(|&is_strict| is_strict));
    out
}
