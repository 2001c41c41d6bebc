//! Writes answers in messages.

use std::collections::BTreeMap;

use super::super::requests::input;
use super::{WriteStream, id_with};
use crate::dialect::Dialect;
use crate::dialect::json::{Json, object};
use crate::dialect::neutral::{Answer, AnswerPart, Delta, Stop, Usage};
use crate::sse;

/// Writes a whole answer.
pub fn whole(answer: &Answer) -> Json {
    let block = |part: &AnswerPart| match part {
        AnswerPart::Text(text) | AnswerPart::Refusal(text) => object! { "type": "text", "text": text },
        AnswerPart::Reasoning(text) => object! { "type": "thinking", "thinking": text, "signature": "" },
        AnswerPart::Call { id, name, arguments, .. } => {
            object! { "type": "tool_use", "id": id, "name": name, "input": input(arguments) }
        }
    };
    let mut message = head(answer);
    message.set("content", answer.parts.iter().map(block).collect::<Json>());
    message.set("stop_reason", stop_reason(answer.stop()));
    message.set("usage", usage(answer.usage.unwrap_or_default()));
    message
}

fn head(answer: &Answer) -> Json {
    object! {
        "id": id_with("msg_", &answer.id),
        "type": "message",
        "role": "assistant",
        "model": &answer.model,
        "content": Vec::new(),
        "stop_reason": Json::Null,
        "stop_sequence": Json::Null,
        "usage": usage(Usage::default()),
    }
}

fn stop_reason(stop: Stop) -> &'static str {
    match stop {
        Stop::End => "end_turn",
        Stop::Length => "max_tokens",
        Stop::Sequence => "stop_sequence",
        Stop::Tools => "tool_use",
        Stop::Refusal => "refusal",
    }
}

/// Input counts without caches here.
fn usage(usage: Usage) -> Json {
    object! {
        "input_tokens": usage.input.saturating_sub(usage.cached).saturating_sub(usage.cache_created),
        "cache_creation_input_tokens": usage.cache_created,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.output,
    }
}

/// A stream that is being written.
#[derive(Debug, Default)]
pub struct Stream {
    blocks: u64,
    /// The block of text or thinking that goes on.
    open: Option<(u64, Kind)>,
    /// The blocks of calls that have not ended.
    calls: BTreeMap<usize, u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Thinking,
}

fn event(out: &mut Vec<u8>, name: &str, mut body: Json) {
    if let Json::Object(members) = &mut body {
        members.insert(0, ("type".to_owned(), name.into()));
    }
    sse::write(out, Some(name), &body.to_string());
}

impl Stream {
    fn start_block(&mut self, block: Json, out: &mut Vec<u8>) -> u64 {
        let index = self.blocks;
        self.blocks += 1;
        event(out, "content_block_start", object! { "index": index, "content_block": block });
        index
    }

    fn close_open(&mut self, out: &mut Vec<u8>) {
        if let Some((index, _)) = self.open.take() {
            event(out, "content_block_stop", object! { "index": index });
        }
    }

    fn go_on(&mut self, kind: Kind, text: &str, out: &mut Vec<u8>) {
        let index = match self.open {
            Some((index, open)) if open == kind => index,
            _ => {
                self.close_open(out);
                let block = match kind {
                    Kind::Text => object! { "type": "text", "text": "" },
                    Kind::Thinking => object! { "type": "thinking", "thinking": "", "signature": "" },
                };
                let index = self.start_block(block, out);
                self.open = Some((index, kind));
                index
            }
        };
        let delta = match kind {
            Kind::Text => object! { "type": "text_delta", "text": text },
            Kind::Thinking => object! { "type": "thinking_delta", "thinking": text },
        };
        event(out, "content_block_delta", object! { "index": index, "delta": delta });
    }

    fn end(&mut self, answer: &Answer, out: &mut Vec<u8>) {
        self.close_open(out);
        for index in std::mem::take(&mut self.calls).into_values() {
            event(out, "content_block_stop", object! { "index": index });
        }
        let delta = object! { "stop_reason": stop_reason(answer.stop()), "stop_sequence": Json::Null };
        let usage = usage(answer.usage.unwrap_or_default());
        event(out, "message_delta", object! { "delta": delta, "usage": usage });
        event(out, "message_stop", object! {});
    }
}

impl WriteStream for Stream {
    fn write(&mut self, delta: &Delta, answer: &Answer, out: &mut Vec<u8>) {
        match delta {
            Delta::Begin { .. } => event(out, "message_start", object! { "message": head(answer) }),
            Delta::Text(text) | Delta::Refusal(text) => self.go_on(Kind::Text, text, out),
            Delta::Reasoning(text) => self.go_on(Kind::Thinking, text, out),
            Delta::CallBegin { call, id, name } => {
                self.close_open(out);
                let block = object! { "type": "tool_use", "id": id, "name": name, "input": object! {} };
                let index = self.start_block(block, out);
                self.calls.insert(*call, index);
            }
            Delta::Arguments { call, text } => {
                if let Some(index) = self.calls.get(call) {
                    let delta = object! { "type": "input_json_delta", "partial_json": text };
                    event(out, "content_block_delta", object! { "index": *index, "delta": delta });
                }
            }
            Delta::CallEnd { call } => {
                if let Some(index) = self.calls.remove(call) {
                    event(out, "content_block_stop", object! { "index": index });
                }
            }
            Delta::KeepAlive => event(out, "ping", object! {}),
            Delta::Failed(failure) => {
                out.extend(Dialect::Messages.error_event(failure.status, &failure.code, &failure.message));
            }
            Delta::End => self.end(answer, out),
            Delta::Usage(_) | Delta::Stop { .. } => {}
        }
    }
}
