//! What events say, for people.

use raworc_api::event::Event;
use serde_json::Value;

use crate::text::{brief, clean};

/// Characters of a tool's input that are shown.
const INPUT_CHARACTERS_MAX: usize = 72;

/// A text field of an event's data.
pub fn text_of<'a>(event: &'a Event, key: &str) -> &'a str {
    event.data.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// A call of a tool, in one line.
pub fn tool_call(event: &Event) -> String {
    let input = match event.data.get("input") {
        // What a tool is mostly about says enough.
        Some(Value::Object(input)) => ["command", "path", "pattern"].iter().find_map(|name| input.get(*name)?.as_str()),
        Some(Value::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let input = brief(input.unwrap_or_default(), INPUT_CHARACTERS_MAX);
    format!("● {} {input}", clean(text_of(event, "tool"))).trim_end().to_owned()
}
