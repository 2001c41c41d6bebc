//! Writes an answer of a recording as chat completions does.

use bytes::Bytes;
use serde_json::{Value, json};

use super::asked::Asked;
use super::recording::{Finish, Found, RecordedUsage};

/// Characters in one piece of a streamed answer.
const PIECE_CHARACTERS: usize = 24;
/// Bytes of a token, where a recording has no usage.
const BYTES_PER_TOKEN: usize = 4;

/// An answer.
pub struct Rendered {
    id: String,
    model: String,
    text: String,
    /// Id, name, arguments.
    calls: Vec<(String, String, String)>,
    finish: &'static str,
    usage: RecordedUsage,
    wants_usage: bool,
}

impl Rendered {
    pub fn new(found: Found<'_>, asked: &Asked, model: &str) -> Self {
        let Found { answer, line } = found;
        // An id is the same each time, and another in every place of a conversation.
        let place = format!("{line}_{}_{}", asked.user.len(), asked.results.len());
        let calls = answer.tool_calls.iter().enumerate().map(|(at, call)| {
            let id = call.id.clone().unwrap_or_else(|| format!("call_{place}_{at}"));
            let arguments = match &call.arguments {
                Value::String(text) => text.clone(),
                Value::Null => "{}".into(),
                value => value.to_string(),
            };
            (id, call.name.clone(), arguments)
        });
        let calls: Vec<_> = calls.collect();
        let finish = match answer.finish {
            Some(Finish::Stop) => "stop",
            Some(Finish::ToolCalls) => "tool_calls",
            Some(Finish::Length) => "length",
            Some(Finish::ContentFilter) => "content_filter",
            None if calls.is_empty() => "stop",
            None => "tool_calls",
        };
        let written =
            answer.text.len() + calls.iter().map(|(_, name, arguments)| name.len() + arguments.len()).sum::<usize>();
        let tokens = |bytes: usize| bytes.div_ceil(BYTES_PER_TOKEN) as u64;
        let estimated = RecordedUsage { input_tokens: tokens(asked.bytes), output_tokens: tokens(written) };
        Self {
            id: format!("chatcmpl-replay-{place}"),
            model: model.to_owned(),
            text: answer.text.clone(),
            calls,
            finish,
            usage: answer.usage.unwrap_or(estimated),
            wants_usage: asked.wants_usage,
        }
    }

    /// The answer at once.
    pub fn whole(&self) -> Bytes {
        let mut message = json!({ "role": "assistant", "content": self.content() });
        if !self.calls.is_empty() {
            let calls = self.calls.iter().map(|(id, name, arguments)| {
                json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } })
            });
            message["tool_calls"] = calls.collect();
        }
        let choice = json!({ "index": 0, "message": message, "finish_reason": self.finish });
        let mut answer = self.head("chat.completion");
        answer["choices"] = json!([choice]);
        answer["usage"] = self.usage();
        answer.to_string().into()
    }

    /// The answer as the events of a stream.
    pub fn pieces(&self) -> Vec<Bytes> {
        let mut events = vec![self.chunk(json!({ "role": "assistant", "content": "" }), None)];
        events.extend(cut(&self.text).map(|piece| self.chunk(json!({ "content": piece }), None)));
        for (at, (id, name, arguments)) in self.calls.iter().enumerate() {
            let call =
                json!({ "index": at, "id": id, "type": "function", "function": { "name": name, "arguments": "" } });
            events.push(self.chunk(json!({ "tool_calls": [call] }), None));
            events.extend(cut(arguments).map(|piece| {
                let more = json!({ "index": at, "function": { "arguments": piece } });
                self.chunk(json!({ "tool_calls": [more] }), None)
            }));
        }
        events.push(self.chunk(json!({}), Some(self.finish)));
        if self.wants_usage {
            let mut chunk = self.head("chat.completion.chunk");
            chunk["choices"] = json!([]);
            chunk["usage"] = self.usage();
            events.push(event(&chunk));
        }
        events.push(Bytes::from_static(b"data: [DONE]\n\n"));
        events
    }

    fn head(&self, object: &str) -> Value {
        json!({ "id": self.id, "object": object, "created": 0, "model": self.model })
    }

    fn content(&self) -> Option<&str> {
        (!self.text.is_empty() || self.calls.is_empty()).then_some(&self.text)
    }

    fn chunk(&self, delta: Value, finish: Option<&str>) -> Bytes {
        let mut chunk = self.head("chat.completion.chunk");
        chunk["choices"] = json!([{ "index": 0, "delta": delta, "finish_reason": finish }]);
        event(&chunk)
    }

    fn usage(&self) -> Value {
        let RecordedUsage { input_tokens, output_tokens } = self.usage;
        json!({
            "prompt_tokens": input_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": input_tokens.saturating_add(output_tokens),
        })
    }
}

fn event(value: &Value) -> Bytes {
    format!("data: {value}\n\n").into()
}

/// Cuts a text into pieces.
fn cut(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let end = rest.char_indices().nth(PIECE_CHARACTERS).map_or(rest.len(), |(at, _)| at);
        let (piece, left) = rest.split_at(end);
        rest = left;
        (!piece.is_empty()).then_some(piece)
    })
}
