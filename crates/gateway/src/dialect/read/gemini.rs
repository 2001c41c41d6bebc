//! Reads answers of Gemini. Its streams have no end of their own: a reason to finish is their end.

use super::{event_json, push_text};
use crate::dialect::json::Json;
use crate::dialect::neutral::{Calls, Delta, Failure, ReadStream, Stop, Usage};
use crate::sse::Event;

/// A stream that is being read.
#[derive(Debug, Default)]
pub struct Stream {
    is_begun: bool,
    has_stopped: bool,
    calls: Calls,
}

impl ReadStream for Stream {
    fn read(&mut self, event: &Event, out: &mut Vec<Delta>) {
        if let Some(body) = event_json(&event.data, out) {
            self.read_chunk(&body, out);
        }
    }

    fn finish(&mut self, out: &mut Vec<Delta>) {
        if self.has_stopped {
            out.push(Delta::End);
        }
    }
}

impl Stream {
    fn read_chunk(&mut self, body: &Json, out: &mut Vec<Delta>) {
        if let Some(failure) = Failure::read(body) {
            out.push(Delta::Failed(failure));
            return;
        }
        if !std::mem::replace(&mut self.is_begun, true) {
            let (id, model) = (body.text_or_empty("responseId"), body.text_or_empty("modelVersion"));
            out.push(Delta::Begin { id: id.to_owned(), model: model.to_owned() });
        }
        let candidate = body.list("candidates").first().unwrap_or(&Json::Null);
        for part in candidate.get("content").list("parts") {
            self.read_part(part, out);
        }
        if let Some(usage) = body.some("usageMetadata") {
            push_usage(usage, out);
        }
        let blocked = body.get("promptFeedback").text("blockReason");
        if let Some(told) = candidate.text("finishReason").or(blocked) {
            self.has_stopped = true;
            out.push(Delta::Stop { stop: stop(told), told: told.to_owned() });
        }
    }

    fn read_part(&mut self, part: &Json, out: &mut Vec<Delta>) {
        let is_thought = part.flag("thought") == Some(true);
        push_text(out, if is_thought { Delta::Reasoning } else { Delta::Text }, part.text("text"));
        if let Some(function) = part.some("functionCall")
            && let Some(call) = self.calls.begin(function.text_or_empty("id"), function.text_or_empty("name"), out)
        {
            if let Some(arguments) = function.some("args") {
                self.calls.go_on(call, &arguments.to_string(), out);
            }
            self.calls.end(call, out);
        }
    }
}

/// Reads a whole answer: one object, or an array of what would be the events of a stream.
pub fn answer(body: &Json, out: &mut Vec<Delta>) {
    let mut stream = Stream::default();
    for chunk in body.as_list().unwrap_or(std::slice::from_ref(body)) {
        stream.read_chunk(chunk, out);
    }
    if !out.iter().any(|delta| matches!(delta, Delta::Failed(_))) {
        out.push(Delta::End);
    }
}

fn push_usage(usage: &Json, out: &mut Vec<Delta>) {
    let count = |name| usage.number(name).unwrap_or(0);
    let reasoning = count("thoughtsTokenCount");
    out.push(Delta::Usage(Usage {
        input: count("promptTokenCount").saturating_add(count("toolUsePromptTokenCount")),
        output: count("candidatesTokenCount").saturating_add(reasoning),
        cached: count("cachedContentTokenCount"),
        cache_created: 0,
        reasoning,
    }));
}

fn stop(told: &str) -> Stop {
    match told {
        "STOP" => Stop::End,
        "MAX_TOKENS" => Stop::Length,
        _ => Stop::Refusal,
    }
}
