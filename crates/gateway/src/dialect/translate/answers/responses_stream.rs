//! Writes streams in responses.

use super::super::exchange::Exchange;
use super::responses::{content, error, head, item, item_id, whole};
use super::{WriteStream, id_with};
use crate::dialect::json::{Json, object};
use crate::dialect::neutral::{Answer, AnswerPart, Delta};
use crate::sse;

/// A stream that is being written. An item of the output is a part of the answer, and has its place.
pub struct Stream {
    exchange: Exchange,
    sequence_number: u64,
    /// The item of text, refusal or reasoning that goes on.
    open: Option<usize>,
    /// Places of the calls, by their numbers, and whether they have ended.
    calls: Vec<(usize, bool)>,
}

impl Stream {
    /// At the beginning of an answer.
    pub fn new(exchange: Exchange) -> Self {
        Self { exchange, sequence_number: 0, open: None, calls: Vec::new() }
    }

    fn event(&mut self, name: &str, mut body: Json, out: &mut Vec<u8>) {
        if let Json::Object(members) = &mut body {
            members.insert(0, ("type".to_owned(), name.into()));
        }
        body.set("sequence_number", self.sequence_number);
        self.sequence_number += 1;
        sse::write(out, Some(name), &body.to_string());
    }

    /// Text goes on: opens an item for it where none is open.
    fn go_on(&mut self, text: &str, answer: &Answer, out: &mut Vec<u8>) {
        let Some(at) = answer.parts.len().checked_sub(1) else { return };
        if self.open != Some(at) {
            self.close_open(answer, out);
            self.open_item(at, &answer.parts[at], answer, out);
            self.open = Some(at);
        }
        let part = &answer.parts[at];
        let mut body = place(part, at, answer);
        body.set("delta", text);
        if matches!(part, AnswerPart::Text(_)) {
            body.set("logprobs", Vec::new());
        }
        self.event(names(part).delta, body, out);
    }

    fn open_item(&mut self, at: usize, part: &AnswerPart, answer: &Answer, out: &mut Vec<u8>) {
        let begun = match part {
            AnswerPart::Text(_) => AnswerPart::Text(String::new()),
            AnswerPart::Refusal(_) => AnswerPart::Refusal(String::new()),
            AnswerPart::Reasoning(_) => AnswerPart::Reasoning(String::new()),
            AnswerPart::Call { call, id, name, .. } => {
                AnswerPart::Call { call: *call, id: id.clone(), name: name.clone(), arguments: String::new() }
            }
        };
        let mut item = item(&self.exchange, &stem(answer), at, &begun, "in_progress");
        match &begun {
            AnswerPart::Text(_) | AnswerPart::Refusal(_) => item.set("content", Vec::new()),
            AnswerPart::Reasoning(_) => item.set("summary", Vec::new()),
            AnswerPart::Call { .. } => {}
        }
        self.event("response.output_item.added", object! { "output_index": at, "item": item }, out);
        if let Some(content) = content(&begun) {
            let mut body = place(&begun, at, answer);
            body.set("part", content);
            self.event(names(&begun).part_added, body, out);
        }
    }

    fn close_open(&mut self, answer: &Answer, out: &mut Vec<u8>) {
        let Some(at) = self.open.take() else { return };
        let Some(part) = answer.parts.get(at) else { return };
        if let (Some(content), AnswerPart::Text(text) | AnswerPart::Refusal(text) | AnswerPart::Reasoning(text)) =
            (content(part), part)
        {
            let mut body = place(part, at, answer);
            let is_refusal = matches!(part, AnswerPart::Refusal(_));
            body.set(if is_refusal { "refusal" } else { "text" }, text);
            if matches!(part, AnswerPart::Text(_)) {
                body.set("logprobs", Vec::new());
            }
            self.event(names(part).done, body, out);
            let mut body = place(part, at, answer);
            body.set("part", content);
            self.event(names(part).part_done, body, out);
        }
        self.item_done(at, part, answer, out);
    }

    fn item_done(&mut self, at: usize, part: &AnswerPart, answer: &Answer, out: &mut Vec<u8>) {
        let item = item(&self.exchange, &stem(answer), at, part, "completed");
        self.event("response.output_item.done", object! { "output_index": at, "item": item }, out);
    }

