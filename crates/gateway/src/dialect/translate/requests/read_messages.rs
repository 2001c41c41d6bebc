//! Reads requests in messages.

use super::super::conversation::{Format, Part, Request, Role, Source, Tool, ToolChoice};
use super::super::exchange::Untranslatable;
use super::{drop_hosted, required, whole_number};
use crate::dialect::json::Json;

/// What asks for something that no other dialect has.
const REFUSED: [(&str, &str); 2] =
    [("mcp_servers", "connect to them from the session"), ("container", "run code in the session")];

/// Reads a request. `thinking` and `output_config.effort` are not passed on: which models take what differs too much between providers.
///
/// # Errors
/// If it says what no other dialect can.
pub fn read(body: &Json) -> Result<Request, Untranslatable> {
    Request::refuse(body, &REFUSED)?;
    let mut request = Request {
        max_tokens: whole_number(body, "max_tokens")?,
        temperature: body.some("temperature").cloned(),
        top_p: body.some("top_p").cloned(),
        stop: body.list("stop_sequences").iter().filter_map(Json::as_text).map(str::to_owned).collect(),
        is_streaming: body.flag("stream") == Some(true),
        is_usage_asked: true,
        ..Request::default()
    };
    let format = body.get("output_config").some("format").or(body.some("output_format"));
    request.format = format.map(read_format).transpose()?;
    for (at, tool) in drop_hosted(body.list("tools"), is_hosted)? {
        request.tools.push(read_tool(tool, &format!("tools[{at}]"))?);
    }
    read_tool_choice(body.get("tool_choice"), &mut request)?;
    let system = read_content(body.get("system"), "system")?;
    if !system.is_empty() {
        request.say(Role::System, system);
    }
    for (at, message) in body.list("messages").iter().enumerate() {
        let path = format!("messages[{at}]");
        let role = match message.text("role") {
            Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            Some("system") => Role::System,
            _ => return Err(Untranslatable::new(format!("{path}.role"), "it is to be `user` or `assistant`")),
        };
        request.say(role, read_content(message.get("content"), &format!("{path}.content"))?);
    }
    Ok(request)
}

fn read_format(format: &Json) -> Result<Format, Untranslatable> {
    if format.text("type") != Some("json_schema") {
        return Err(Untranslatable::new("output_config.format", "it is to be of type `json_schema`"));
    }
    let schema = format.get("schema").clone();
    Ok(Format::Schema { name: None, description: None, schema, is_strict: None })
}

/// Tools that the provider runs itself.
fn is_hosted(kind: &str) -> bool {
    let beginnings = ["web_search_", "web_fetch_", "code_execution_", "tool_search_tool_", "mcp_toolset", "advisor_"];
    beginnings.iter().any(|beginning| kind.starts_with(beginning))
}

fn read_tool(tool: &Json, path: &str) -> Result<Tool, Untranslatable> {
    if let Some(kind) = tool.text("type").filter(|&kind| kind != "custom") {
        let reason =
            format!("models of other providers don't know `{kind}`: describe it as a tool with an `input_schema`");
        return Err(Untranslatable::new(path, reason));
    }
    Ok(Tool {
        name: required(tool, "name", path)?.to_owned(),
        description: tool.text("description").map(str::to_owned),
        schema: tool.some("input_schema").cloned(),
        is_strict: tool.flag("strict"),
        is_freeform: false,
    })
}

fn read_tool_choice(choice: &Json, request: &mut Request) -> Result<(), Untranslatable> {
    request.is_parallel = choice.flag("disable_parallel_tool_use").filter(|&is_disabled| is_disabled).map(|_| false);
    request.tool_choice = match choice.text("type") {
        None => None,
        Some("auto") => Some(ToolChoice::Auto),
        Some("any") => Some(ToolChoice::Required),
        Some("none") => Some(ToolChoice::None),
        Some("tool") => Some(ToolChoice::Tool(required(choice, "name", "tool_choice")?.to_owned())),
        Some(_) => return Err(Untranslatable::new("tool_choice", "it is to be `auto`, `any`, `tool` or `none`")),
    };
    if let Some(ToolChoice::Tool(name)) = &request.tool_choice
        && !request.tools.iter().any(|tool| tool.name == *name)
    {
        return Err(Untranslatable::new(
            "tool_choice",
            format!("`{name}` is none of the tools that this provider can have"),
        ));
    }
    Ok(())
}

fn read_content(content: &Json, path: &str) -> Result<Vec<Part>, Untranslatable> {
    let blocks = match content {
        Json::Null => return Ok(Vec::new()),
        Json::Text(text) => return Ok(vec![Part::Text(text.clone())]),
        Json::List(blocks) => blocks,
        _ => return Err(Untranslatable::new(path, "it is to be a string or a list of blocks")),
    };
    let mut parts = Vec::with_capacity(blocks.len());
    for (at, block) in blocks.iter().enumerate() {
        parts.extend(read_block(block, &format!("{path}[{at}]"))?);
    }
    Ok(parts)
}

fn read_block(block: &Json, path: &str) -> Result<Option<Part>, Untranslatable> {
    Ok(Some(match block.text_or_empty("type") {
        "text" => Part::Text(block.text_or_empty("text").to_owned()),
        "image" => Part::Image(read_source(block.get("source"), path)?, None),
        "document" if block.get("source").text("type") == Some("text") => {
            Part::Text(block.get("source").text_or_empty("data").to_owned())
        }
        "document" => Part::File(read_source(block.get("source"), path)?, block.text("title").map(str::to_owned)),
        "tool_use" => {
            let input = block.get("input");
            Part::Call {
                id: required(block, "id", path)?.to_owned(),
                name: required(block, "name", path)?.to_owned(),
                arguments: if input.is_null() { "{}".to_owned() } else { input.to_string() },
            }
        }
        "tool_result" => Part::Result {
            id: required(block, "tool_use_id", path)?.to_owned(),
            parts: read_content(block.get("content"), &format!("{path}.content"))?,
            is_error: block.flag("is_error") == Some(true),
        },
        "search_result" => {
            let texts: Vec<&str> = block.list("content").iter().filter_map(|part| part.text("text")).collect();
            let (title, source) = (block.text_or_empty("title"), block.text_or_empty("source"));
            Part::Text(format!("{title}\n{source}\n{}", texts.join("\n")))
        }
        "tool_reference" => Part::Text(block.text_or_empty("tool_name").to_owned()),
        // What a provider reasoned or ran itself in earlier turns, which another can't read.
        "thinking" | "redacted_thinking" | "server_tool_use" => return Ok(None),
        kind if kind.ends_with("_tool_result") => return Ok(None),
        kind => {
            return Err(Untranslatable::new(path, format!("blocks of type `{kind}` are for one provider only")));
        }
    }))
}

fn read_source(source: &Json, path: &str) -> Result<Source, Untranslatable> {
    match source.text("type") {
        Some("base64") => {
            let (media_type, data) = (source.text_or_empty("media_type"), source.text_or_empty("data"));
            Ok(Source::Data { media_type: media_type.to_owned(), data: data.to_owned() })
        }
        Some("url") => Ok(Source::Url(source.text_or_empty("url").to_owned())),
        _ => Err(Untranslatable::new(format!("{path}.source"), "send the content itself in base64, or its URL")),
    }
}
