//! An answer of a model in no dialect: what readers of each dialect make of its bytes, and what writers of each make bytes of.
//!
//! A whole answer and a stream are the same sequence of [`Delta`]s; only the size of the pieces differs.

use http::StatusCode;
use raworc_core::models::TokenUsage;

use super::json::Json;
use crate::sse::Event;

/// Tool calls in one answer, at most.
pub const CALLS_MAX: usize = 256;
/// What a part of an answer counts for beside its text, in bytes, so that many small parts are bounded, too.
const PART_BYTES: usize = 64;

/// Tokens, as far as a provider tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Read, those of caches included.
    pub input: u64,
    /// Written, reasoning included.
    pub output: u64,
    /// Part of `input` that came from a cache.
    pub cached: u64,
    /// Part of `input` that went into a cache.
    pub cache_created: u64,
    /// Part of `output` that is reasoning.
    pub reasoning: u64,
}

impl From<Usage> for TokenUsage {
    fn from(usage: Usage) -> Self {
        Self { input_tokens: usage.input, output_tokens: usage.output, cached_tokens: usage.cached.min(usage.input) }
    }
}

/// Why a model stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It was done.
    End,
    /// The tokens for the answer, or for the context, were used up.
    Length,
    /// It wrote a stop sequence.
    Sequence,
    /// It wants tools to be called.
    Tools,
    /// It, or a filter of the provider, refused.
    Refusal,
}

/// An error that a provider tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The status that fits it.
    pub status: StatusCode,
    /// The provider's code or type of the error.
    pub code: String,
    /// The provider's sentence.
    pub message: String,
    /// Whether the provider told it; else its answer is none.
    pub is_told: bool,
}

impl Failure {
    /// An answer that can't be read.
    #[must_use]
    pub fn bad_answer(message: &str) -> Self {
        let status = StatusCode::BAD_GATEWAY;
        Self { status, code: "bad_answer".to_owned(), message: message.to_owned(), is_told: false }
    }

    /// An error of which the provider tells nothing but a sentence, or not even that.
    #[must_use]
    pub fn told(message: &str) -> Self {
        let status = StatusCode::BAD_GATEWAY;
        Self { status, code: "provider_error".to_owned(), message: message.to_owned(), is_told: true }
    }

    /// The error in a body, in any dialect and in the forms that other servers use: an object or a sentence at `error`, or a body that
    /// is the error itself.
    #[must_use]
    pub fn read(body: &Json) -> Option<Self> {
        let is_error = body.text("object") == Some("error") || body.text("type") == Some("error");
        match body.get("error") {
            error @ Json::Object(_) => Some(Self::read_object(error)),
            Json::Text(message) => Some(Self::told(message)),
            _ if is_error => Some(Self::read_object(body)),
            _ => None,
        }
    }

    /// The error that this object is.
    #[must_use]
    pub fn read_object(error: &Json) -> Self {
        let kind = error.text("type").or(error.text("status")).unwrap_or_default();
        let code = error.text("code").unwrap_or(kind);
        let number = error.number("code").or(error.number("status")).and_then(|number| u16::try_from(number).ok());
        let number =
            number.filter(|number| (400..600).contains(number)).and_then(|number| StatusCode::from_u16(number).ok());
        Self {
            status: number.unwrap_or_else(|| status_of(kind, code)),
            code: if code.is_empty() { "provider_error".to_owned() } else { code.to_owned() },
            message: error.text("message").unwrap_or("the provider tells an error without a message").to_owned(),
            is_told: true,
        }
    }
}

fn status_of(kind: &str, code: &str) -> StatusCode {
    let is = |names: &[&str]| names.contains(&kind) || names.contains(&code);
    if is(&["rate_limit_error", "rate_limit_exceeded", "insufficient_quota", "RESOURCE_EXHAUSTED"]) {
        StatusCode::TOO_MANY_REQUESTS
    } else if is(&["overloaded_error", "UNAVAILABLE", "service_unavailable"]) {
        StatusCode::SERVICE_UNAVAILABLE
    } else if is(&["authentication_error", "invalid_api_key", "UNAUTHENTICATED"]) {
        StatusCode::UNAUTHORIZED
    } else if is(&["permission_error", "PERMISSION_DENIED"]) {
        StatusCode::FORBIDDEN
    } else if is(&["not_found_error", "model_not_found", "NOT_FOUND"]) {
        StatusCode::NOT_FOUND
    } else if is(&["invalid_request_error", "invalid_prompt", "INVALID_ARGUMENT", "request_too_large"]) {
        StatusCode::BAD_REQUEST
    } else {
        StatusCode::BAD_GATEWAY
    }
}

