//! Writes answers in chat completions.

use super::super::exchange::Exchange;
use super::{WriteStream, id_with};
use crate::dialect::Dialect;
use crate::dialect::json::{Json, object};
use crate::dialect::neutral::{Answer, AnswerPart, Delta, Stop, Usage};
use crate::sse;

/// Writes a whole answer.
pub fn whole(exchange: &Exchange, answer: &Answer) -> Json {
    let mut message = object! { "role": "assistant" };
    let (mut text, mut refusal, mut reasoning) = (None::<String>, None::<String>, None::<String>);
    let mut calls = Vec::new();
    for part in &answer.parts {
        match part {
            AnswerPart::Text(more) => text.get_or_insert_default().push_str(more),
            AnswerPart::Refusal(more) => refusal.get_or_insert_default().push_str(more),
            AnswerPart::Reasoning(more) => reasoning.get_or_insert_default().push_str(more),
            AnswerPart::Call { id, name, arguments, .. } => {
                calls.push(call(exchange, Some(id), name, arguments));
            }
        }
    }
    message.set("content", text);
    message.set("refusal", refusal);
    message.set_some("reasoning_content", reasoning);
    // An empty list would be read as a wish to call tools.
    if !calls.is_empty() {
        message.set("tool_calls", calls);
    }
    let finish_reason = finish_reason(answer.stop());
    let choice = object! { "index": 0_u64, "message": message, "logprobs": Json::Null, "finish_reason": finish_reason };
    let mut out = head(exchange, answer, "chat.completion");
    out.set("choices", vec![choice]);
    out.set_some("usage", answer.usage.map(usage));
    out
}

/// A call, or a piece of one: its beginning has its id.
fn call(exchange: &Exchange, id: Option<&str>, name: &str, text: &str) -> Json {
    let (kind, argument) = if exchange.is_freeform(name) { ("custom", "input") } else { ("function", "arguments") };
    let (mut out, mut called) = (object! {}, object! {});
    if let Some(id) = id {
        out.set("id", id);
        out.set("type", kind);
        called.set("name", name);
    }
    called.set(argument, text);
    out.set(kind, called);
    out
}

fn head(exchange: &Exchange, answer: &Answer, object: &str) -> Json {
    object! {
        "id": id_with("chatcmpl-", &answer.id),
        "object": object,
        "created": exchange.created,
        "model": &answer.model,
    }
}

fn finish_reason(stop: Stop) -> &'static str {
    match stop {
        Stop::End | Stop::Sequence => "stop",
        Stop::Length => "length",
        Stop::Tools => "tool_calls",
        Stop::Refusal => "content_filter",
    }
}

fn usage(usage: Usage) -> Json {
    object! {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input.saturating_add(usage.output),
        "prompt_tokens_details": object! { "cached_tokens": usage.cached },
        "completion_tokens_details": object! { "reasoning_tokens": usage.reasoning },
    }
}

/// A stream that is being written.
pub struct Stream {
    exchange: Exchange,
}

impl Stream {
    /// At the beginning of an answer.
    pub fn new(exchange: Exchange) -> Self {
        Self { exchange }
    }

    fn chunk(&self, answer: &Answer, delta: Json, finish_reason: Option<&str>, out: &mut Vec<u8>) {
        let choice = object! { "index": 0_u64, "delta": delta, "logprobs": Json::Null, "finish_reason": finish_reason };
        let mut chunk = head(&self.exchange, answer, "chat.completion.chunk");
        chunk.set("choices", vec![choice]);
        if self.exchange.is_usage_asked {
            chunk.set("usage", Json::Null);
        }
        sse::write(out, None, &chunk.to_string());
    }

    fn end(&self, answer: &Answer, out: &mut Vec<u8>) {
        self.chunk(answer, object! {}, Some(finish_reason(answer.stop())), out);
        if self.exchange.is_usage_asked {
            let mut chunk = head(&self.exchange, answer, "chat.completion.chunk");
            chunk.set("choices", Vec::new());
            chunk.set("usage", usage(answer.usage.unwrap_or_default()));
            sse::write(out, None, &chunk.to_string());
        }
        sse::write(out, None, "[DONE]");
    }
}

impl WriteStream for Stream {
    fn write(&mut self, delta: &Delta, answer: &Answer, out: &mut Vec<u8>) {
        let call_delta = |index: usize, id: Option<&str>, name: &str, text: &str| {
            let mut call = call(&self.exchange, id, name, text);
            call.set("index", index);
            object! { "tool_calls": vec![call] }
        };
        let delta = match delta {
            Delta::Begin { .. } => object! { "role": "assistant", "content": "" },
            Delta::Text(text) => object! { "content": text },
            Delta::Refusal(text) => object! { "refusal": text },
            Delta::Reasoning(text) => object! { "reasoning_content": text },
            Delta::CallBegin { call, id, name } => call_delta(*call, Some(id), name, ""),
            Delta::Arguments { call, text } => call_delta(*call, None, answer.tool_of(*call), text),
            Delta::KeepAlive => return out.extend_from_slice(b": keep-alive\n\n"),
            Delta::Failed(failure) => {
                let event = Dialect::ChatCompletions.error_event(failure.status, &failure.code, &failure.message);
                return out.extend(event);
            }
            Delta::End => return self.end(answer, out),
            Delta::CallEnd { .. } | Delta::Usage(_) | Delta::Stop { .. } => return,
        };
        self.chunk(answer, delta, None, out);
    }
}