    fn call_end(&mut self, call: usize, answer: &Answer, out: &mut Vec<u8>) {
        let Some((at, is_ended)) = self.calls.get_mut(call) else { return };
        let at = *at;
        if std::mem::replace(is_ended, true) {
            return;
        }
        let Some(part @ AnswerPart::Call { name, arguments, .. }) = answer.parts.get(at) else { return };
        let mut body = place(part, at, answer);
        if self.exchange.is_freeform(name) {
            body.set("input", arguments);
            self.event("response.custom_tool_call_input.done", body, out);
        } else {
            body.set("name", name);
            body.set("arguments", arguments);
            self.event("response.function_call_arguments.done", body, out);
        }
        self.item_done(at, part, answer, out);
    }

    fn end(&mut self, answer: &Answer, out: &mut Vec<u8>) {
        self.close_open(answer, out);
        for call in 0..self.calls.len() {
            self.call_end(call, answer, out);
        }
        let response = whole(&self.exchange, answer);
        let is_incomplete = response.text("status") == Some("incomplete");
        let name = if is_incomplete { "response.incomplete" } else { "response.completed" };
        self.event(name, object! { "response": response }, out);
    }
}

impl WriteStream for Stream {
    fn write(&mut self, delta: &Delta, answer: &Answer, out: &mut Vec<u8>) {
        match delta {
            Delta::Begin { .. } => {
                for name in ["response.created", "response.in_progress"] {
                    let response = head(&self.exchange, answer, "in_progress");
                    self.event(name, object! { "response": response }, out);
                }
            }
            Delta::Text(text) | Delta::Refusal(text) | Delta::Reasoning(text) => self.go_on(text, answer, out),
            Delta::CallBegin { .. } => {
                self.close_open(answer, out);
                if let Some((at, part)) = answer.parts.iter().enumerate().next_back() {
                    self.calls.push((at, false));
                    self.open_item(at, part, answer, out);
                }
            }
            Delta::Arguments { call, text } => {
                if let Some(&(at, _)) = self.calls.get(*call)
                    && let Some(part @ AnswerPart::Call { name, .. }) = answer.parts.get(at)
                {
                    let mut body = place(part, at, answer);
                    body.set("delta", text);
                    let is_freeform = self.exchange.is_freeform(name);
                    let [function, custom] =
                        ["response.function_call_arguments.delta", "response.custom_tool_call_input.delta"];
                    self.event(if is_freeform { custom } else { function }, body, out);
                }
            }
            Delta::CallEnd { call } => self.call_end(*call, answer, out),
            Delta::KeepAlive => out.extend_from_slice(b": keep-alive\n\n"),
            Delta::Failed(failure) => {
                let mut response = head(&self.exchange, answer, "failed");
                response.set("error", error(failure));
                self.event("response.failed", object! { "response": response }, out);
            }
            Delta::End => self.end(answer, out),
            Delta::Usage(_) | Delta::Stop { .. } => {}
        }
    }
}

/// The events of an item with content.
struct Names {
    part_added: &'static str,
    delta: &'static str,
    done: &'static str,
    part_done: &'static str,
}

fn names(part: &AnswerPart) -> Names {
    match part {
        AnswerPart::Reasoning(_) => Names {
            part_added: "response.reasoning_summary_part.added",
            delta: "response.reasoning_summary_text.delta",
            done: "response.reasoning_summary_text.done",
            part_done: "response.reasoning_summary_part.done",
        },
        AnswerPart::Refusal(_) => Names {
            part_added: "response.content_part.added",
            delta: "response.refusal.delta",
            done: "response.refusal.done",
            part_done: "response.content_part.done",
        },
        AnswerPart::Text(_) | AnswerPart::Call { .. } => Names {
            part_added: "response.content_part.added",
            delta: "response.output_text.delta",
            done: "response.output_text.done",
            part_done: "response.content_part.done",
        },
    }
}

fn stem(answer: &Answer) -> String {
    id_with("", &answer.id)
}

/// The members of an event that say which item, and which part of it, it is about.
fn place(part: &AnswerPart, at: usize, answer: &Answer) -> Json {
    let mut body = object! { "item_id": item_id(&stem(answer), at, part), "output_index": at };
    match part {
        AnswerPart::Text(_) | AnswerPart::Refusal(_) => body.set("content_index", 0_u64),
        AnswerPart::Reasoning(_) => body.set("summary_index", 0_u64),
        AnswerPart::Call { .. } => {}
    }
    body
}
