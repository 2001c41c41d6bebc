//! Server-sent events, taken apart as their bytes arrive.
//!
//! [`Blocks`] finds where an event ends and keeps its exact bytes; [`Parser`] reads what is in it. Lines may end in LF, CRLF or CR, and
//! bytes may arrive in pieces of any size: a piece may end within a character or between CR and LF.

/// The largest event that is read, in bytes. What is larger is reported as such, and never held as a whole.
pub const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Room for events that is kept from one to the next, in bytes.
const KEPT_ROOM_BYTES: usize = 64 * 1024;

/// Bytes of an event, with the empty line that ends it.
#[derive(Debug, PartialEq, Eq)]
pub enum Block<'a> {
    /// All of them.
    Whole(&'a [u8]),
    /// Some of an event that is too large to be held. Its parts follow each other without gaps.
    Part {
        /// The bytes.
        bytes: &'a [u8],
        /// Whether the event begins here.
        is_first: bool,
    },
}

/// Splits a stream into its events without changing a byte.
#[derive(Debug)]
pub struct Blocks {
    held: Vec<u8>,
    bytes_max: usize,
    is_too_large: bool,
    is_line_empty: bool,
    is_after_cr: bool,
}

impl Blocks {
    /// Events larger than `bytes_max` are given in parts.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { held: Vec::new(), bytes_max, is_too_large: false, is_line_empty: true, is_after_cr: false }
    }

    /// Takes the next bytes and gives every event that they complete to `take`.
    pub fn push(&mut self, bytes: &[u8], mut take: impl FnMut(Block<'_>)) {
        let mut begin = 0;
        for (at, &byte) in bytes.iter().enumerate() {
            if self.ends_with(byte) {
                self.end(&bytes[begin..=at], &mut take);
                begin = at + 1;
            }
        }
        self.hold(&bytes[begin..], &mut take);
    }

    /// The bytes of an event that has not ended, when none will follow.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.held
    }

    /// Whether an event ends with this byte. A line that CR has ended goes on for one byte if that is LF; where the line was the empty
    /// one, LF becomes the first byte of the next event, in which it means nothing.
    fn ends_with(&mut self, byte: u8) -> bool {
        let is_after_cr = std::mem::replace(&mut self.is_after_cr, byte == b'\r');
        if byte == b'\n' && is_after_cr {
            return false;
        }
        let is_line_end = matches!(byte, b'\n' | b'\r');
        let was_line_empty = std::mem::replace(&mut self.is_line_empty, is_line_end);
        is_line_end && was_line_empty
    }

    fn end(&mut self, bytes: &[u8], take: &mut impl FnMut(Block<'_>)) {
        if std::mem::take(&mut self.is_too_large) {
            take(Block::Part { bytes, is_first: false });
        } else if self.held.is_empty() && bytes.len() <= self.bytes_max {
            take(Block::Whole(bytes));
        } else {
            self.held.extend_from_slice(bytes);
            let bytes = self.held.as_slice();
            let is_whole = bytes.len() <= self.bytes_max;
            take(if is_whole { Block::Whole(bytes) } else { Block::Part { bytes, is_first: true } });
            self.held.clear();
            self.held.shrink_to(KEPT_ROOM_BYTES);
        }
    }

    fn hold(&mut self, bytes: &[u8], take: &mut impl FnMut(Block<'_>)) {
        if bytes.is_empty() {
            return;
        }
        if self.is_too_large {
            take(Block::Part { bytes, is_first: false });
            return;
        }
        self.held.extend_from_slice(bytes);
        if self.held.len() > self.bytes_max {
            take(Block::Part { bytes: &self.held, is_first: true });
            self.held = Vec::new();
            self.is_too_large = true;
        }
    }
}

/// An event that has data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The value of its `event` field; empty without one.
    pub name: String,
    /// The values of its `data` fields, one a line.
    pub data: String,
}

/// What a stream consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// An event.
    Event(Event),
    /// An event that is larger than [`EVENT_BYTES_MAX`]; its content is skipped.
    TooLarge,
}

/// Reads the events of a stream.
#[derive(Debug)]
pub struct Parser {
    blocks: Blocks,
    is_begun: bool,
}

impl Default for Parser {
    fn default() -> Self {
        Self::with_bytes_max(EVENT_BYTES_MAX)
    }
}

impl Parser {
    fn with_bytes_max(bytes_max: usize) -> Self {
        Self { blocks: Blocks::new(bytes_max), is_begun: false }
    }

    /// Takes the next bytes and gives every event that they complete to `take`.
    pub fn push(&mut self, bytes: &[u8], mut take: impl FnMut(Item)) {
        let is_begun = &mut self.is_begun;
        self.blocks.push(bytes, |block| {
            let is_begun = std::mem::replace(is_begun, true);
            match block {
                Block::Whole(bytes) => {
                    if let Some(event) = read(bytes, is_begun) {
                        take(Item::Event(event));
                    }
                }
                Block::Part { is_first: true, .. } => take(Item::TooLarge),
                Block::Part { is_first: false, .. } => {}
            }
        });
    }

    /// The last event of a stream that ends without the empty line behind it, as those of some providers do.
    #[must_use]
    pub fn finish(self) -> Option<Event> {
        let bytes = self.blocks.finish();
        read(&bytes, self.is_begun)
    }
}

/// Reads one event. Comments, `id` and `retry` are skipped; an event without data is none.
#[must_use]
pub fn read(block: &[u8], is_begun: bool) -> Option<Event> {
    let text = String::from_utf8_lossy(block);
    let text = if is_begun { &text } else { text.strip_prefix('\u{feff}').unwrap_or(&text) };
    let mut name = "";
    let mut data: Option<String> = None;
    for line in text.split(['\n', '\r']) {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match (field, &mut data) {
            ("event", _) => name = value,
            ("data", Some(data)) => {
                data.push('\n');
                data.push_str(value);
            }
            ("data", data) => *data = Some(value.to_owned()),
            _ => {}
        }
    }
    data.map(|data| Event { name: name.to_owned(), data })
}

