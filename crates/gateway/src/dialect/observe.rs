//! Observes an answer on its way: what it used, which tools it calls, how it ended. It changes no byte of it.

use http::StatusCode;
use raworc_core::models::TokenUsage;

use super::Dialect;
use super::intake::Intake;
use super::json::Json;
use super::neutral::{Answer, AnswerPart, Delta};
use crate::ports::ToolCall;
use crate::sse::{self, Block, Blocks};

/// Text and arguments of an answer that are held, in bytes.
pub const HELD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Text of an answer that is told, in bytes.
pub const TEXT_BYTES_MAX: usize = 256 * 1024;
/// The largest chunk of a stream that tells its usage and nothing else, in bytes.
const USAGE_CHUNK_BYTES_MAX: usize = 16 * 1024;

/// What was observed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Tokens, as far as the provider has told.
    pub usage: Option<TokenUsage>,
    /// The tool calls, in their order. Where the answer was cut, the last may be incomplete.
    pub tool_calls: Vec<ToolCall>,
    /// Why the model stopped, in the provider's word.
    pub stop: Option<String>,
    /// The error in the answer, even in one with status 200, or why it can't be read.
    pub error: Option<String>,
    /// The status that fits an error which the provider itself told in the answer; none where the answer can't be read.
    pub told: Option<StatusCode>,
    /// Whether the answer had its end.
    pub is_complete: bool,
    /// The beginning of its text.
    pub text: String,
}

/// Reads an answer beside its bytes.
pub struct Observer {
    intake: Intake,
    answer: Answer,
    is_cut_short: bool,
}

impl Observer {
    /// Observes an answer to a request in that dialect.
    #[must_use]
    pub fn new(dialect: Dialect, is_streaming: bool) -> Self {
        Self { intake: Intake::new(dialect, is_streaming), answer: Answer::default(), is_cut_short: false }
    }

    /// Takes the next bytes of the answer.
    pub fn push(&mut self, bytes: &[u8]) {
        let mut deltas = Vec::new();
        self.intake.push(bytes, &mut deltas);
        self.take(&deltas);
    }

    /// The answer has ended, or was cut off.
    #[must_use]
    pub fn finish(mut self) -> Observed {
        let mut deltas = Vec::new();
        let intake = std::mem::replace(&mut self.intake, Intake::new(Dialect::ChatCompletions, false));
        intake.finish(&mut deltas);
        self.take(&deltas);
        self.observed()
    }

    fn take(&mut self, deltas: &[Delta]) {
        for delta in deltas {
            if !matches!(delta, Delta::Reasoning(_)) && !self.answer.take(delta, HELD_BYTES_MAX) {
                self.is_cut_short = true;
            }
        }
    }

    fn observed(self) -> Observed {
        let cut_short =
            self.is_cut_short.then(|| "the answer has more text and arguments than are observed".to_owned());
        let mut observed = Observed {
            usage: self.answer.usage.map(TokenUsage::from),
            stop: self.answer.stop.map(|(_, told)| told),
            told: self.answer.failure.as_ref().filter(|failure| failure.is_told).map(|failure| failure.status),
            error: self.answer.failure.map(|failure| failure.message).or(cut_short),
            is_complete: self.answer.is_complete,
            ..Observed::default()
        };
        for part in self.answer.parts {
            match part {
                AnswerPart::Text(text) => push_bounded(&mut observed.text, &text),
                AnswerPart::Call { id, name, arguments, .. } => {
                    observed.tool_calls.push(ToolCall { id, name, arguments })
                }
                AnswerPart::Reasoning(_) | AnswerPart::Refusal(_) => {}
            }
        }
        observed
    }
}

fn push_bounded(text: &mut String, more: &str) {
    let mut end = more.len().min(TEXT_BYTES_MAX.saturating_sub(text.len()));
    while !more.is_char_boundary(end) {
        end -= 1;
    }
    text.push_str(&more[..end]);
}

/// Takes out of a stream in chat completions the chunk that tells only its usage: the program did not ask for it, the gateway did
/// ([`Dialect::with_usage_asked`]). Every other byte stays.
pub struct UsageFilter {
    blocks: Blocks,
}

impl Default for UsageFilter {
    fn default() -> Self {
        Self::new()
    }
}

impl UsageFilter {
    /// At the beginning of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self { blocks: Blocks::new(USAGE_CHUNK_BYTES_MAX) }
    }

    /// Takes the next bytes and gives those that may pass: those of complete events, and of events that are too large for such a chunk.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        self.blocks.push(bytes, |block| match block {
            Block::Whole(bytes) if is_usage_only(bytes) => {}
            Block::Whole(bytes) | Block::Part { bytes, .. } => out.extend_from_slice(bytes),
        });
        out
    }

    /// The bytes of an event that the stream did not end.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        let rest = self.blocks.finish();
        if is_usage_only(&rest) { Vec::new() } else { rest }
    }
}

fn is_usage_only(block: &[u8]) -> bool {
    let Some(event) = sse::read(block, false) else { return false };
    if !event.data.contains("\"usage\"") {
        return false;
    }
    let Ok(body) = Json::read(event.data.as_bytes()) else { return false };
    body.get("usage").is_object() && body.get("choices").as_list().is_some_and(<[_]>::is_empty)
}
