//! What a request says, as recordings match it.

use std::fmt;

use serde_json::Value;

/// Characters of a text that an error quotes.
const QUOTED_CHARACTERS_MAX: usize = 200;
/// Names of tools that an error quotes.
const QUOTED_TOOLS_MAX: usize = 16;

/// A request of chat completions, reduced to its texts.
#[derive(Debug, Default)]
pub struct Asked {
    /// The user's texts.
    pub user: Vec<String>,
    /// The results of tools.
    pub results: Vec<String>,
    /// All texts, instructions among them.
    pub texts: Vec<String>,
    /// The names of the tools that are offered.
    pub tools: Vec<String>,
    /// Whether a stream is to end with its usage.
    pub wants_usage: bool,
    /// The length of the request.
    pub bytes: usize,
}

impl Asked {
    /// Reads a request; what is unknown in it is skipped.
    pub fn read(request: &[u8]) -> Self {
        let value: Value = serde_json::from_slice(request).unwrap_or_default();
        let mut asked = Self { bytes: request.len(), ..Self::default() };
        asked.wants_usage = value["stream_options"]["include_usage"] == Value::Bool(true);
        for message in value["messages"].as_array().into_iter().flatten() {
            let text = text_of(&message["content"]);
            match message["role"].as_str() {
                Some("user") => asked.user.push(text.clone()),
                Some("tool" | "function") => asked.results.push(text.clone()),
                _ => {}
            }
            asked.texts.push(text);
        }
        let tools = value["tools"].as_array().into_iter().flatten();
        let names = tools.filter_map(|tool| tool["function"]["name"].as_str().or_else(|| tool["name"].as_str()));
        asked.tools = names.map(str::to_owned).collect();
        asked
    }

    /// The last text of the user.
    pub fn last_user(&self) -> &str {
        self.user.last().map_or("", String::as_str)
    }

    /// The last result of a tool.
    pub fn last_result(&self) -> &str {
        self.results.last().map_or("", String::as_str)
    }
}

fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts: Vec<&str> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

/// For errors: what a recording would have to match.
impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &str| text.chars().take(QUOTED_CHARACTERS_MAX).collect::<String>();
        write!(f, "user {:?} (user_texts {}), ", quoted(self.last_user()), self.user.len())?;
        write!(f, "tool_results {}", self.results.len())?;
        if !self.results.is_empty() {
            write!(f, " (the last is {:?})", quoted(self.last_result()))?;
        }
        let named: Vec<String> = self.tools.iter().take(QUOTED_TOOLS_MAX).map(|name| quoted(name)).collect();
        write!(f, ", tools {named:?}")
    }
}