/// A piece of an answer. Calls are numbered from 0 in the order in which they begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// The answer begins.
    Begin {
        /// Its id at the provider; may be empty.
        id: String,
        /// The model that answers; may be empty.
        model: String,
    },
    /// Text that goes on.
    Text(String),
    /// Reasoning that goes on.
    Reasoning(String),
    /// A refusal that goes on.
    Refusal(String),
    /// A tool call begins.
    CallBegin {
        /// Its number.
        call: usize,
        /// Its id; may be empty.
        id: String,
        /// The tool's name.
        name: String,
    },
    /// Arguments of a call go on.
    Arguments {
        /// Its number.
        call: usize,
        /// The next of them.
        text: String,
    },
    /// A call is complete.
    CallEnd {
        /// Its number.
        call: usize,
    },
    /// The tokens so far: replaces what was told before.
    Usage(Usage),
    /// The model stopped.
    Stop {
        /// Why.
        stop: Stop,
        /// Why, in the provider's word.
        told: String,
    },
    /// The provider is there, but has nothing to say.
    KeepAlive,
    /// The answer ends with an error.
    Failed(Failure),
    /// The answer has its proper end.
    End,
}

/// Reads the events of a stream in one dialect.
pub trait ReadStream: Send {
    /// Reads the next event.
    fn read(&mut self, event: &Event, out: &mut Vec<Delta>);

    /// The stream ends: gives the end that a dialect without an end of its own, or a provider that leaves it out, does not send.
    fn finish(&mut self, out: &mut Vec<Delta>);
}

/// The calls of a stream that is being read.
#[derive(Debug, Default)]
pub struct Calls {
    calls: Vec<Call>,
}

#[derive(Debug)]
struct Call {
    arguments: Extent,
    is_ended: bool,
}

impl Calls {
    /// Begins a call and gives its number; none if there are too many.
    pub fn begin(&mut self, id: &str, name: &str, out: &mut Vec<Delta>) -> Option<usize> {
        let call = self.calls.len();
        if call >= CALLS_MAX {
            out.push(Delta::Failed(Failure::bad_answer("the answer has too many tool calls")));
            return None;
        }
        self.calls.push(Call { arguments: Extent::default(), is_ended: false });
        out.push(Delta::CallBegin { call, id: id.to_owned(), name: name.to_owned() });
        Some(call)
    }

    /// More arguments of a call.
    pub fn go_on(&mut self, call: usize, text: &str, out: &mut Vec<Delta>) {
        if let Some(at) = self.calls.get_mut(call).filter(|at| !at.is_ended && !text.is_empty()) {
            at.arguments.read(text);
            out.push(Delta::Arguments { call, text: text.to_owned() });
        }
    }

    /// Whether any arguments of the call have come.
    #[must_use]
    pub fn has_arguments(&self, call: usize) -> bool {
        self.calls.get(call).is_some_and(|call| call.arguments.is_begun)
    }

    /// Whether there has been a call.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Ends a call. One without arguments has an empty object of them.
    pub fn end(&mut self, call: usize, out: &mut Vec<Delta>) {
        if !self.has_arguments(call) {
            self.go_on(call, "{}", out);
        }
        if let Some(at) = self.calls.get_mut(call).filter(|at| !at.is_ended) {
            at.is_ended = true;
            out.push(Delta::CallEnd { call });
        }
    }

    /// Ends every call whose arguments are a complete value, except `current`: for dialects that do not tell the end of a call.
    pub fn end_complete(&mut self, current: Option<usize>, out: &mut Vec<Delta>) {
        for call in 0..self.calls.len() {
            if Some(call) != current && self.calls[call].arguments.is_complete() {
                self.end(call, out);
            }
        }
    }

    /// Ends all calls.
    pub fn end_all(&mut self, out: &mut Vec<Delta>) {
        for call in 0..self.calls.len() {
            self.end(call, out);
        }
    }
}

/// Finds the end of a JSON object or array that comes in pieces.
#[derive(Debug, Default)]
struct Extent {
    depth: u64,
    is_begun: bool,
    is_in_string: bool,
    is_escaped: bool,
}

