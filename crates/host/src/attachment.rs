//! One client's own connection to the server, for a terminal or an attached command. A slow client delays nobody
//! else.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use raworc_core::limits::PIECE_BYTES_MAX;
use raworc_core::link::{Attach, HostFrame, OutputStream, ServerFrame, Versions};
use raworc_core::pieces::{Decoder, Ended, Piece, encode_output};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use uuid::Uuid;

use crate::connection::dial;
use crate::reports::line;

/// Bytes queued for the server; above that, this client gets no more output until the server reads.
const OUTGOING_BYTES_MAX: usize = 64 * 1024;
/// Bytes of the server's answer to the first frame, at most.
const WELCOME_BYTES_MAX: usize = 1024;
/// How long the server may take to answer the first frame.
const SERVER_TIMEOUT: Duration = Duration::from_secs(10);

/// The result of one read.
pub enum ReadOutcome {
    /// Frames of the client, maybe none.
    Pieces(Vec<Piece>),
    /// The connection is closed or broken.
    Closed,
}

/// One client's connection.
pub struct Attachment {
    stream: UnixStream,
    /// The work that the client is attached to.
    pub work: Uuid,
    /// The client sees the output but sends no input.
    pub is_watching: bool,
    /// The offset in a terminal's output up to which the client has been sent.
    pub offset: u64,
    /// The server's answer to the first frame, as far as it has come; `None` once it is complete.
    welcome: Option<Vec<u8>>,
    give_up_at: Option<Instant>,
    incoming: Decoder,
    outgoing: Vec<u8>,
    /// How many bytes of `outgoing` have been written.
    written: usize,
    /// The last piece is queued; the connection closes once it is written.
    is_closing: bool,
}

impl Attachment {
    /// Connects to the server and queues the first frame.
    pub fn dial(attach: &Attach, socket: &Path, token: &str, offset: u64, now: Instant) -> io::Result<Self> {
        let stream = dial(socket)?;
        let (token, attachment) = (token.to_owned(), attach.attachment);
        let first = line(&HostFrame::Attached { versions: Versions::OURS, token, attachment });
        Ok(Self {
            stream,
            work: attach.work,
            is_watching: attach.watch,
            offset,
            welcome: Some(Vec::new()),
            give_up_at: Some(now + SERVER_TIMEOUT),
            incoming: Decoder::default(),
            outgoing: first.unwrap_or_default().into_bytes(),
            written: 0,
            is_closing: false,
        })
    }

    /// When the connection is dropped unless the server has answered.
    pub fn give_up_at(&self) -> Option<Instant> {
        self.give_up_at
    }

    /// The events to poll for; a hangup is reported in any case. `takes_input` says whether the work accepts input.
    pub fn source(&self, takes_input: bool) -> (BorrowedFd<'_>, PollFlags) {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.wants_read(takes_input));
        flags.set(PollFlags::OUT, !self.is_flushed());
        (self.stream.as_fd(), flags)
    }

    /// Whether this connection is read from at the moment.
    pub fn wants_read(&self, takes_input: bool) -> bool {
        self.welcome.is_some() || takes_input || self.is_watching || self.is_closing
    }

    /// Whether the peer has closed the connection.
    pub fn is_hung_up(&self) -> bool {
        let mut looked = [PollFd::new(&self.stream, PollFlags::empty())];
        let found = poll(&mut looked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        found.is_ok() && looked[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    /// Whether everything queued has been written.
    pub fn is_flushed(&self) -> bool {
        self.written == self.outgoing.len()
    }

    /// Whether the last piece has been written, so that the connection can be closed.
    pub fn is_done(&self) -> bool {
        self.is_closing && self.is_flushed() && self.welcome.is_none()
    }

    /// Whether more output may follow.
    pub fn is_open(&self) -> bool {
        !self.is_closing
    }

    /// How many bytes of output may be queued.
    pub fn send_capacity(&self) -> usize {
        if self.is_closing { 0 } else { OUTGOING_BYTES_MAX.saturating_sub(self.outgoing.len() - self.written) }
    }

    /// Queues output.
    pub fn queue_output(&mut self, stream: OutputStream, bytes: &[u8]) {
        if self.written > OUTGOING_BYTES_MAX {
            self.outgoing.drain(..std::mem::take(&mut self.written));
        }
        for part in bytes.chunks(PIECE_BYTES_MAX) {
            encode_output(stream, part, &mut self.outgoing);
        }
    }

    /// Tells the client that the work has ended; nothing follows.
    pub fn close_ended(&mut self, ended: Ended) {
        self.close_with(&Piece::Ended(ended));
    }

    /// Tells the client that output it has not seen was dropped; nothing follows.
    pub fn close_lagged(&mut self) {
        self.close_with(&Piece::Lagged);
    }

    fn close_with(&mut self, piece: &Piece) {
        if !self.is_closing {
            piece.encode(&mut self.outgoing);
            self.is_closing = true;
        }
    }

    /// Reads once.
    pub fn read(&mut self, buffer: &mut [u8]) -> ReadOutcome {
        let count = match self.stream.read(buffer) {
            Ok(0) => return ReadOutcome::Closed,
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return ReadOutcome::Pieces(Vec::new());
            }
            Err(_) => return ReadOutcome::Closed,
        };
        match self.decode(&buffer[..count]) {
            Some(pieces) => ReadOutcome::Pieces(pieces),
            None => ReadOutcome::Closed,
        }
    }

    /// Decodes pieces; `None` where the bytes are invalid.
    fn decode(&mut self, mut bytes: &[u8]) -> Option<Vec<Piece>> {
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

    /// Writes as much as the socket takes. Returns false if the connection is broken.
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
