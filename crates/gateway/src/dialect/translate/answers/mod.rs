//! Writes answers, whole and streamed: one file for each dialect.

mod chat;
mod messages;
mod responses;
mod responses_stream;

use super::exchange::Exchange;
use crate::dialect::Dialect;
use crate::dialect::json::Json;
use crate::dialect::neutral::{Answer, Delta};

pub use responses::echo;

/// Writes a stream. Every delta's bytes go out at once.
pub trait WriteStream: Send {
    /// Writes what a delta says. `answer` is all that has come, this delta included. A `Begin` comes before everything else, and nothing
    /// after `End` or `Failed`.
    fn write(&mut self, delta: &Delta, answer: &Answer, out: &mut Vec<u8>);
}

/// Writes a whole answer. Gemini's API is never translated into: `request` refuses it.
pub fn whole(exchange: &Exchange, answer: &Answer) -> Json {
    match exchange.client {
        Dialect::ChatCompletions | Dialect::Gemini => chat::whole(exchange, answer),
        Dialect::Responses => responses::whole(exchange, answer),
        Dialect::Messages => messages::whole(answer),
    }
}

/// Writes a stream.
pub fn stream(exchange: &Exchange) -> Box<dyn WriteStream> {
    match exchange.client {
        Dialect::ChatCompletions | Dialect::Gemini => Box::new(chat::Stream::new(exchange.clone())),
        Dialect::Responses => Box::new(responses_stream::Stream::new(exchange.clone())),
        Dialect::Messages => Box::new(messages::Stream::default()),
    }
}

/// An id with the prefix of a dialect in place of another's.
fn id_with(prefix: &str, id: &str) -> String {
    let prefixes = ["chatcmpl-", "msg_", "resp_"];
    let stem = prefixes.iter().find_map(|prefix| id.strip_prefix(prefix)).unwrap_or(id);
    format!("{prefix}{stem}")
}
