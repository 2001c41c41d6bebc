//! What work writes: read as bytes, passed on as text, in pieces that are neither too many nor too large.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use raworc_core::limits::OUTPUT_CHUNK_BYTES_MAX;
use raworc_core::link::Stream;
use rustix::io::{Errno, read};

use crate::head_tail::HeadTailBuffer;
use crate::output_spill::OutputSpill;
use crate::utf8::Decoder;

/// Shortest time between two reports of the same work, unless there is enough for a full one.
const COALESCE: Duration = Duration::from_millis(10);
/// Pieces between two such times: how often the order between the two streams is kept.
const PIECES_MAX: usize = 8;
/// The largest pipe of an unprivileged process, in bytes (pipe(7)).
const PIPE_BYTES_MAX: usize = 1024 * 1024;
/// Room to read into, in bytes.
const BUFFER_BYTES: usize = OUTPUT_CHUNK_BYTES_MAX;

/// Room to read into. It takes memory from its first use on: most hosts only wait.
#[derive(Default)]
pub struct Buffer(Vec<u8>);

impl Buffer {
    /// All of it.
    pub fn room(&mut self) -> &mut [u8] {
        if self.0.is_empty() {
            self.0 = vec![0; BUFFER_BYTES];
        }
        &mut self.0
    }
}

struct Pipe {
    stream: Stream,
    descriptor: OwnedFd,
    decoder: Decoder,
}

/// Both outputs of one piece of work.
pub struct Output {
    pipes: Vec<Pipe>,
    pending: Vec<(Stream, String)>,
    pending_bytes: usize,
    /// When a few bytes may be passed on again.
    flush_at: Instant,
    kept: HeadTailBuffer,
    whole: OutputSpill,
}

impl Output {
    /// From these descriptors, which do not block; at most `bytes_max` bytes of text, and all of it in a file where that is not
    /// enough.
    pub fn new(pipes: Vec<(Stream, OwnedFd)>, bytes_max: usize, whole: OutputSpill, now: Instant) -> Self {
        let pipe = |(stream, descriptor)| Pipe { stream, descriptor, decoder: Decoder::default() };
        Self {
            pipes: pipes.into_iter().map(pipe).collect(),
            pending: Vec::new(),
            pending_bytes: 0,
            flush_at: now,
            kept: HeadTailBuffer::new(bytes_max),
            whole,
        }
    }

    /// What to wait for.
    pub fn descriptors(&self) -> impl Iterator<Item = (Stream, BorrowedFd<'_>)> {
        self.pipes.iter().map(|pipe| (pipe.stream, pipe.descriptor.as_fd()))
    }

    /// When there is something to pass on.
    pub fn next_flush(&self) -> Option<Instant> {
        (!self.pending.is_empty()).then_some(self.flush_at)
    }

    /// Reads once; forgets a pipe that nobody can write to any more.
    pub fn read(&mut self, stream: Stream, buffer: &mut [u8], now: Instant) {
        if let Some(at) = self.pipes.iter().position(|pipe| pipe.stream == stream) {
            self.read_at(at, buffer);
        }
        if self.pending_bytes >= OUTPUT_CHUNK_BYTES_MAX {
            self.flush_at = now;
        }
    }

    /// How many bytes came; none where there is nothing more to be had.
    fn read_at(&mut self, at: usize, buffer: &mut [u8]) -> Option<usize> {
        let pipe = &mut self.pipes[at];
        let stream = pipe.stream;
        let (text, count) = match read(&pipe.descriptor, &mut *buffer) {
            Err(Errno::INTR) => return Some(0),
            Err(Errno::AGAIN) => return None,
            Ok(0) | Err(_) => (self.pipes.remove(at).decoder.finish(), None),
            Ok(count) => (pipe.decoder.decode(&buffer[..count]), Some(count)),
        };
        self.add(stream, text);
        if let Some(count) = count {
            self.whole.add(&buffer[..count], self.kept.is_holding());
        }
        count
    }

