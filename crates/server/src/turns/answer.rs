//! An answer of a model while it comes.

use raworc_gateway::dialect::{Dialect, Observed, Observer};
use raworc_gateway::sse;
use serde_json::Value;

/// Reads the stream of an answer in the form of chat completions.
pub struct AnswerReader {
    events: sse::Parser,
    observer: Observer,
}

impl AnswerReader {
    /// Nothing has come yet.
    pub fn new() -> Self {
        Self { events: sse::Parser::default(), observer: Observer::new(Dialect::ChatCompletions, true) }
    }

    /// Takes some bytes; the text that the model has written in them.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.observer.push(bytes);
        let mut text = String::new();
        self.events.push(bytes, |item| {
            let sse::Item::Event(event) = item else { return };
            // The last one, `[DONE]`, is no JSON.
            let Ok(chunk) = serde_json::from_str::<Value>(&event.data) else { return };
            text.push_str(chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        });
        text
    }

    /// What the whole answer says.
    pub fn finish(self) -> Observed {
        self.observer.finish()
    }
}
