//! Reads answers in messages.

use std::collections::BTreeMap;

use super::{event_json, push_text};
use crate::dialect::json::Json;
use crate::dialect::neutral::{Calls, Delta, Failure, ReadStream, Stop, Usage};
use crate::sse::Event;

/// A stream that is being read.
#[derive(Debug, Default)]
pub struct Stream {
    calls: Calls,
    /// The calls among the blocks that have begun and not ended, with the input that they began with.
    open: BTreeMap<u64, (usize, Json)>,
    usage: Tokens,
    is_ended: bool,
}

impl ReadStream for Stream {
    fn read(&mut self, event: &Event, out: &mut Vec<Delta>) {
        let Some(body) = event_json(&event.data, out) else { return };
        let at = body.number("index").unwrap_or(0);
        match body.text("type").unwrap_or(&event.name) {
            "message_start" => {
                let message = body.get("message");
                begin(message, out);
                self.usage.merge(message.get("usage"), out);
            }
            "content_block_start" => self.block_start(at, body.get("content_block"), out),
            "content_block_delta" => self.block_delta(at, body.get("delta"), out),
            "content_block_stop" => self.block_stop(at, out),
            "message_delta" => {
                self.usage.merge(body.get("usage"), out);
                push_stop(body.get("delta"), out);
            }
            "message_stop" => self.end(out),
            "ping" => out.push(Delta::KeepAlive),
            "error" => {
                let failure = Failure::read(&body).unwrap_or_else(|| Failure::told("the provider tells an error"));
                out.push(Delta::Failed(failure));
            }
            _ => {}
        }
    }

    fn finish(&mut self, _: &mut Vec<Delta>) {}
}

impl Stream {
    fn end(&mut self, out: &mut Vec<Delta>) {
        if !std::mem::replace(&mut self.is_ended, true) {
            self.calls.end_all(out);
            out.push(Delta::End);
        }
    }

    fn block_start(&mut self, at: u64, block: &Json, out: &mut Vec<Delta>) {
        match block.text("type") {
            Some("tool_use") => {
                if let Some(call) = self.calls.begin(block.text_or_empty("id"), block.text_or_empty("name"), out) {
                    self.open.insert(at, (call, block.get("input").clone()));
                }
            }
            Some("text") => push_text(out, Delta::Text, block.text("text")),
            Some("thinking") => push_text(out, Delta::Reasoning, block.text("thinking")),
            _ => out.push(Delta::KeepAlive),
        }
    }

    fn block_delta(&mut self, at: u64, delta: &Json, out: &mut Vec<Delta>) {
        match delta.text("type") {
            Some("text_delta") => push_text(out, Delta::Text, delta.text("text")),
            Some("thinking_delta") => push_text(out, Delta::Reasoning, delta.text("thinking")),
            Some("input_json_delta") => {
                if let Some(&(call, _)) = self.open.get(&at) {
                    self.calls.go_on(call, delta.text_or_empty("partial_json"), out);
                }
            }
            _ => out.push(Delta::KeepAlive),
        }
    }

    /// Some servers send the whole input when the block starts, and no delta.
    fn block_stop(&mut self, at: u64, out: &mut Vec<Delta>) {
        if let Some((call, input)) = self.open.remove(&at) {
            if !self.calls.has_arguments(call) && !input.is_empty() {
                self.calls.go_on(call, &input.to_string(), out);
            }
            self.calls.end(call, out);
        }
    }
}

/// Reads a whole answer.
pub fn answer(body: &Json, out: &mut Vec<Delta>) {
    if let Some(failure) = Failure::read(body) {
        out.push(Delta::Failed(failure));
        return;
    }
    begin(body, out);
    let mut calls = Calls::default();
    for block in body.list("content") {
        match block.text("type") {
            Some("tool_use") => {
                if let Some(call) = calls.begin(block.text_or_empty("id"), block.text_or_empty("name"), out) {
                    if !block.get("input").is_null() {
                        calls.go_on(call, &block.get("input").to_string(), out);
                    }
                    calls.end(call, out);
                }
            }
            Some("text") => push_text(out, Delta::Text, block.text("text")),
            Some("thinking") => push_text(out, Delta::Reasoning, block.text("thinking")),
            _ => {}
        }
    }
    Tokens::default().merge(body.get("usage"), out);
    push_stop(body, out);
    out.push(Delta::End);
}

/// Tokens so far: a later event replaces the counts that it has.
#[derive(Debug, Default)]
struct Tokens {
    input: u64,
    cache_read: u64,
    cache_created: u64,
    output: u64,
    reasoning: u64,
}

impl Tokens {
    fn merge(&mut self, usage: &Json, out: &mut Vec<Delta>) {
        if !usage.is_object() {
            return;
        }
        for (count, name) in [
            (&mut self.input, "input_tokens"),
            (&mut self.cache_read, "cache_read_input_tokens"),
            (&mut self.cache_created, "cache_creation_input_tokens"),
            (&mut self.output, "output_tokens"),
        ] {
            *count = usage.number(name).unwrap_or(*count);
        }
        self.reasoning = usage.get("output_tokens_details").number("thinking_tokens").unwrap_or(self.reasoning);
        out.push(Delta::Usage(Usage {
            input: self.input.saturating_add(self.cache_read).saturating_add(self.cache_created),
            output: self.output,
            cached: self.cache_read,
            cache_created: self.cache_created,
            reasoning: self.reasoning,
        }));
    }
}

fn begin(message: &Json, out: &mut Vec<Delta>) {
    let (id, model) = (message.text_or_empty("id").to_owned(), message.text_or_empty("model").to_owned());
    out.push(Delta::Begin { id, model });
}

fn push_stop(at: &Json, out: &mut Vec<Delta>) {
    let Some(told) = at.text("stop_reason") else { return };
    let stop = match told {
        "max_tokens" | "model_context_window_exceeded" => Stop::Length,
        "stop_sequence" => Stop::Sequence,
        "tool_use" => Stop::Tools,
        "refusal" => Stop::Refusal,
        _ => Stop::End,
    };
    out.push(Delta::Stop { stop, told: told.to_owned() });
}