    /// Reads what is there at the end of the work, and no more than pipes can hold: processes left running may write for
    /// ever.
    pub fn drain(&mut self, buffer: &mut [u8]) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut total = 0;
            while total <= PIPE_BYTES_MAX
                && let Some(at) = self.pipes.iter().position(|pipe| pipe.stream == stream)
                && let Some(count) = self.read_at(at, buffer)
            {
                total += count;
            }
            let left = self.pipes.iter_mut().find(|pipe| pipe.stream == stream);
            let tail = left.map(|pipe| pipe.decoder.finish()).unwrap_or_default();
            self.add(stream, tail);
        }
    }

    fn add(&mut self, stream: Stream, text: String) {
        let text = self.kept.add(stream, text);
        if text.is_empty() {
            return;
        }
        self.pending_bytes += text.len();
        let last = self.pending.len().saturating_sub(1);
        match self.pending.iter().rposition(|(of, _)| *of == stream) {
            Some(at) if at == last || self.pending.len() >= PIECES_MAX => self.pending[at].1.push_str(&text),
            _ => self.pending.push((stream, text)),
        }
    }

    /// What has come, in pieces of the right size.
    pub fn take(&mut self, now: Instant) -> Vec<(Stream, String)> {
        self.flush_at = now + COALESCE;
        self.pending_bytes = 0;
        let pieces = |(stream, text)| cut(text).into_iter().map(move |text| (stream, text));
        std::mem::take(&mut self.pending).into_iter().flat_map(pieces).collect()
    }

    /// What is left to pass on when there is no more to come, after what [`Output::take`] has: the end of what was too much.
    pub fn finish(&mut self) -> End {
        // Now it is known how much that is.
        self.kept.trim_to_limit();
        let dropped_bytes = self.kept.left_out_bytes();
        let file = self.whole.finish(dropped_bytes > 0);
        let said = file.as_ref().map(|(path, is_whole)| match is_whole {
            true => format!("all of it is in {path}"),
            false => format!("{path} has its beginning"),
        });
        let pieces = |(stream, text)| cut(text).into_iter().map(move |text| (stream, text));
        let pieces = self.kept.finish(said.as_deref()).into_iter().flat_map(pieces).collect();
        End { pieces, dropped_bytes, file: file.map(|(path, _)| path) }
    }

    /// The pipes that somebody can still write to.
    pub fn into_pipes(self) -> impl Iterator<Item = OwnedFd> {
        self.pipes.into_iter().map(|pipe| pipe.descriptor)
    }
}

/// The end of an output.
pub struct End {
    /// What is to be passed on.
    pub pieces: Vec<(Stream, String)>,
    /// Bytes of text that are not.
    pub dropped_bytes: u64,
    /// The file of the workspace that has it all, or as much as could be.
    pub file: Option<String>,
}

/// Cuts a long text between characters.
fn cut(mut text: String) -> Vec<String> {
    let mut pieces = Vec::new();
    while text.len() > OUTPUT_CHUNK_BYTES_MAX {
        let rest = text.split_off(text.floor_char_boundary(OUTPUT_CHUNK_BYTES_MAX));
        pieces.push(std::mem::replace(&mut text, rest));
    }
    pieces.push(text);
    pieces
}

/// Reads and drops; false where nobody can write any more.
pub fn discard(descriptor: &OwnedFd, buffer: &mut [u8]) -> bool {
    !matches!(read(descriptor, buffer), Ok(0) | Err(Errno::IO | Errno::BADF))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(bytes_max: usize) -> Output {
        let work = raworc_core::link::WorkId::Exec(uuid::Uuid::nil());
        Output::new(Vec::new(), bytes_max, OutputSpill::new(std::path::Path::new("/nonexistent"), work), Instant::now())
    }

    #[test]
    fn order_is_kept_and_pieces_are_few() {
        let mut output = output(1_000_000);
        for number in 0..20 {
            output.add(Stream::Stdout, format!("o{number} "));
            output.add(Stream::Stderr, format!("e{number} "));
        }
        let pieces = output.take(Instant::now());
        assert_eq!(pieces.len(), PIECES_MAX);
        assert_eq!(pieces[..3].iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>(), ["o0 ", "e0 ", "o1 "]);
        for (stream, letter) in [(Stream::Stdout, 'o'), (Stream::Stderr, 'e')] {
            let text: String = pieces.iter().filter(|(of, _)| *of == stream).map(|(_, text)| text.as_str()).collect();
            let expected: String = (0..20).map(|number| format!("{letter}{number} ")).collect();
            assert_eq!(text, expected);
        }
        assert_eq!(output.next_flush(), None);
    }

    #[test]
    fn pieces_are_cut_between_characters() {
        let mut output = output(1_000_000);
        let text = "a".to_owned() + &"€".repeat(30_000);
        output.add(Stream::Stdout, text.clone());
        let pieces = output.take(Instant::now());
        assert!(pieces.iter().all(|(_, text)| text.len() <= OUTPUT_CHUNK_BYTES_MAX));
        assert_eq!(pieces.into_iter().map(|(_, text)| text).collect::<String>(), text);
    }

    #[test]
    fn what_is_too_much_is_counted() {
        let mut output = output(8);
        output.add(Stream::Stdout, "a€€".into());
        output.add(Stream::Stderr, "bcde".into());
        assert_eq!(output.take(Instant::now()), [(Stream::Stdout, "a€".to_owned())]);
        let end = output.finish();
        let mark = "\n[raworc: 3 bytes of standard output left out here]\n".to_owned();
        assert_eq!(end.pieces, [(Stream::Stdout, mark), (Stream::Stderr, "bcde".to_owned())]);
        assert_eq!((end.dropped_bytes, end.file), (3, None));
    }
}