impl Extent {
    fn read(&mut self, text: &str) {
        for byte in text.bytes() {
            self.is_begun = true;
            match byte {
                _ if std::mem::take(&mut self.is_escaped) => {}
                b'\\' if self.is_in_string => self.is_escaped = true,
                b'"' => self.is_in_string = !self.is_in_string,
                b'{' | b'[' if !self.is_in_string => self.depth += 1,
                b'}' | b']' if !self.is_in_string => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.is_begun && !self.is_in_string && self.depth == 0
    }
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerPart {
    /// Text.
    Text(String),
    /// Reasoning.
    Reasoning(String),
    /// A refusal.
    Refusal(String),
    /// A tool call.
    Call {
        /// Its number.
        call: usize,
        /// Its id.
        id: String,
        /// The tool's name.
        name: String,
        /// Its arguments: JSON, if the model keeps to the rules.
        arguments: String,
    },
}

/// What has been read of an answer so far.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Its id at the provider.
    pub id: String,
    /// The model.
    pub model: String,
    /// What it consists of.
    pub parts: Vec<AnswerPart>,
    /// The tokens.
    pub usage: Option<Usage>,
    /// Why the model stopped, also in the provider's word.
    pub stop: Option<(Stop, String)>,
    /// The error that it ended with.
    pub failure: Option<Failure>,
    /// Whether it has its proper end.
    pub is_complete: bool,
    /// Bytes of `parts`, and what they count for beside.
    bytes: usize,
}

impl Answer {
    /// Adds a delta. False: it would have more than `bytes_max`, and nothing was added.
    pub fn take(&mut self, delta: &Delta, bytes_max: usize) -> bool {
        let more = match delta {
            Delta::Text(text) | Delta::Reasoning(text) | Delta::Refusal(text) | Delta::Arguments { text, .. } => {
                text.len()
            }
            Delta::CallBegin { id, name, .. } => id.len() + name.len(),
            _ => 0,
        };
        let bytes = self.bytes + more + PART_BYTES * usize::from(self.begins_part(delta));
        if bytes > bytes_max {
            return false;
        }
        self.bytes = bytes;
        match delta {
            Delta::Begin { id, model } => (self.id, self.model) = (id.clone(), model.clone()),
            Delta::Text(text) => match self.parts.last_mut() {
                Some(AnswerPart::Text(at)) => at.push_str(text),
                _ => self.parts.push(AnswerPart::Text(text.clone())),
            },
            Delta::Reasoning(text) => match self.parts.last_mut() {
                Some(AnswerPart::Reasoning(at)) => at.push_str(text),
                _ => self.parts.push(AnswerPart::Reasoning(text.clone())),
            },
            Delta::Refusal(text) => match self.parts.last_mut() {
                Some(AnswerPart::Refusal(at)) => at.push_str(text),
                _ => self.parts.push(AnswerPart::Refusal(text.clone())),
            },
            Delta::CallBegin { call, id, name } => {
                let (id, name) = (id.clone(), name.clone());
                self.parts.push(AnswerPart::Call { call: *call, id, name, arguments: String::new() });
            }
            Delta::Arguments { call, text } => {
                let found = self.parts.iter_mut().rev().find_map(|part| match part {
                    AnswerPart::Call { call: at, arguments, .. } if at == call => Some(arguments),
                    _ => None,
                });
                if let Some(arguments) = found {
                    arguments.push_str(text);
                }
            }
            Delta::Usage(usage) => self.usage = Some(*usage),
            Delta::Stop { stop, told } => self.stop = Some((*stop, told.clone())),
            Delta::Failed(failure) => {
                self.failure.get_or_insert_with(|| failure.clone());
            }
            Delta::End => self.is_complete = true,
            Delta::CallEnd { .. } | Delta::KeepAlive => {}
        }
        true
    }

    /// The name of the tool that a call is of; empty if there is no such call.
    #[must_use]
    pub fn tool_of(&self, call: usize) -> &str {
        let name = |part| match part {
            &AnswerPart::Call { call: at, ref name, .. } if at == call => Some(name.as_str()),
            _ => None,
        };
        self.parts.iter().rev().find_map(name).unwrap_or_default()
    }

    /// Whether a delta does not go on with the last part.
    fn begins_part(&self, delta: &Delta) -> bool {
        match (delta, self.parts.last()) {
            (Delta::Text(_), Some(AnswerPart::Text(_)))
            | (Delta::Reasoning(_), Some(AnswerPart::Reasoning(_)))
            | (Delta::Refusal(_), Some(AnswerPart::Refusal(_))) => false,
            (delta, _) => {
                matches!(delta, Delta::Text(_) | Delta::Reasoning(_) | Delta::Refusal(_) | Delta::CallBegin { .. })
            }
        }
    }

    /// Why the model stopped, in agreement with what it wrote: one that wrote calls wants them called, whatever the provider says, and
    /// one that wrote none waits for none.
    #[must_use]
    pub fn stop(&self) -> Stop {
        let has_calls = self.parts.iter().any(|part| matches!(part, AnswerPart::Call { .. }));
        match self.stop.as_ref().map_or(Stop::End, |(stop, _)| *stop) {
            Stop::End | Stop::Sequence if has_calls => Stop::Tools,
            Stop::Tools if !has_calls => Stop::End,
            stop => stop,
        }
    }
}
