//! The connection of one client of an interactive work: dialled for it alone, so that it may be slow alone.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use raworc_core::limits::PIECE_BYTES_MAX;
use raworc_core::link::{Attach, HostFrame, ServerFrame, Stream, Versions};
use raworc_core::pieces::{Decoder, Ended, Piece, encode_output};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use uuid::Uuid;

use crate::connection::dial;
use crate::reports::line;

/// On their way to the server, in bytes; then the work's output is not read for this client.
const OUTGOING_BYTES_MAX: usize = 64 * 1024;
/// The server's answer to the first frame, in bytes.
const WELCOME_BYTES_MAX: usize = 1024;
/// A server that does not answer the first frame for so long is gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came of reading.
pub enum Arrived {
    /// These pieces.
    Pieces(Vec<Piece>),
    /// The connection is of no more use.
    Lost,
}

/// One connection.
pub struct Attachment {
    stream: UnixStream,
    /// The work.
    pub work: Uuid,
    /// The client sees the output only.
    pub is_watching: bool,
    /// Up to where the client has been sent a terminal's output.
    pub place: u64,
    /// The server's answer, until it is whole.
    welcome: Option<Vec<u8>>,
    give_up_at: Option<Instant>,
    incoming: Decoder,
    outgoing: Vec<u8>,
    /// How much of `outgoing` is written.
    written: usize,
    /// Nothing follows what is on its way.
    is_over: bool,
}

impl Attachment {
    /// Dials.
    pub fn dial(attach: &Attach, socket: &Path, token: &str, place: u64, now: Instant) -> io::Result<Self> {
        let stream = dial(socket)?;
        let (token, attachment) = (token.to_owned(), attach.attachment);
        let first = line(&HostFrame::Attached { versions: Versions::OURS, token, attachment });
        Ok(Self {
            stream,
            work: attach.work,
            is_watching: attach.watch,
            place,
            welcome: Some(Vec::new()),
            give_up_at: Some(now + PATIENCE),
            incoming: Decoder::default(),
            outgoing: first.unwrap_or_default().into_bytes(),
            written: 0,
            is_over: false,
        })
    }

    /// When it is given up.
    pub fn give_up_at(&self) -> Option<Instant> {
        self.give_up_at
    }

    /// What to wait for; what closes the connection comes in any case. `takes_input` says whether the work does.
    pub fn source(&self, takes_input: bool) -> (BorrowedFd<'_>, PollFlags) {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.reads(takes_input));
        flags.set(PollFlags::OUT, !self.is_flushed());
        (self.stream.as_fd(), flags)
    }

    /// Whether it is read from now.
    pub fn reads(&self, takes_input: bool) -> bool {
        self.welcome.is_some() || takes_input || self.is_watching || self.is_over
    }

    /// Whether the other side has closed the connection.
    pub fn is_hung_up(&self) -> bool {
        let mut looked = [PollFd::new(&self.stream, PollFlags::empty())];
        let found = poll(&mut looked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        found.is_ok() && looked[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    /// Whether everything has been sent.
    pub fn is_flushed(&self) -> bool {
        self.written == self.outgoing.len()
    }

    /// Whether the connection has served its purpose.
    pub fn is_done(&self) -> bool {
        self.is_over && self.is_flushed() && self.welcome.is_none()
    }

    /// Whether its work has not ended.
    pub fn is_open(&self) -> bool {
        !self.is_over
    }

    /// How much more output may be put on its way.
    pub fn room(&self) -> usize {
        if self.is_over { 0 } else { OUTGOING_BYTES_MAX.saturating_sub(self.outgoing.len() - self.written) }
    }

    /// Puts output on its way.
    pub fn output(&mut self, stream: Stream, bytes: &[u8]) {
        if self.written > OUTGOING_BYTES_MAX {
            self.outgoing.drain(..std::mem::take(&mut self.written));
        }
        for part in bytes.chunks(PIECE_BYTES_MAX) {
            encode_output(stream, part, &mut self.outgoing);
        }
    }

    /// The work has ended: nothing follows.
    pub fn end(&mut self, ended: Ended) {
        self.over(&Piece::Ended(ended));
    }

    /// What the client has not seen is no longer kept.
    pub fn lag(&mut self) {
        self.over(&Piece::Lagged);
    }

    fn over(&mut self, piece: &Piece) {
        if !self.is_over {
            piece.encode(&mut self.outgoing);
            self.is_over = true;
        }
    }

    /// Reads once.
    pub fn read(&mut self, buffer: &mut [u8]) -> Arrived {
        let count = match self.stream.read(buffer) {
            Ok(0) => return Arrived::Lost,
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Arrived::Pieces(Vec::new());
            }
            Err(_) => return Arrived::Lost,
        };
        match self.take(&buffer[..count]) {
            Some(pieces) => Arrived::Pieces(pieces),
            None => Arrived::Lost,
        }
    }

    /// The pieces in what came; none where it is something else.
    fn take(&mut self, mut bytes: &[u8]) -> Option<Vec<Piece>> {
        if let Some(welcome) = &mut self.welcome {
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let part = end.map_or(bytes, |end| &bytes[..end]);
            if welcome.len() + part.len() > WELCOME_BYTES_MAX {
                return None;
            }
            welcome.extend_from_slice(part);
            let Some(end) = end else { return Some(Vec::new()) };
            let answer = serde_json::from_slice(welcome).ok()?;
            let ServerFrame::Welcome { .. } = answer else { return None };
            self.welcome = None;
            self.give_up_at = None;
            bytes = &bytes[end + 1..];
        }
        self.incoming.push(bytes);
        let mut pieces = Vec::new();
        while let Some(piece) = self.incoming.next_piece().ok()? {
            pieces.push(piece);
        }
        Some(pieces)
    }

    /// Writes as much as the server takes; false where the connection is of no more use.
    pub fn flush(&mut self) -> bool {
        while !self.is_flushed() {
            match self.stream.write(&self.outgoing[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        self.outgoing.clear();
        self.outgoing.shrink_to(2 * OUTGOING_BYTES_MAX);
        self.written = 0;
        true
    }
}
