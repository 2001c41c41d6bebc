//! Decodes UTF-8 piece by piece: no character is split, and invalid bytes become U+FFFD.

/// Keeps an incomplete character between two pieces.
#[derive(Default)]
pub struct Decoder {
    rest: Vec<u8>,
}

impl Decoder {
    /// Returns the text of all complete characters.
    pub fn decode(&mut self, bytes: &[u8]) -> String {
        self.rest.extend_from_slice(bytes);
        let whole = self.rest.len() - incomplete_tail(&self.rest);
        let text = String::from_utf8_lossy(&self.rest[..whole]).into_owned();
        self.rest.drain(..whole);
        text
    }

    /// Returns U+FFFD for a character that stayed incomplete.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.rest)).into_owned()
    }
}

/// How many bytes at the end are an incomplete character (at most 3).
fn incomplete_tail(bytes: &[u8]) -> usize {
    for length in 1..=bytes.len().min(3) {
        let tail = &bytes[bytes.len() - length..];
        let needed = match tail[0] {
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            0x80..=0xBF => continue,
            _ => return 0,
        };
        // `error_len` is `None` if more bytes could make it valid.
        let could_be = std::str::from_utf8(tail).is_err_and(|error| error.error_len().is_none());
        return if length < needed && could_be { length } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_split_gives_the_same_text() {
        let samples: [&[u8]; 5] = ["aé€😀z".as_bytes(), b"\xff\xfeok", b"\xe2\x82", b"\xf0\x9f\x98", b"\xe2\x82A\xc3"];
        for sample in samples {
            let expected = String::from_utf8_lossy(sample);
            for split in 0..=sample.len() {
                let mut decoder = Decoder::default();
                let mut text = decoder.decode(&sample[..split]);
                text.push_str(&decoder.decode(&sample[split..]));
                text.push_str(&decoder.finish());
                assert_eq!(text, expected, "{sample:?} split at {split}");
            }
        }
    }

    #[test]
    fn a_character_waits_for_its_end() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.decode(b"a\xe2\x82"), "a");
        assert_eq!(decoder.decode(b"\xac"), "€");
    }
}