/// Writes an event. `data` is one line; without a name the event has only data.
pub fn write(out: &mut Vec<u8>, name: Option<&str>, data: &str) {
    if let Some(name) = name {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(name.as_bytes());
        out.push(b'\n');
    }
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(data.as_bytes());
    out.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use eventsource_stream::Eventsource;
    use futures::StreamExt;
    use proptest::prelude::*;

    fn items(pieces: &[&[u8]], bytes_max: usize) -> Vec<Item> {
        let mut parser = Parser::with_bytes_max(bytes_max);
        let mut items = Vec::new();
        for piece in pieces {
            parser.push(piece, |item| items.push(item));
        }
        items
    }

    fn event(name: &str, data: &str) -> Item {
        Item::Event(Event { name: name.to_owned(), data: data.to_owned() })
    }

    #[test]
    fn events_of_streams() {
        for (stream, expected) in [
            ("data: a\n\n", vec![event("", "a")]),
            ("event: x\ndata:a\n\n", vec![event("x", "a")]),
            ("event: x\r\ndata: a\r\n\r\ndata: b\r\n\r\n", vec![event("x", "a"), event("", "b")]),
            ("event: x\rdata: a\r\rdata: b\r\r", vec![event("x", "a"), event("", "b")]),
            ("data: a\ndata:  b\ndata\n\n", vec![event("", "a\n b\n")]),
            (": comment\n\n:\n\ndata: a\n\n", vec![event("", "a")]),
            ("id: 1\nretry: 5\nother: x\n\n", vec![]),
            ("\u{feff}data: a\n\n\u{feff}data: b\n\n", vec![event("", "a")]),
            ("data: {\"a\":\"b: c\"}\n\n\n\n\n", vec![event("", "{\"a\":\"b: c\"}")]),
            ("data:\n\n", vec![event("", "")]),
            ("data: not ended\n", vec![]),
        ] {
            assert_eq!(items(&[stream.as_bytes()], 1000), expected, "{stream:?}");
        }
    }

    #[test]
    fn a_last_event_without_its_empty_line_counts_at_the_end() {
        let mut parser = Parser::default();
        parser.push(b"data: a", |item| panic!("{item:?}"));
        assert_eq!(parser.finish(), Some(Event { name: String::new(), data: "a".to_owned() }));
    }

    #[test]
    fn an_event_that_is_too_large_is_told_and_never_held() {
        let large = vec![b'x'; 100];
        let pieces: [&[u8]; 6] = [b"data: a\n\ndata: ", &large, &large, b"\nevent: x\n", b"\n", b"data: b\n\n"];
        assert_eq!(items(&pieces, 50), [event("", "a"), Item::TooLarge, event("", "b")]);
        let mut parser = Parser::with_bytes_max(50);
        for _ in 0..1000 {
            parser.push(&large, |_| {});
            assert!(parser.blocks.held.capacity() <= 256);
        }
        // In one piece, too.
        assert_eq!(items(&[&pieces.concat()], 50), [event("", "a"), Item::TooLarge, event("", "b")]);
    }

    /// Lines as streams have them, and some that no stream should have.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            "data: ?[a-z\u{e4}\u{20ac}\u{1f600}{}:\" ]{0,20}",
            "(event|id|retry|other): ?[a-z]{0,5}",
            ":[a-z]{0,5}",
            Just(String::new()),
            Just("data".to_owned()),
        ];
        let end = prop_oneof![Just("\n"), Just("\r\n"), Just("\r"), Just("\n\n"), Just("\r\n\r\n")];
        proptest::collection::vec((line, end), 0..30)
            .prop_map(|lines| lines.into_iter().map(|(line, end)| line + end).collect::<String>().into_bytes())
    }

    fn pieces<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([0, bytes.len()]).collect();
        cuts.sort_unstable();
        cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_events(
            bytes in prop_oneof![stream(), proptest::collection::vec(any::<u8>(), 0..200)],
            cuts in proptest::collection::vec(any::<usize>(), 0..20),
            bytes_max in prop_oneof![Just(1000), 1_usize..60],
        ) {
            let pieces = pieces(&bytes, &cuts);
            prop_assert_eq!(items(&pieces, bytes_max), items(&[&bytes], bytes_max));
            // No byte is lost or changed.
            let mut blocks = Blocks::new(bytes_max);
            let mut passed = Vec::new();
            for piece in pieces {
                blocks.push(piece, |block| match block {
                    Block::Whole(bytes) | Block::Part { bytes, .. } => passed.extend_from_slice(bytes),
                });
            }
            passed.extend(blocks.finish());
            prop_assert_eq!(passed, bytes);
        }

        #[test]
        fn events_are_those_of_another_parser(mut bytes in stream()) {
            // The other parser waits for what follows a CR.
            bytes.extend_from_slice(b":\n");
            let ours: Vec<_> = items(&[&bytes], 10_000).into_iter().map(|item| match item {
                Item::Event(event) => (event.name, event.data),
                Item::TooLarge => panic!("too large"),
            }).collect();
            let stream = futures::stream::iter([Ok::<_, std::io::Error>(bytes.clone())]).eventsource();
            let theirs: Vec<_> = futures::executor::block_on(stream.collect::<Vec<_>>());
            let theirs: Vec<_> = theirs.into_iter().map(|event| {
                let event = event.unwrap();
                (if event.event == "message" { String::new() } else { event.event }, event.data)
            }).collect();
            prop_assert_eq!(ours, theirs);
        }
    }
}
