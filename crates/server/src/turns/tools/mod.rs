//! The tools of agents with a model.

mod files;
mod shell;

use std::time::Instant;

use raworc_core::events::ToolFinished;
use raworc_core::turn::{LOST_RESULT, ToolUse};
use raworc_store::sessions::SessionRow;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::app::Shared;
use crate::error::Failure;
use crate::turns::drivers::Turn;

/// Bytes of a result: of what is more, its beginning and its end.
const OUTPUT_BYTES_MAX: usize = 32 * 1024;

/// A tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    Bash,
    ReadFile,
    WriteFile,
    EditFile,
    ListFiles,
    Search,
}

const TOOLS: [Tool; 6] = [Tool::Bash, Tool::ReadFile, Tool::WriteFile, Tool::EditFile, Tool::ListFiles, Tool::Search];

/// What came of a tool call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolResult {
    /// For the model.
    pub output: String,
    /// It did not do what it was to do.
    pub is_error: bool,
}

impl ToolResult {
    fn done(output: impl Into<String>) -> Self {
        Self { output: output.into(), is_error: false }
    }

    fn failed(output: impl Into<String>) -> Self {
        Self { output: output.into(), is_error: true }
    }

    /// Nobody saw the end of a call, as its container or the server died.
    pub fn lost() -> Self {
        Self::failed(LOST_RESULT)
    }

    /// The event of its end.
    pub fn event(self, turn: &Turn, call: &ToolUse, began: Option<Instant>) -> ToolFinished {
        ToolFinished {
            call_id: call.id,
            message_id: turn.running.message,
            turn_id: turn.running.turn,
            output: bounded(self.output),
            is_error: self.is_error,
            duration_seconds: began.map(|began| began.elapsed().as_secs_f64()),
        }
    }
}

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Tool::Bash => "bash",
            Tool::ReadFile => "read_file",
            Tool::WriteFile => "write_file",
            Tool::EditFile => "edit_file",
            Tool::ListFiles => "list_files",
            Tool::Search => "search",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Tool::Bash => {
                "Runs a script with bash, in /workspace unless it changes the directory. Answers with its output and exit status. Each \
                 call is a new shell; files last, variables do not."
            }
            Tool::ReadFile => "Reads a text file of the workspace, all of it or some of its lines.",
            Tool::WriteFile => {
                "Writes a file of the workspace; directories that are missing are made, a file that is there is replaced."
            }
            Tool::EditFile => {
                "Replaces a text in a file of the workspace. The text has to be there exactly once, unless replace_all is set."
            }
            Tool::ListFiles => "Lists a directory of the workspace.",
            Tool::Search => {
                "Searches the files of the workspace for lines that match an extended regular expression (grep -E)."
            }
        }
    }

    /// The JSON Schema of its input.
    fn input(self) -> Value {
        let path = json!({ "type": "string", "description": "below /workspace" });
        let (properties, required) = match self {
            Tool::Bash => (
                json!({
                    "command": { "type": "string", "description": "the script" },
                    "timeout_seconds": { "type": "integer", "description": "1 to 3600; 120 unless said" },
                }),
                json!(["command"]),
            ),
            Tool::ReadFile => (
                json!({
                    "path": path,
                    "first_line": { "type": "integer", "description": "counted from 1" },
                    "lines": { "type": "integer", "description": "how many" },
                }),
                json!(["path"]),
            ),
            Tool::WriteFile => (json!({ "path": path, "content": { "type": "string" } }), json!(["path", "content"])),
            Tool::EditFile => (
                json!({
                    "path": path,
                    "old_text": { "type": "string" },
                    "new_text": { "type": "string" },
                    "replace_all": { "type": "boolean" },
                }),
                json!(["path", "old_text", "new_text"]),
            ),
            Tool::ListFiles => (json!({ "path": path }), json!([])),
            Tool::Search => (json!({ "pattern": { "type": "string" }, "path": path }), json!(["pattern"])),
        };
        json!({ "type": "object", "properties": properties, "required": required })
    }
}

/// The names of all tools.
pub fn names() -> impl Iterator<Item = &'static str> {
    TOOLS.iter().map(|tool| tool.name())
}

/// Those tools that an agent has, for a model; all of them where it names none.
pub fn described(wanted: Option<&[String]>) -> Vec<Value> {
    let describe = |tool: &Tool| {
        let (name, description) = (tool.name(), tool.description());
        json!({ "type": "function", "function": { "name": name, "description": description, "parameters": tool.input() } })
    };
    TOOLS.iter().filter(|tool| is_wanted(**tool, wanted)).map(describe).collect()
}

fn is_wanted(tool: Tool, wanted: Option<&[String]>) -> bool {
    wanted.is_none_or(|wanted| wanted.iter().any(|name| name == tool.name()))
}

