//! Translates streams.

use super::answers::{self, WriteStream};
use super::freeform::Freeform;
use super::{Exchange, fill_in};
use crate::dialect::intake::{ANSWER_BYTES_MAX, Intake};
use crate::dialect::neutral::{Answer, Delta, Failure};

/// Translates a streamed answer while it comes. Bytes in give the bytes that they become, at once.
pub struct StreamTranslator {
    exchange: Exchange,
    intake: Intake,
    writer: Box<dyn WriteStream>,
    answer: Answer,
    freeform: Freeform,
    is_begun: bool,
    is_ended: bool,
}

impl StreamTranslator {
    /// At the beginning of the answer of an exchange.
    #[must_use]
    pub fn new(exchange: &Exchange) -> Self {
        Self {
            intake: Intake::new(exchange.provider, true),
            writer: answers::stream(exchange),
            exchange: exchange.clone(),
            answer: Answer::default(),
            freeform: Freeform::default(),
            is_begun: false,
            is_ended: false,
        }
    }

    /// Takes the next bytes of the provider and gives those for the client.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let (mut deltas, mut out) = (Vec::new(), Vec::new());
        self.intake.push(bytes, &mut deltas);
        for delta in deltas {
            self.take(delta, &mut out);
        }
        out
    }

    /// No more bytes come: gives what is left. A stream that was cut ends with an error, and never looks as if it were complete.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        let (mut deltas, mut out) = (Vec::new(), Vec::new());
        let intake = std::mem::replace(&mut self.intake, Intake::new(self.exchange.provider, true));
        intake.finish(&mut deltas);
        deltas.push(Delta::Failed(Failure::bad_answer("the provider's stream ended before the answer did")));
        for delta in deltas {
            self.take(delta, &mut out);
        }
        out
    }

    fn take(&mut self, delta: Delta, out: &mut Vec<u8>) {
        let is_begin = matches!(delta, Delta::Begin { .. });
        if self.is_ended || (is_begin && self.is_begun) {
            return;
        }
        if !std::mem::replace(&mut self.is_begun, true) && !is_begin {
            self.write(Delta::Begin { id: String::new(), model: String::new() }, out);
        }
        let mut passed = Vec::new();
        self.freeform.take(&self.exchange, delta, |delta| passed.push(delta));
        for delta in passed {
            self.write(delta, out);
        }
    }

    fn write(&mut self, mut delta: Delta, out: &mut Vec<u8>) {
        fill_in(&mut delta, &self.exchange.model);
        if !self.answer.take(&delta, ANSWER_BYTES_MAX) {
            delta = Delta::Failed(Failure::bad_answer("the provider's answer is too large to be translated"));
        }
        self.is_ended = matches!(delta, Delta::End | Delta::Failed(_));
        self.writer.write(&delta, &self.answer, out);
    }
}
