//! Keeps the beginning and the end of output that exceeds its limit. The beginning is sent as it comes; the end is
//! held until the work is finished, because that is where most programs report errors.

use std::collections::VecDeque;

use raworc_core::limits::OUTPUT_CHUNK_BYTES_MAX;
use raworc_core::link::OutputStream;

/// How many bytes the tail may exceed its limit before it is trimmed.
const SLACK_BYTES: usize = 64 * 1024;
/// Pieces in the tail at most. Beyond that, the order between stdout and stderr is lost.
const PIECES_MAX: usize = 4096;

/// The beginning and the end of one work's output.
pub struct HeadTailBuffer {
    /// Bytes that may still be sent at once; `None` after something was held back.
    head_left: Option<usize>,
    /// Bytes in the tail at most.
    tail_max: usize,
    tail: VecDeque<(OutputStream, String)>,
    tail_bytes: usize,
    /// Bytes dropped between head and tail, per stream.
    dropped: [u64; 2],
    /// Whether the text sent so far ends with a line feed.
    ends_a_line: bool,
}

impl HeadTailBuffer {
    /// Keeps at most `bytes_max` bytes of text, half of them for the tail.
    pub fn new(bytes_max: usize) -> Self {
        let tail_max = bytes_max / 2;
        Self {
            head_left: Some(bytes_max - tail_max),
            tail_max,
            tail: VecDeque::new(),
            tail_bytes: 0,
            dropped: [0; 2],
            ends_a_line: true,
        }
    }

    /// Adds text and returns the part of it that is to be sent now.
    pub fn add(&mut self, stream: OutputStream, mut text: String) -> String {
        if let Some(left) = self.head_left {
            let rest = text.split_off(text.floor_char_boundary(left));
            self.head_left = rest.is_empty().then(|| left - text.len());
            if let Some(last) = text.bytes().last() {
                self.ends_a_line = last == b'\n';
            }
            self.hold(stream, rest);
            return text;
        }
        self.hold(stream, text);
        String::new()
    }

    /// Whether any text is held back.
    pub fn is_holding(&self) -> bool {
        self.head_left.is_none()
    }

    /// Drops text in excess of the limit, once no more text comes.
    pub fn trim_to_limit(&mut self) {
        self.trim();
    }

    /// Bytes that were dropped. Final after [`Self::trim_to_limit`].
    pub fn dropped_bytes(&self) -> u64 {
        self.dropped.iter().sum()
    }

    /// Returns the tail, preceded by a note of how much was dropped. `whole` is the file that has all of it.
    pub fn finish(&mut self, whole: Option<&str>) -> Vec<(OutputStream, String)> {
        self.trim_to_limit();
        let mut pieces = Vec::new();
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            let bytes = self.dropped[index(stream)];
            if bytes > 0 {
                let line = if self.ends_a_line { "" } else { "\n" };
                self.ends_a_line = true;
                pieces.push((stream, format!("{line}{}\n", omission_note(stream, bytes, whole))));
            }
        }
        self.tail_bytes = 0;
        pieces.extend(std::mem::take(&mut self.tail));
        pieces
    }

    fn hold(&mut self, stream: OutputStream, text: String) {
        if text.is_empty() {
            return;
        }
        self.tail_bytes += text.len();
        let is_full = self.tail.len() >= PIECES_MAX;
        let last = self.tail.len().saturating_sub(1);
        match self.tail.iter().rposition(|(of, _)| *of == stream) {
            Some(at) if is_full || (at == last && self.tail[at].1.len() < OUTPUT_CHUNK_BYTES_MAX) => {
                self.tail[at].1.push_str(&text);
            }
            _ => self.tail.push_back((stream, text)),
        }
        if self.tail_bytes > self.tail_max + SLACK_BYTES {
            self.trim();
        }
    }

    fn trim(&mut self) {
        while self.tail_bytes > self.tail_max
            && let Some((stream, mut text)) = self.tail.pop_front()
        {
            let excess = self.tail_bytes - self.tail_max;
            let cut = text.ceil_char_boundary(excess.min(text.len()));
            self.dropped[index(stream)] += cut as u64;
            self.tail_bytes -= cut;
            if cut < text.len() {
                text.drain(..cut);
                self.tail.push_front((stream, text));
            }
        }
    }
}

