//! What a model is shown: instructions, the conversation, the turn so far, and the tools.

use raworc_api::message::Role;
use raworc_core::turn::{Entry, Progress, ToolUse};
use raworc_store::agents::AgentRow;
use raworc_store::messages::MessageRow;
use serde_json::{Value, json};
use uuid::Uuid;

use super::tools;

/// Bytes of earlier messages that are shown: the newest ones.
pub const HISTORY_BYTES_MAX: usize = 200 * 1024;
/// Bytes of results of tools that are shown whole; of older ones only that they were there.
const RESULTS_BYTES_MAX: usize = 400 * 1024;

/// What stays the same in all steps of a turn.
pub struct Context {
    /// The agent.
    pub agent: AgentRow,
    /// The model's name.
    pub model: String,
    /// Messages that had ended before, in order.
    pub history: Vec<MessageRow>,
    /// How many there are before those.
    pub left_out: u64,
    /// The message to be answered.
    pub message: MessageRow,
}

impl Context {
    /// The request for the next step, in the form of chat completions.
    pub fn request(&self, progress: &Progress) -> Value {
        let mut messages = vec![json!({ "role": "system", "content": self.system() })];
        for message in &self.history {
            let role = match message.role {
                Role::Agent => "assistant",
                Role::User => "user",
                Role::System => "system",
            };
            // Some providers refuse messages without content.
            if !message.content.is_empty() {
                messages.push(json!({ "role": role, "content": message.content }));
            }
        }
        messages.push(json!({ "role": "user", "content": self.message.content }));
        messages.extend(shown(progress));
        let mut request = json!({
            "model": self.model,
            "stream": true,
            "stream_options": { "include_usage": true },
            "messages": messages,
        });
        let tools = tools::described(self.agent.definition.tools.as_deref());
        if !tools.is_empty() {
            request["tools"] = tools.into();
        }
        if let Some(temperature) = self.agent.definition.config.temperature {
            request["temperature"] = temperature.into();
        }
        if let Some(tokens) = self.agent.definition.config.max_output_tokens {
            request["max_tokens"] = tokens.into();
        }
        request
    }

    fn system(&self) -> String {
        let mut text = self.agent.definition.instructions.trim().to_owned();
        if !text.is_empty() {
            text.push_str("\n\n");
        }
        text.push_str(
            "You work in a Linux container. Your working directory is /workspace; what is written there lasts, and nothing else does. \
             You have no network unless a command shows otherwise. Use the tools to look and to act, and end with an answer in plain \
             text.",
        );
        if self.left_out > 0 {
            text.push_str(&format!("\n\nThe conversation has {} earlier messages that are not shown.", self.left_out));
        }
        text
    }
}

/// The turn so far. The newest results are whole.
fn shown(progress: &Progress) -> Vec<Value> {
    let mut left = RESULTS_BYTES_MAX;
    let mut messages: Vec<Value> = progress
        .entries()
        .iter()
        .rev()
        .map(|entry| match entry {
            Entry::Answer { text, calls } => {
                let content = if text.is_empty() { Value::Null } else { text.as_str().into() };
                let calls: Vec<Value> = calls.iter().map(call).collect();
                json!({ "role": "assistant", "content": content, "tool_calls": calls })
            }
            Entry::Result { call, output, .. } => {
                let is_shown = output.len() <= left;
                left = left.saturating_sub(output.len());
                let content = match is_shown {
                    true => output.clone(),
                    false => format!("[{} bytes of an earlier result are not shown any more]", output.len()),
                };
                json!({ "role": "tool", "tool_call_id": id(*call), "content": content })
            }
        })
        .collect();
    messages.reverse();
    messages
}

fn call(call: &ToolUse) -> Value {
    let arguments = match &call.input {
        // What was no JSON is shown as an object, since some providers accept nothing else.
        Value::String(text) => json!({ "invalid": text }).to_string(),
        input => input.to_string(),
    };
    json!({ "id": id(call.id), "type": "function", "function": { "name": call.tool, "arguments": arguments } })
}

/// The id of a call for the model.
fn id(call: Uuid) -> String {
    format!("call_{}", call.simple())
}
