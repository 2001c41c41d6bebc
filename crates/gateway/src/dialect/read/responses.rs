//! Reads answers in responses.

use std::collections::BTreeMap;

use super::{event_json, push_text};
use crate::dialect::json::Json;
use crate::dialect::neutral::{Calls, Delta, Failure, ReadStream, Stop, Usage};
use crate::sse::Event;

/// Items of one answer, at most.
const ITEMS_MAX: usize = 1024;

/// A stream that is being read.
#[derive(Debug, Default)]
pub struct Stream {
    is_begun: bool,
    is_ended: bool,
    calls: Calls,
    items: BTreeMap<u64, Item>,
}

/// What has come of an item of the output.
#[derive(Debug, Default)]
struct Item {
    call: Option<usize>,
    has_content: bool,
    is_done: bool,
}

impl ReadStream for Stream {
    fn read(&mut self, event: &Event, out: &mut Vec<Delta>) {
        if event.data.trim() == "[DONE]" {
            return;
        }
        let Some(body) = event_json(&event.data, out) else { return };
        let kind = body.text("type").unwrap_or(&event.name);
        let at = body.number("output_index").unwrap_or(0);
        match kind {
            "response.created" | "response.in_progress" => self.begin(body.get("response"), out),
            "response.output_item.added" => self.item_added(at, body.get("item"), out),
            "response.output_text.delta" => self.text(at, Delta::Text, body.text("delta"), out),
            "response.refusal.delta" => self.text(at, Delta::Refusal, body.text("delta"), out),
            "response.reasoning_summary_text.delta" | "response.reasoning_text.delta" => {
                self.text(at, Delta::Reasoning, body.text("delta"), out);
            }
            "response.function_call_arguments.delta" | "response.custom_tool_call_input.delta" => {
                self.arguments(at, body.text_or_empty("delta"), out);
            }
            "response.output_item.done" => self.item_done(at, body.get("item"), out),
            "response.completed" | "response.incomplete" | "response.failed" => self.end(body.get("response"), out),
            "error" => {
                let failure = Failure::read(&body).unwrap_or_else(|| Failure::read_object(&body));
                out.push(Delta::Failed(failure));
            }
            "keepalive" => out.push(Delta::KeepAlive),
            _ => {}
        }
    }

    fn finish(&mut self, _: &mut Vec<Delta>) {}
}

impl Stream {
    fn begin(&mut self, response: &Json, out: &mut Vec<Delta>) {
        if !std::mem::replace(&mut self.is_begun, true) {
            begin(response, out);
        }
    }

    fn item(&mut self, at: u64, out: &mut Vec<Delta>) -> Option<&mut Item> {
        if self.items.len() >= ITEMS_MAX && !self.items.contains_key(&at) {
            out.push(Delta::Failed(Failure::bad_answer("the answer has too many items")));
            return None;
        }
        Some(self.items.entry(at).or_default())
    }

    fn item_added(&mut self, at: u64, item: &Json, out: &mut Vec<Delta>) {
        if !is_call(item) || self.item(at, out).is_none_or(|item| item.call.is_some()) {
            return;
        }
        let call = self.calls.begin(call_id(item), item.text_or_empty("name"), out);
        if let Some(item) = self.items.get_mut(&at) {
            item.call = call;
        }
    }

    fn text(&mut self, at: u64, delta: fn(String) -> Delta, text: Option<&str>, out: &mut Vec<Delta>) {
        if let Some(item) = self.item(at, out) {
            item.has_content = true;
            push_text(out, delta, text);
        }
    }

    fn arguments(&mut self, at: u64, text: &str, out: &mut Vec<Delta>) {
        if let Some(call) = self.items.get(&at).and_then(|item| item.call) {
            self.calls.go_on(call, text, out);
        }
    }