fn index(stream: OutputStream) -> usize {
    match stream {
        OutputStream::Stdout => 0,
        OutputStream::Stderr => 1,
    }
}

fn omission_note(stream: OutputStream, bytes: u64, whole: Option<&str>) -> String {
    let name = match stream {
        OutputStream::Stdout => "standard output",
        OutputStream::Stderr => "standard error",
    };
    let whole = whole.map(|whole| format!("; {whole}")).unwrap_or_default();
    format!("[raworc: {bytes} bytes of {name} left out here{whole}]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_kept_whole() {
        let mut kept = HeadTailBuffer::new(8);
        assert_eq!(kept.add(OutputStream::Stdout, "abc".into()), "abc");
        assert_eq!(kept.add(OutputStream::Stderr, "€".into()), "");
        assert_eq!(kept.add(OutputStream::Stdout, "y".into()), "");
        assert!(kept.is_holding());
        assert_eq!(kept.finish(None), [(OutputStream::Stderr, "€".to_owned()), (OutputStream::Stdout, "y".to_owned())]);
        assert_eq!(kept.dropped_bytes(), 0);
    }

    #[test]
    fn beginning_and_end_are_kept_and_nothing_is_miscounted() {
        let letters = ["a", "é", "€", "😀", "\n"];
        for bytes_max in [0, 1, 2, 7, 64, 1000, 300_000] {
            for step in [1, 5, 999, 40_000] {
                let text: String = (0..200_000).map(|n| letters[(n * 7 + n / 11) % 5]).collect();
                let (mut kept, mut head, mut at) = (HeadTailBuffer::new(bytes_max), String::new(), 0);
                while at < text.len() {
                    let end = text.ceil_char_boundary((at + step).min(text.len()));
                    head += &kept.add(OutputStream::Stdout, text[at..end].to_owned());
                    at = end;
                }
                let pieces = kept.finish(Some("see x"));
                let dropped = usize::try_from(kept.dropped_bytes()).unwrap();
                let tail: String = pieces.iter().skip(1).map(|(_, text)| text.as_str()).collect();
                assert!(text.starts_with(&head) && text.ends_with(&tail), "{bytes_max} {step}");
                assert_eq!(head.len() + dropped + tail.len(), text.len(), "{bytes_max} {step}");
                assert!(head.len() + tail.len() <= bytes_max && head.len() + tail.len() + 6 >= bytes_max);
                let said = format!("[raworc: {dropped} bytes of standard output left out here; see x]\n");
                assert_eq!(pieces[0].1.trim_start_matches('\n'), said);
                assert_eq!(pieces[0].1.starts_with('\n'), !head.is_empty() && !head.ends_with('\n'));
                if step == 1 && bytes_max > 1000 {
                    break;
                }
            }
        }
    }

    #[test]
    fn many_small_pieces_stay_few_and_in_their_streams() {
        let mut kept = HeadTailBuffer::new(1 << 20);
        kept.add(OutputStream::Stdout, "x".repeat(1 << 19));
        for _ in 0..20_000 {
            kept.add(OutputStream::Stdout, "o".into());
            kept.add(OutputStream::Stderr, "e".into());
        }
        let pieces = kept.finish(None);
        assert!(pieces.len() <= PIECES_MAX, "{}", pieces.len());
        for (stream, letter) in [(OutputStream::Stdout, "o"), (OutputStream::Stderr, "e")] {
            let text: String = pieces.iter().filter(|(of, _)| *of == stream).map(|(_, text)| text.as_str()).collect();
            assert!(text == letter.repeat(20_000));
        }
    }
}
