//! Passes the events of a stream on as they come, but none in part: so whatever happens next, an error can follow as an event of its
//! own. A client can do nothing with a part of an event.

use bytes::{Bytes, BytesMut};
use memchr::memrchr_iter;

/// The longest event, in bytes, that is passed on as a whole; of a longer one, parts are.
const EVENT_BYTES_MAX: usize = 256 * 1024;

/// Holds back the beginning of an event until its end comes.
#[derive(Default)]
pub struct WholeEvents {
    held: BytesMut,
    /// A part of an event that is too long has been passed on.
    is_in_event: bool,
}

impl WholeEvents {
    /// Takes a piece; returns what may be passed on.
    pub fn push(&mut self, piece: Bytes) -> Bytes {
        if self.held.is_empty() && end_of_events(&piece) == piece.len() {
            self.is_in_event &= piece.is_empty();
            return piece;
        }
        self.held.extend_from_slice(&piece);
        let end = end_of_events(&self.held);
        if end > 0 {
            self.is_in_event = false;
        } else if self.held.len() > EVENT_BYTES_MAX {
            self.is_in_event = true;
            return self.held.split().freeze();
        }
        self.held.split_to(end).freeze()
    }

    /// What is left at the regular end of a stream.
    pub fn finish(&mut self) -> Bytes {
        self.held.split().freeze()
    }

    /// What has to come before an event of ours after an irregular end: the incomplete event is dropped.
    pub fn abandon(&mut self) -> &'static [u8] {
        self.held.clear();
        if self.is_in_event { b"\n\n" } else { b"" }
    }
}

/// Where the last blank line ends: `\n\n`, `\r\n\r\n` or `\r\r`. A `\r\n` that is cut between its bytes waits for the next piece.
fn end_of_events(bytes: &[u8]) -> usize {
    let ends_line_before = |at: usize| matches!(bytes[..at], [.., b'\n' | b'\r']);
    let newline = memrchr_iter(b'\n', bytes).find(|&at| {
        let start = if at > 0 && bytes[at - 1] == b'\r' { at - 1 } else { at };
        ends_line_before(start)
    });
    let end = newline.map_or(0, |at| at + 1);
    // Lines that end with `\r` alone are so rare that they are looked for in what has no other end.
    let returns = || memrchr_iter(b'\r', bytes).find(|&at| at > 0 && bytes[at - 1] == b'\r').map_or(0, |at| at + 1);
    if end > 0 { end } else { returns() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pushed(pieces: &[&str]) -> (Vec<String>, WholeEvents) {
        let mut events = WholeEvents::default();
        let passed = pieces.iter().map(|piece| events.push(Bytes::copy_from_slice(piece.as_bytes())));
        let passed = passed.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect();
        (passed, events)
    }

    #[test]
    fn events_pass_as_a_whole() {
        for (pieces, expected) in [
            (vec!["data: a\n\n"], vec!["data: a\n\n"]),
            (vec!["data: a\r\n\r\n"], vec!["data: a\r\n\r\n"]),
            (vec!["data: a\r\r", "data: b\r\r"], vec!["data: a\r\r", "data: b\r\r"]),
            (
                vec!["data: a", "\n", "\ndata: b\n\nda", "ta: c\n\n"],
                vec!["", "", "data: a\n\ndata: b\n\n", "data: c\n\n"],
            ),
            (vec!["data: a\r\n\r", "\ndata: b\r\n"], vec!["", "data: a\r\n\r\n"]),
            (vec!["", "data: a\n\n", ""], vec!["", "data: a\n\n", ""]),
        ] {
            assert_eq!(pushed(&pieces).0, expected, "{pieces:?}");
        }
    }

    #[test]
    fn a_stream_of_any_cut_passes_in_whole() {
        let text = "event: a\ndata: 1\n\n: comment\n\ndata: ü\r\n\r\ndata: end\n\ntail";
        for size in 1..text.len() {
            let mut events = WholeEvents::default();
            let mut got = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                got.extend_from_slice(&events.push(Bytes::copy_from_slice(piece)));
            }
            got.extend_from_slice(&events.finish());
            assert_eq!(String::from_utf8_lossy(&got), text, "{size}");
        }
    }

    #[test]
    fn what_is_incomplete_is_dropped_before_an_error() {
        let (_, mut events) = pushed(&["data: a\n\ndata: {\"b"]);
        assert_eq!(events.abandon(), b"");
        assert!(events.finish().is_empty());
        let long = "x".repeat(EVENT_BYTES_MAX + 1);
        let (passed, mut events) = pushed(&[&long]);
        assert_eq!(passed, [long], "an event without an end is not kept");
        assert_eq!(events.abandon(), b"\n\n");
    }
}