    /// An item is complete, and has all its content; what has not come before comes now.
    fn item_done(&mut self, at: u64, item: &Json, out: &mut Vec<Delta>) {
        self.item_added(at, item, out);
        let Some(known) = self.item(at, out).filter(|known| !known.is_done) else { return };
        known.is_done = true;
        let (call, has_content) = (known.call, known.has_content);
        match call {
            Some(call) => {
                if !self.calls.has_arguments(call) {
                    self.calls.go_on(call, arguments(item), out);
                }
                self.calls.end(call, out);
            }
            None if !has_content => push_content(item, out),
            None => {}
        }
    }

    fn end(&mut self, response: &Json, out: &mut Vec<Delta>) {
        if std::mem::replace(&mut self.is_ended, true) {
            return;
        }
        self.begin(response, out);
        for (at, item) in (0..).zip(response.list("output")) {
            self.item_done(at, item, out);
        }
        self.calls.end_all(out);
        push_end(response, &self.calls, out);
    }
}

/// Reads a whole answer.
pub fn answer(body: &Json, out: &mut Vec<Delta>) {
    if body.some("output").is_none()
        && let Some(failure) = Failure::read(body)
    {
        out.push(Delta::Failed(failure));
        return;
    }
    begin(body, out);
    let mut calls = Calls::default();
    for item in body.list("output") {
        if !is_call(item) {
            push_content(item, out);
        } else if let Some(call) = calls.begin(call_id(item), item.text_or_empty("name"), out) {
            calls.go_on(call, arguments(item), out);
            calls.end(call, out);
        }
    }
    push_end(body, &calls, out);
}

fn begin(response: &Json, out: &mut Vec<Delta>) {
    let (id, model) = (response.text_or_empty("id").to_owned(), response.text_or_empty("model").to_owned());
    out.push(Delta::Begin { id, model });
}

fn is_call(item: &Json) -> bool {
    matches!(item.text("type"), Some("function_call" | "custom_tool_call"))
}

fn call_id(item: &Json) -> &str {
    item.text("call_id").or(item.text("id")).unwrap_or_default()
}

fn arguments(item: &Json) -> &str {
    item.text("arguments").or(item.text("input")).unwrap_or_default()
}

/// The text in an item that is complete.
fn push_content(item: &Json, out: &mut Vec<Delta>) {
    match item.text("type") {
        Some("message") => {
            for part in item.list("content") {
                match part.text("type") {
                    Some("refusal") => push_text(out, Delta::Refusal, part.text("refusal")),
                    _ => push_text(out, Delta::Text, part.text("text")),
                }
            }
        }
        Some("reasoning") => {
            let parts = [item.list("summary"), item.list("content")].into_iter().find(|parts| !parts.is_empty());
            for part in parts.unwrap_or_default() {
                push_text(out, Delta::Reasoning, part.text("text"));
            }
        }
        _ => {}
    }
}

fn push_end(response: &Json, calls: &Calls, out: &mut Vec<Delta>) {
    if let Some(usage) = response.some("usage") {
        out.push(Delta::Usage(Usage {
            input: usage.number("input_tokens").unwrap_or(0),
            output: usage.number("output_tokens").unwrap_or(0),
            cached: usage.get("input_tokens_details").number("cached_tokens").unwrap_or(0),
            cache_created: 0,
            reasoning: usage.get("output_tokens_details").number("reasoning_tokens").unwrap_or(0),
        }));
    }
    let status = response.text_or_empty("status");
    let told = response.get("incomplete_details").text("reason").filter(|_| status == "incomplete").unwrap_or(status);
    let stop = match told {
        "max_output_tokens" => Stop::Length,
        "content_filter" => Stop::Refusal,
        _ if calls.is_empty() => Stop::End,
        _ => Stop::Tools,
    };
    if !told.is_empty() {
        out.push(Delta::Stop { stop, told: told.to_owned() });
    }
    match (status, Failure::read(response)) {
        (_, Some(failure)) => out.push(Delta::Failed(failure)),
        ("failed" | "cancelled", None) => {
            out.push(Delta::Failed(Failure::told(&format!("the provider's response is {status}"))));
        }
        _ => {}
    }
    out.push(Delta::End);
}
