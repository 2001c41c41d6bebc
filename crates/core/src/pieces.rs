//! What host and server send over the connection of one attachment, after the `welcome`: pieces of streams.
//!
//! A piece is one byte that says what it is, four bytes (big endian) with the length of what follows, and that.

use serde::{Deserialize, Serialize};

use crate::limits::PIECE_BYTES_MAX;
use crate::link::{Ending, OutputStream, Size};

/// Bytes before the content of a piece.
const HEADER_BYTES: usize = 5;

/// One piece, in either direction.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// To the host: for the program's standard input, or typed at its terminal.
    Input(Vec<u8>),
    /// To the host: standard input ends here.
    InputEnd,
    /// To the host: the client's terminal has this size now.
    Resize(Size),
    /// From the host: output; of a terminal, always standard output.
    Output(OutputStream, Vec<u8>),
    /// From the host: the program has ended; nothing follows.
    Ended(Ended),
    /// From the host: the client was too slow, and what it has not seen is no longer kept; nothing follows.
    Lagged,
}

/// How an interactive work ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// How.
    pub ending: Ending,
    /// Why it could not be started, where it could not.
    pub reason: Option<String>,
}

/// Bytes that are no pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are no piece of a stream")]
pub struct BadPiece;

const INPUT: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const INPUT_END: u8 = 3;
const RESIZE: u8 = 4;
const ENDED: u8 = 5;
const LAGGED: u8 = 6;

/// Appends output to `to`, as one piece. At most [`PIECE_BYTES_MAX`] bytes.
pub fn encode_output(stream: OutputStream, bytes: &[u8], to: &mut Vec<u8>) {
    let kind = match stream {
        OutputStream::Stdout => STDOUT,
        OutputStream::Stderr => STDERR,
    };
    encode(kind, bytes, to);
}

fn encode(kind: u8, content: &[u8], to: &mut Vec<u8>) {
    to.push(kind);
    // Callers keep to PIECE_BYTES_MAX, which the other side checks.
    to.extend_from_slice(&u32::try_from(content.len()).unwrap_or(u32::MAX).to_be_bytes());
    to.extend_from_slice(content);
}

impl Piece {
    /// Appends the piece to `to`.
    pub fn encode(&self, to: &mut Vec<u8>) {
        match self {
            Piece::Input(bytes) => encode(INPUT, bytes, to),
            Piece::InputEnd => encode(INPUT_END, &[], to),
            Piece::Resize(size) => {
                let [a, b] = size.columns.to_be_bytes();
                let [c, d] = size.rows.to_be_bytes();
                encode(RESIZE, &[a, b, c, d], to);
            }
            Piece::Output(stream, bytes) => encode_output(*stream, bytes, to),
            // It holds nothing that JSON cannot.
            Piece::Ended(ended) => encode(ENDED, &serde_json::to_vec(ended).unwrap_or_default(), to),
            Piece::Lagged => encode(LAGGED, &[], to),
        }
    }

    fn decode(kind: u8, content: &[u8]) -> Result<Self, BadPiece> {
        match (kind, content) {
            (INPUT, bytes) => Ok(Piece::Input(bytes.to_vec())),
            (STDOUT, bytes) => Ok(Piece::Output(OutputStream::Stdout, bytes.to_vec())),
            (STDERR, bytes) => Ok(Piece::Output(OutputStream::Stderr, bytes.to_vec())),
            (INPUT_END, []) => Ok(Piece::InputEnd),
            (RESIZE, [a, b, c, d]) => {
                Ok(Piece::Resize(Size { columns: u16::from_be_bytes([*a, *b]), rows: u16::from_be_bytes([*c, *d]) }))
            }
            (ENDED, json) => serde_json::from_slice(json).map(Piece::Ended).map_err(|_| BadPiece),
            (LAGGED, []) => Ok(Piece::Lagged),
            _ => Err(BadPiece),
        }
    }
}

/// Makes pieces of bytes as they come.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// How much of `bytes` has become pieces.
    taken: usize,
}

impl Decoder {
    /// Takes bytes that have come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.taken));
        self.bytes.extend_from_slice(bytes);
    }

    /// The next piece; none where it is not whole yet.
    ///
    /// # Errors
    /// Where the bytes are no piece, or a longer one than may be.
    pub fn next_piece(&mut self) -> Result<Option<Piece>, BadPiece> {
        let bytes = &self.bytes[self.taken..];
        let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else { return Ok(None) };
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if length > PIECE_BYTES_MAX {
            return Err(BadPiece);
        }
        let Some(content) = rest.get(..length) else { return Ok(None) };
        let piece = Piece::decode(header[0], content)?;
        self.taken += HEADER_BYTES + length;
        Ok(Some(piece))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn piece() -> impl Strategy<Value = Piece> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..100);
        prop_oneof![
            bytes().prop_map(Piece::Input),
            Just(Piece::InputEnd),
            any::<(u16, u16)>().prop_map(|(columns, rows)| Piece::Resize(Size { columns, rows })),
            bytes().prop_map(|bytes| Piece::Output(OutputStream::Stdout, bytes)),
            bytes().prop_map(|bytes| Piece::Output(OutputStream::Stderr, bytes)),
            (any::<i32>(), any::<Option<String>>())
                .prop_map(|(status, reason)| Piece::Ended(Ended { ending: Ending::Exited(status), reason })),
            Just(Piece::Lagged),
        ]
    }

    proptest! {
        #[test]
        fn pieces_arrive_as_they_were_sent_however_they_are_cut(
            pieces in proptest::collection::vec(piece(), 0..20),
            step in 1_usize..50,
        ) {
            let mut bytes = Vec::new();
            pieces.iter().for_each(|piece| piece.encode(&mut bytes));
            let (mut decoder, mut arrived) = (Decoder::default(), Vec::new());
            for part in bytes.chunks(step) {
                decoder.push(part);
                while let Some(piece) = decoder.next_piece().unwrap() {
                    arrived.push(piece);
                }
            }
            prop_assert_eq!(arrived, pieces);
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_piece() {}
        }
    }

    #[test]
    fn what_is_no_piece_is_refused() {
        let refused = |bytes: &[u8]| {
            let mut decoder = Decoder::default();
            decoder.push(bytes);
            decoder.next_piece()
        };
        for bad in [
            &[9, 0, 0, 0, 0][..],
            &[INPUT, 0xff, 0xff, 0xff, 0xff],
            &[INPUT, 0, 1, 0, 1],
            &[RESIZE, 0, 0, 0, 1, 0],
            &[INPUT_END, 0, 0, 0, 1, 0],
            &[ENDED, 0, 0, 0, 2, b'{', b'}'],
        ] {
            assert_eq!(refused(bad), Err(BadPiece), "{bad:?}");
        }
        assert_eq!(refused(&[INPUT, 0, 1, 0, 0]), Ok(None), "the longest one is still coming");
    }
}