/// What a tool works on.
pub struct Bench<'a> {
    /// The server.
    pub app: &'a Shared,
    /// The turn.
    pub turn: Turn,
    /// The session.
    pub session: &'a SessionRow,
    /// The tools of the agent.
    pub wanted: Option<&'a [String]>,
    /// Ends the tool. What it has started is ended, and its end waited for.
    pub cancelled: &'a CancellationToken,
    /// Variables of the agent.
    pub env: &'a std::collections::BTreeMap<String, String>,
}

/// Uses a tool. What a model does wrong is a result, too.
///
/// # Errors
/// Where the server fails, so that it is to be tried again.
pub async fn run(bench: &Bench<'_>, call: &ToolUse) -> Result<ToolResult, Failure> {
    let tool = TOOLS.into_iter().find(|tool| tool.name() == call.tool && is_wanted(*tool, bench.wanted));
    let Some(tool) = tool else {
        let there_are: Vec<&str> =
            names().filter(|name| bench.wanted.is_none_or(|w| w.iter().any(|n| n == name))).collect();
        return Ok(ToolResult::failed(format!(
            "there is no tool {:?}; there are: {}",
            call.tool,
            there_are.join(", ")
        )));
    };
    let input = Input(&call.input);
    if !call.input.is_object() {
        return Ok(ToolResult::failed("the arguments are not a JSON object; write them again, complete"));
    }
    let done = match tool {
        Tool::Bash => shell::bash(bench, call, &input).await,
        Tool::Search => shell::search(bench, call, &input).await,
        Tool::ReadFile => files::read(bench, &input).await,
        Tool::WriteFile => files::write(bench, &input).await,
        Tool::EditFile => files::edit(bench, &input).await,
        Tool::ListFiles => files::list(bench, &input).await,
    };
    match done {
        Ok(result) => Ok(result),
        Err(ToolError::Input(reason)) => Ok(ToolResult::failed(reason)),
        Err(ToolError::Failure(failure)) => match failure {
            // The model can do something about these.
            Failure::File(error) => Ok(ToolResult::failed(error.to_string())),
            Failure::Problem(problem) => Ok(ToolResult::failed(problem.detail)),
            failure => Err(failure),
        },
    }
}

/// Why a tool was not used.
enum ToolError {
    /// What the model asks for cannot be done; why, for the model.
    Input(String),
    /// The server fails.
    Failure(Failure),
}

impl<F: Into<Failure>> From<F> for ToolError {
    fn from(failure: F) -> Self {
        ToolError::Failure(failure.into())
    }
}

/// The arguments of a call.
struct Input<'a>(&'a Value);

impl<'a> Input<'a> {
    fn text(&self, name: &str) -> Result<&'a str, ToolError> {
        self.0[name].as_str().ok_or_else(|| ToolError::Input(format!("the argument {name:?} must be a text")))
    }

    fn optional_text(&self, name: &str) -> Result<Option<&'a str>, ToolError> {
        if self.0[name].is_null() { Ok(None) } else { self.text(name).map(Some) }
    }

    fn optional_number(&self, name: &str) -> Result<Option<u64>, ToolError> {
        let value = &self.0[name];
        if value.is_null() {
            return Ok(None);
        }
        let wrong = || ToolError::Input(format!("the argument {name:?} must be a number from 1 on"));
        value.as_u64().filter(|number| *number > 0).map(Some).ok_or_else(wrong)
    }

    fn flag(&self, name: &str) -> bool {
        self.0[name].as_bool().unwrap_or(false)
    }
}

/// The beginning and the end of what is too long, with a mark between them.
fn bounded(mut text: String) -> String {
    if text.len() <= OUTPUT_BYTES_MAX {
        return text;
    }
    let (head, tail) =
        (text.floor_char_boundary(OUTPUT_BYTES_MAX / 2), text.ceil_char_boundary(text.len() - OUTPUT_BYTES_MAX / 2));
    let mark = format!("\n[{} bytes are left out here]\n", tail - head);
    text.replace_range(head..tail, &mark);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_result_both_ends_are_kept() {
        assert_eq!(bounded("short".to_owned()), "short");
        let long = format!("{}{}{}", "ä".repeat(OUTPUT_BYTES_MAX), "middle", "ö".repeat(OUTPUT_BYTES_MAX));
        let kept = bounded(long.clone());
        assert!(kept.len() < OUTPUT_BYTES_MAX + 64 && kept.starts_with('ä') && kept.ends_with('ö'), "{}", kept.len());
        let left_out = long.len() - OUTPUT_BYTES_MAX;
        assert!(kept.contains(&format!("\n[{left_out} bytes are left out here]\n")), "{left_out}");
    }

    #[test]
    fn an_agent_has_the_tools_that_it_names() {
        assert_eq!(described(None).len(), TOOLS.len());
        let wanted = ["bash".to_owned(), "unknown".to_owned()];
        let described = described(Some(&wanted));
        assert_eq!(described.len(), 1);
        assert_eq!(described[0]["function"]["name"], "bash");
    }
}
