//! What is kept of work's output where there is more of it than may be kept: the beginning, which is passed on as it comes,
//! and the end, which is held back until there is no more. What went wrong is said at the end, as a rule.

use std::collections::VecDeque;

use raworc_core::limits::OUTPUT_CHUNK_BYTES_MAX;
use raworc_core::link::Stream;

/// What the end may be too long by, in bytes, before it is cut: not at every piece.
const SLACK_BYTES: usize = 64 * 1024;
/// Pieces of the end. Beyond that, the order between the streams is not kept.
const PIECES_MAX: usize = 4096;

/// Beginning and end of what one piece of work writes.
pub struct HeadTailBuffer {
    /// Bytes that may still be passed on; none once something was held back.
    head_left: Option<usize>,
    /// Bytes of the end.
    tail_max: usize,
    tail: VecDeque<(Stream, String)>,
    tail_bytes: usize,
    /// Bytes between the two, of each stream.
    left_out: [u64; 2],
    /// Whether what was passed on ends with a whole line.
    ends_a_line: bool,
}

impl HeadTailBuffer {
    /// At most `bytes_max` bytes of text, half of them for the end.
    pub fn new(bytes_max: usize) -> Self {
        let tail_max = bytes_max / 2;
        Self {
            head_left: Some(bytes_max - tail_max),
            tail_max,
            tail: VecDeque::new(),
            tail_bytes: 0,
            left_out: [0; 2],
            ends_a_line: true,
        }
    }

    /// Takes what came; what of it is to be passed on now.
    pub fn add(&mut self, stream: Stream, mut text: String) -> String {
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

    /// Whether something was held back.
    pub fn is_holding(&self) -> bool {
        self.head_left.is_none()
    }

    /// There is no more: what is too much is left out now.
    pub fn trim_to_limit(&mut self) {
        self.trim();
    }

    /// Bytes that are not kept, once it is settled.
    pub fn left_out_bytes(&self) -> u64 {
        self.left_out.iter().sum()
    }

    /// What was held back, now that there is no more, with a mark of what is missing before it.
    pub fn finish(&mut self, whole: Option<&str>) -> Vec<(Stream, String)> {
        self.trim_to_limit();
        let mut pieces = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let bytes = self.left_out[place(stream)];
            if bytes > 0 {
                let line = if self.ends_a_line { "" } else { "\n" };
                self.ends_a_line = true;
                pieces.push((stream, format!("{line}{}\n", mark(stream, bytes, whole))));
            }
        }
        self.tail_bytes = 0;
        pieces.extend(std::mem::take(&mut self.tail));
        pieces
    }

    fn hold(&mut self, stream: Stream, text: String) {
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
            self.left_out[place(stream)] += cut as u64;
            self.tail_bytes -= cut;
            if cut < text.len() {
                text.drain(..cut);
                self.tail.push_front((stream, text));
            }
        }
    }
}

fn place(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

fn mark(stream: Stream, bytes: u64, whole: Option<&str>) -> String {
    let name = match stream {
        Stream::Stdout => "standard output",
        Stream::Stderr => "standard error",
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
        assert_eq!(kept.add(Stream::Stdout, "abc".into()), "abc");
        assert_eq!(kept.add(Stream::Stderr, "€".into()), "");
        assert_eq!(kept.add(Stream::Stdout, "y".into()), "");
        assert!(kept.is_holding());
        assert_eq!(kept.finish(None), [(Stream::Stderr, "€".to_owned()), (Stream::Stdout, "y".to_owned())]);
        assert_eq!(kept.left_out_bytes(), 0);
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
                    head += &kept.add(Stream::Stdout, text[at..end].to_owned());
                    at = end;
                }
                let pieces = kept.finish(Some("see x"));
                let left_out = usize::try_from(kept.left_out_bytes()).unwrap();
                let tail: String = pieces.iter().skip(1).map(|(_, text)| text.as_str()).collect();
                assert!(text.starts_with(&head) && text.ends_with(&tail), "{bytes_max} {step}");
                assert_eq!(head.len() + left_out + tail.len(), text.len(), "{bytes_max} {step}");
                assert!(head.len() + tail.len() <= bytes_max && head.len() + tail.len() + 6 >= bytes_max);
                let said = format!("[raworc: {left_out} bytes of standard output left out here; see x]\n");
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
        kept.add(Stream::Stdout, "x".repeat(1 << 19));
        for _ in 0..20_000 {
            kept.add(Stream::Stdout, "o".into());
            kept.add(Stream::Stderr, "e".into());
        }
        let pieces = kept.finish(None);
        assert!(pieces.len() <= PIECES_MAX, "{}", pieces.len());
        for (stream, letter) in [(Stream::Stdout, "o"), (Stream::Stderr, "e")] {
            let text: String = pieces.iter().filter(|(of, _)| *of == stream).map(|(_, text)| text.as_str()).collect();
            assert!(text == letter.repeat(20_000));
        }
    }
}
