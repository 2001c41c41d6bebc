//! Reads the output of work as bytes and reports it as text, in pieces of bounded size and rate.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use raworc_core::limits::OUTPUT_CHUNK_BYTES_MAX;
use raworc_core::link::OutputStream;
use rustix::io::{Errno, read};

use crate::head_tail::HeadTailBuffer;
use crate::output_spill::OutputSpill;
use crate::utf8::Decoder;

/// Shortest time between two reports of one work, unless a full chunk is ready.
const COALESCE: Duration = Duration::from_millis(10);
/// Pieces per report at most, which bounds how often the order between stdout and stderr is kept.
const PIECES_MAX: usize = 8;
/// The largest pipe of an unprivileged process, in bytes (pipe(7)).
const PIPE_BYTES_MAX: usize = 1024 * 1024;
/// Size of the buffer for reading, in bytes.
const BUFFER_BYTES: usize = OUTPUT_CHUNK_BYTES_MAX;

/// A buffer for reading that is allocated at its first use, because most hosts only wait.
#[derive(Default)]
pub struct Buffer(Vec<u8>);

impl Buffer {
    /// The whole buffer.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        if self.0.is_empty() {
            self.0 = vec![0; BUFFER_BYTES];
        }
        &mut self.0
    }
}

struct Pipe {
    stream: OutputStream,
    descriptor: OwnedFd,
    decoder: Decoder,
}

/// Stdout and stderr of one work.
pub struct Output {
    pipes: Vec<Pipe>,
    pending: Vec<(OutputStream, String)>,
    pending_bytes: usize,
    /// When the next report may be sent although the chunk is not full.
    flush_at: Instant,
    kept: HeadTailBuffer,
    whole: OutputSpill,
}

impl Output {
    /// Reads from these non-blocking descriptors and keeps at most `bytes_max` bytes of text; beyond that, all of it
    /// goes to the file `whole`.
    pub fn new(pipes: Vec<(OutputStream, OwnedFd)>, bytes_max: usize, whole: OutputSpill, now: Instant) -> Self {
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

    /// The descriptors to poll.
    pub fn descriptors(&self) -> impl Iterator<Item = (OutputStream, BorrowedFd<'_>)> {
        self.pipes.iter().map(|pipe| (pipe.stream, pipe.descriptor.as_fd()))
    }

    /// When there is output to report.
    pub fn next_flush(&self) -> Option<Instant> {
        (!self.pending.is_empty()).then_some(self.flush_at)
    }

    /// Reads once; drops a pipe without writers.
    pub fn read(&mut self, stream: OutputStream, buffer: &mut [u8], now: Instant) {
        if let Some(at) = self.pipes.iter().position(|pipe| pipe.stream == stream) {
            self.read_at(at, buffer);
        }
        if self.pending_bytes >= OUTPUT_CHUNK_BYTES_MAX {
            self.flush_at = now;
        }
    }

    /// Reads into `buffer`. Returns how many bytes came, or `None` at the end of the pipe.
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

    /// Reads what is in the pipes when the work ends. The amount is bounded, because background processes may keep
    /// writing.
    pub fn drain(&mut self, buffer: &mut [u8]) {
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
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

    fn add(&mut self, stream: OutputStream, text: String) {
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

    /// Takes the text to report now, in pieces of bounded size.
    pub fn take(&mut self, now: Instant) -> Vec<(OutputStream, String)> {
        self.flush_at = now + COALESCE;
        self.pending_bytes = 0;
        let pieces = |(stream, text)| cut(text).into_iter().map(move |text| (stream, text));
        std::mem::take(&mut self.pending).into_iter().flat_map(pieces).collect()
    }

    /// Returns the rest after [`Output::take`], when no more output comes: the tail, and what was dropped.
    pub fn finish(&mut self) -> FinalOutput {
        // The amount is final now.
        self.kept.trim_to_limit();
        let dropped_bytes = self.kept.dropped_bytes();
        let file = self.whole.finish(dropped_bytes > 0);
        let said = file.as_ref().map(|(path, is_whole)| match is_whole {
            true => format!("all of it is in {path}"),
            false => format!("{path} has its beginning"),
        });
        let pieces = |(stream, text)| cut(text).into_iter().map(move |text| (stream, text));
        let pieces = self.kept.finish(said.as_deref()).into_iter().flat_map(pieces).collect();
        FinalOutput { pieces, dropped_bytes, file: file.map(|(path, _)| path) }
    }

    /// The pipes that still have writers.
    pub fn into_pipes(self) -> impl Iterator<Item = OwnedFd> {
        self.pipes.into_iter().map(|pipe| pipe.descriptor)
    }
}

/// The end of a work's output.
pub struct FinalOutput {
    /// Text to report.
    pub pieces: Vec<(OutputStream, String)>,
    /// Bytes of text that were dropped.
    pub dropped_bytes: u64,
    /// The file in the workspace that has the output, up to its size limit.
    pub file: Option<String>,
}

/// Cuts a text into chunks at character boundaries.
fn cut(mut text: String) -> Vec<String> {
    let mut pieces = Vec::new();
    while text.len() > OUTPUT_CHUNK_BYTES_MAX {
        let rest = text.split_off(text.floor_char_boundary(OUTPUT_CHUNK_BYTES_MAX));
        pieces.push(std::mem::replace(&mut text, rest));
    }
    pieces.push(text);
    pieces
}

/// Reads and discards. Returns false if the pipe has no writers.
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
            output.add(OutputStream::Stdout, format!("o{number} "));
            output.add(OutputStream::Stderr, format!("e{number} "));
        }
        let pieces = output.take(Instant::now());
        assert_eq!(pieces.len(), PIECES_MAX);
        assert_eq!(pieces[..3].iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>(), ["o0 ", "e0 ", "o1 "]);
        for (stream, letter) in [(OutputStream::Stdout, 'o'), (OutputStream::Stderr, 'e')] {
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
        output.add(OutputStream::Stdout, text.clone());
        let pieces = output.take(Instant::now());
        assert!(pieces.iter().all(|(_, text)| text.len() <= OUTPUT_CHUNK_BYTES_MAX));
        assert_eq!(pieces.into_iter().map(|(_, text)| text).collect::<String>(), text);
    }

    #[test]
    fn what_is_too_much_is_counted() {
        let mut output = output(8);
        output.add(OutputStream::Stdout, "a€€".into());
        output.add(OutputStream::Stderr, "bcde".into());
        assert_eq!(output.take(Instant::now()), [(OutputStream::Stdout, "a€".to_owned())]);
        let end = output.finish();
        let mark = "\n[raworc: 3 bytes of standard output left out here]\n".to_owned();
        assert_eq!(end.pieces, [(OutputStream::Stdout, mark), (OutputStream::Stderr, "bcde".to_owned())]);
        assert_eq!((end.dropped_bytes, end.file), (3, None));
    }
}
