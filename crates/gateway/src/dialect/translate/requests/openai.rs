//! What requests in chat completions and in responses have in common.

use super::super::conversation::{FREEFORM_ARGUMENT, Format, Part, Request, Source, Tool, ToolChoice};
use super::super::exchange::Untranslatable;
use super::{required, whole_number};
use crate::dialect::json::{Json, object};

/// Members with one meaning in both.
const SHARED: [&str; 4] = ["user", "prompt_cache_key", "safety_identifier", "service_tier"];

/// Reads members that have the same name in both.
pub fn read_common(body: &Json, request: &mut Request) -> Result<(), Untranslatable> {
    request.temperature = body.some("temperature").cloned();
    request.top_p = body.some("top_p").cloned();
    request.is_streaming = body.flag("stream") == Some(true);
    request.is_parallel = body.flag("parallel_tool_calls");
    request.shared = SHARED.iter().filter_map(|&name| Some((name, body.some(name)?.clone()))).collect();
    if whole_number(body, "top_logprobs")?.is_some_and(|number| number > 0) {
        return Err(Untranslatable::new("top_logprobs", "leave it out"));
    }
    Ok(())
}

/// Writes members that have the same name in both.
pub fn write_common(request: &Request, out: &mut Json) {
    out.set_some("temperature", request.temperature.as_ref());
    out.set_some("top_p", request.top_p.as_ref());
    if request.is_streaming {
        out.set("stream", true);
    }
    if !request.tools.is_empty() {
        out.set_some("parallel_tool_calls", request.is_parallel);
    }
    for (name, value) in &request.shared {
        out.set(name, value);
    }
}

/// Reads a function: the members of a tool in responses, those below `function` in chat completions.
pub fn read_function(function: &Json, path: &str) -> Result<Tool, Untranslatable> {
    Ok(Tool {
        name: required(function, "name", path)?.to_owned(),
        description: function.text("description").map(str::to_owned),
        schema: function.some("parameters").cloned(),
        is_strict: function.flag("strict"),
        is_freeform: false,
    })
}

/// Reads a custom tool, which takes plain text: for other models it is a function with one argument.
pub fn read_custom(custom: &Json, path: &str) -> Result<Tool, Untranslatable> {
    let format = custom.get("format");
    let grammar = format.some("grammar").unwrap_or(format);
    let mut description = custom.text_or_empty("description").to_owned();
    if let Some(definition) = grammar.text("definition") {
        let syntax = grammar.text_or_empty("syntax");
        description.push_str(&format!("\n\n`{FREEFORM_ARGUMENT}` keeps to this {syntax} grammar:\n{definition}"));
    }
    let input = object! { "type": "string", "description": "The whole input of the tool, as plain text." };
    let properties = Json::Object(vec![(FREEFORM_ARGUMENT.to_owned(), input)]);
    Ok(Tool {
        name: required(custom, "name", path)?.to_owned(),
        description: Some(description),
        schema: Some(
            object! { "type": "object", "properties": properties, "required": vec![FREEFORM_ARGUMENT.into()] },
        ),
        is_strict: None,
        is_freeform: true,
    })
}

/// The arguments that plain text becomes.
pub fn custom_arguments(input: &str) -> String {
    Json::Object(vec![(FREEFORM_ARGUMENT.to_owned(), input.into())]).to_string()
}

/// Writes a function.
pub fn write_function(tool: &Tool, out: &mut Json) {
    out.set("name", &tool.name);
    out.set_some("description", tool.description.as_ref());
    let empty = || object! { "type": "object", "properties": Json::Object(Vec::new()) };
    out.set("parameters", tool.schema.clone().unwrap_or_else(empty));
}

/// Reads which tools may be called. A choice of a few tools is read as no other tools being there.
pub fn read_tool_choice(body: &Json, request: &mut Request) -> Result<(), Untranslatable> {
    let choice = body.get("tool_choice");
    let mode = |mode: &str| match mode {
        "none" => Ok(ToolChoice::None),
        "auto" => Ok(ToolChoice::Auto),
        "required" => Ok(ToolChoice::Required),
        _ => Err(Untranslatable::new("tool_choice", "it is to be `none`, `auto`, `required`, or one of the tools")),
    };
    request.tool_choice = match (choice, choice.text("type")) {
        (Json::Null, _) => None,
        (Json::Text(text), _) => Some(mode(text)?),
        (_, Some("function" | "custom")) => {
            let at = choice.some("function").or(choice.some("custom")).unwrap_or(choice);
            Some(ToolChoice::Tool(required(at, "name", "tool_choice")?.to_owned()))
        }
        (_, Some("allowed_tools")) => {
            let allowed = choice.some("allowed_tools").unwrap_or(choice);
            let name = |tool: &Json| {
                let at = tool.some("function").or(tool.some("custom")).unwrap_or(tool);
                at.text("name").map(str::to_owned)
            };
            let names: Vec<String> = allowed.list("tools").iter().filter_map(name).collect();
            request.keep_tools(&names.iter().map(String::as_str).collect::<Vec<_>>());
            Some(mode(allowed.text("mode").unwrap_or("auto"))?)
        }
        _ => return Err(Untranslatable::new("tool_choice", "only functions and custom tools can be chosen")),
    };
    Ok(())
}

/// Reads a format: `response_format` in chat completions, with the schema below `json_schema`; `text.format` in responses.
pub fn read_format(format: &Json, path: &str) -> Result<Option<Format>, Untranslatable> {
    match format.text("type") {
        None | Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Format::JsonObject)),
        Some("json_schema") => {
            let at = format.some("json_schema").unwrap_or(format);
            Ok(Some(Format::Schema {
                name: at.text("name").map(str::to_owned),
                description: at.text("description").map(str::to_owned),
                schema: at.get("schema").clone(),
                is_strict: at.flag("strict"),
            }))
        }
        Some(_) => Err(Untranslatable::new(path, "it is to be `text`, `json_object` or `json_schema`")),
    }
}

/// Writes the members of a format with a schema.
pub fn write_schema(format: &Format, out: &mut Json) {
    if let Format::Schema { name, description, schema, is_strict } = format {
        out.set("name", name.as_deref().unwrap_or("answer"));
        out.set_some("description", description.as_ref());
        out.set("schema", schema);
        out.set_some("strict", *is_strict);
    }
}

/// Reads the image that a URL, or a `data:` URL, is.
pub fn read_image(url: Option<&str>, detail: Option<&str>, path: &str) -> Result<Part, Untranslatable> {
    let url = url.ok_or_else(|| Untranslatable::new(path, "send the image itself, or its URL"))?;
    // Without a word about it, the detail is `auto`.
    let detail = detail.filter(|&detail| detail != "auto");
    Ok(Part::Image(Source::from_url(url), detail.map(str::to_owned)))
}

/// Reads a file that is sent itself.
pub fn read_file(file: &Json, path: &str) -> Result<Part, Untranslatable> {
    let source = file.text("file_data").or(file.text("file_url")).map(Source::from_url);
    let source = source.ok_or_else(|| Untranslatable::new(path, "send the file itself in `file_data`"))?;
    Ok(Part::File(source, file.text("filename").map(str::to_owned)))
}
