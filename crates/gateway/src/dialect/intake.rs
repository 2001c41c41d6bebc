//! Takes the bytes of an answer, whole or streamed.

use super::Dialect;
use super::neutral::{Delta, Failure, ReadStream};
use super::read;
use crate::sse::{self, Item};

/// The largest answer that is read, in bytes.
pub const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

const TOO_LARGE: &str = "the provider's answer is too large to be read";

/// An answer that comes in pieces. Its first byte tells whether it is a stream, whatever was asked for: a streaming request may be
/// refused with a body, and some servers stream without being asked.
pub struct Intake {
    dialect: Dialect,
    form: Form,
}

enum Form {
    Unknown { is_streaming: bool },
    Body(Vec<u8>),
    Stream(sse::Parser, Box<dyn ReadStream>),
    Unread,
}

impl Intake {
    /// At the beginning of an answer in that dialect.
    pub fn new(dialect: Dialect, is_streaming: bool) -> Self {
        Self { dialect, form: Form::Unknown { is_streaming } }
    }

    /// Takes the next bytes and gives what they say.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<Delta>) {
        if let Form::Unknown { is_streaming } = self.form {
            let Some(first) = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) else { return };
            let is_stream = match first {
                b'{' | b'[' => false,
                b'd' | b'e' | b'i' | b'r' | b':' => true,
                _ => is_streaming,
            };
            self.form = if is_stream {
                Form::Stream(sse::Parser::default(), read::stream(self.dialect))
            } else {
                Form::Body(Vec::new())
            };
        }
        match &mut self.form {
            Form::Unknown { .. } | Form::Unread => {}
            Form::Body(body) if body.len() + bytes.len() > ANSWER_BYTES_MAX => {
                out.push(Delta::Failed(Failure::bad_answer(TOO_LARGE)));
                self.form = Form::Unread;
            }
            Form::Body(body) => body.extend_from_slice(bytes),
            Form::Stream(parser, reader) => parser.push(bytes, |item| match item {
                // Some servers keep a connection alive with events that have nothing in them.
                Item::Event(event) if event.data.trim().is_empty() => out.push(Delta::KeepAlive),
                Item::Event(event) => reader.read(&event, out),
                Item::TooLarge => out.push(Delta::Failed(Failure::bad_answer(TOO_LARGE))),
            }),
        }
    }

    /// No more bytes will come: gives what is left to say.
    pub fn finish(self, out: &mut Vec<Delta>) {
        match self.form {
            Form::Unknown { .. } | Form::Unread => {}
            Form::Body(body) => read::answer(self.dialect, &body, out),
            Form::Stream(parser, mut reader) => {
                if let Some(event) = parser.finish().filter(|event| !event.data.trim().is_empty()) {
                    reader.read(&event, out);
                }
                reader.finish(out);
            }
        }
    }
}
