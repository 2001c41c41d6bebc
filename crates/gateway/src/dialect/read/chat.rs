//! Reads answers in chat completions.

use super::{event_json, push_text};
use crate::dialect::json::Json;
use crate::dialect::neutral::{CALLS_MAX, Calls, Delta, Failure, ReadStream, Stop, Usage};
use crate::sse::Event;

/// Arguments of a call that come before the tool's name, in bytes.
const EARLY_BYTES_MAX: usize = 64 * 1024;

/// A stream that is being read.
#[derive(Debug, Default)]
pub struct Stream {
    is_begun: bool,
    calls: Calls,
    slots: Vec<Slot>,
    has_stopped: bool,
    is_ended: bool,
}

/// A call of the stream.
#[derive(Debug)]
struct Slot {
    index: Option<u64>,
    id: String,
    call: Option<usize>,
    /// Arguments that came before the tool's name.
    early: String,
}

impl ReadStream for Stream {
    fn read(&mut self, event: &Event, out: &mut Vec<Delta>) {
        if event.data.trim() == "[DONE]" {
            self.end(out);
            return;
        }
        let Some(body) = event_json(&event.data, out) else { return };
        if let Some(failure) = Failure::read(&body) {
            out.push(Delta::Failed(failure));
            return;
        }
        if !std::mem::replace(&mut self.is_begun, true) {
            begin(&body, out);
        }
        if let Some(choice) = first_choice(&body) {
            self.read_choice(choice, out);
        }
        push_usage(&body, out);
    }

    fn finish(&mut self, out: &mut Vec<Delta>) {
        if self.has_stopped {
            self.end(out);
        }
    }
}

impl Stream {
    fn read_choice(&mut self, choice: &Json, out: &mut Vec<Delta>) {
        let delta = choice.get("delta");
        push_text(out, Delta::Reasoning, delta.text("reasoning_content").or(delta.text("reasoning")));
        push_text(out, Delta::Text, delta.text("content"));
        push_text(out, Delta::Refusal, delta.text("refusal"));
        for call in delta.list("tool_calls") {
            self.read_call(call, out);
        }
        if let Some(call) = delta.some("function_call") {
            let call = Json::Object(vec![("index".to_owned(), 0_u64.into()), ("function".to_owned(), call.clone())]);
            self.read_call(&call, out);
        }
        if let Some(told) = choice.text("finish_reason") {
            self.has_stopped = true;
            self.calls.end_all(out);
            out.push(Delta::Stop { stop: stop(told), told: told.to_owned() });
        }
    }

    fn read_call(&mut self, call: &Json, out: &mut Vec<Delta>) {
        let (index, id) = (call.number("index"), call.text_or_empty("id"));
        let (name, text) = name_and_arguments(call);
        let Some(at) = self.slot(index, id, name, out) else { return };
        let slot = &mut self.slots[at];
        if slot.id.is_empty() {
            id.clone_into(&mut slot.id);
        }
        if slot.call.is_none() && !name.is_empty() {
            self.calls.end_complete(None, out);
            slot.call = self.calls.begin(&slot.id, name, out);
            let Some(call) = slot.call else { return };
            self.calls.go_on(call, &std::mem::take(&mut slot.early), out);
        }
        match slot.call {
            Some(call) => self.calls.go_on(call, text, out),
            None if slot.early.len() + text.len() <= EARLY_BYTES_MAX => slot.early.push_str(text),
            None => out.push(Delta::Failed(Failure::bad_answer("a tool call of the answer has no name"))),
        }
        let current = self.slots.last().and_then(|slot| slot.call);
        self.calls.end_complete(current, out);
    }

    /// Which call a piece belongs to. Some servers give no index, others give every call the same one: a new id with a name is a new call.
    fn slot(&mut self, index: Option<u64>, id: &str, name: &str, out: &mut Vec<Delta>) -> Option<usize> {
        let found = match index {
            Some(_) => self.slots.iter().rposition(|slot| slot.index == index),
            None => self.slots.len().checked_sub(1),
        };
        let is_other = |slot: &Slot| !id.is_empty() && !name.is_empty() && slot.call.is_some() && slot.id != id;
        if let Some(found) = found.filter(|&found| !is_other(&self.slots[found])) {
            return Some(found);
        }
        if self.slots.len() >= CALLS_MAX {
            out.push(Delta::Failed(Failure::bad_answer("the answer has too many tool calls")));
            return None;
        }
        self.slots.push(Slot { index, id: id.to_owned(), call: None, early: String::new() });
        Some(self.slots.len() - 1)
    }

    fn end(&mut self, out: &mut Vec<Delta>) {
        if !std::mem::replace(&mut self.is_ended, true) {
            self.calls.end_all(out);
            out.push(Delta::End);
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
    if let Some(choice) = first_choice(body) {
        let message = choice.get("message");
        push_text(out, Delta::Reasoning, message.text("reasoning_content").or(message.text("reasoning")));
        push_text(out, Delta::Text, message.text("content"));
        push_text(out, Delta::Refusal, message.text("refusal"));
        let mut calls = Calls::default();
        for call in message.list("tool_calls") {
            read_whole_call(&mut calls, call, out);
        }
        if let Some(call) = message.some("function_call") {
            read_whole_call(&mut calls, &Json::Object(vec![("function".to_owned(), call.clone())]), out);
        }
        if let Some(told) = choice.text("finish_reason") {
            out.push(Delta::Stop { stop: stop(told), told: told.to_owned() });
        }
    }
    push_usage(body, out);
    out.push(Delta::End);
}

fn read_whole_call(calls: &mut Calls, call: &Json, out: &mut Vec<Delta>) {
    let (name, arguments) = name_and_arguments(call);
    if let Some(number) = calls.begin(call.text_or_empty("id"), name, out) {
        calls.go_on(number, arguments, out);
        calls.end(number, out);
    }
}

fn name_and_arguments(call: &Json) -> (&str, &str) {
    match call.some("custom") {
        Some(custom) => (custom.text_or_empty("name"), custom.text_or_empty("input")),
        None => (call.get("function").text_or_empty("name"), call.get("function").text_or_empty("arguments")),
    }
}

fn begin(body: &Json, out: &mut Vec<Delta>) {
    out.push(Delta::Begin { id: body.text_or_empty("id").to_owned(), model: body.text_or_empty("model").to_owned() });
}

fn first_choice(body: &Json) -> Option<&Json> {
    body.list("choices").iter().find(|choice| choice.number("index").unwrap_or(0) == 0)
}

fn push_usage(body: &Json, out: &mut Vec<Delta>) {
    if let Some(usage) = body.some("usage") {
        out.push(Delta::Usage(Usage {
            input: usage.number("prompt_tokens").unwrap_or(0),
            output: usage.number("completion_tokens").unwrap_or(0),
            cached: usage.get("prompt_tokens_details").number("cached_tokens").unwrap_or(0),
            cache_created: 0,
            reasoning: usage.get("completion_tokens_details").number("reasoning_tokens").unwrap_or(0),
        }));
    }
}

fn stop(told: &str) -> Stop {
    match told {
        "length" => Stop::Length,
        "tool_calls" | "function_call" => Stop::Tools,
        "content_filter" => Stop::Refusal,
        _ => Stop::End,
    }
}
