//! The way to the server: dialled again and again, for as long as it takes. Nothing here ever waits.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use raworc_core::limits::FRAME_BYTES_MAX;
use raworc_core::link::ServerFrame;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Wait before dialling again, doubled with each failure.
const BACKOFF: Duration = Duration::from_millis(10);
/// Longest wait before dialling again.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A server that takes no bytes for so long, or does not answer a hello, is gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// Read at once, in bytes.
const READ_BYTES: usize = 16 * 1024;
/// Room that is kept for the next frames, in bytes: a buffer that had to be larger is given back.
const ROOM_BYTES: usize = 64 * 1024;

/// One connection after the other.
pub struct Connection {
    path: PathBuf,
    stream: Option<UnixStream>,
    welcomed: bool,
    /// The beginning of a frame.
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// How much of `outgoing` is written.
    written: usize,
    backoff: Duration,
    dial_at: Instant,
    /// When to give up on a server that does not answer, or takes nothing.
    give_up_at: Option<Instant>,
}

impl Connection {
    /// To the socket at `path`; nothing is dialled yet.
    pub fn new(path: PathBuf, now: Instant) -> Self {
        Self {
            path,
            stream: None,
            welcomed: false,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            written: 0,
            backoff: BACKOFF,
            dial_at: now,
            give_up_at: None,
        }
    }

    /// What to wait for, and whether there is something left to write.
    pub fn descriptor(&self) -> Option<(BorrowedFd<'_>, bool)> {
        self.stream.as_ref().map(|stream| (stream.as_fd(), !self.outgoing.is_empty()))
    }

    /// When [`Connection::on_time`] has something to do.
    pub fn next_wake(&self) -> Option<Instant> {
        if self.stream.is_some() { self.give_up_at } else { Some(self.dial_at) }
    }

    /// Whether the server has let us in.
    pub fn is_welcomed(&self) -> bool {
        self.welcomed
    }

    /// The server has let us in.
    pub fn welcome(&mut self) {
        // The connection may have ended right behind the welcome.
        self.welcomed = self.stream.is_some();
        self.backoff = BACKOFF;
        self.give_up_at = None;
    }

    /// Gives up on a silent server, and dials when it is time to; true where that brought a new connection.
    pub fn on_time(&mut self, now: Instant) -> bool {
        if self.give_up_at.is_some_and(|at| at <= now) {
            self.lose(now);
        }
        if self.stream.is_some() || self.dial_at > now {
            return false;
        }
        match dial(&self.path) {
            Ok(stream) => {
                self.stream = Some(stream);
                self.give_up_at = Some(now + PATIENCE);
                true
            }
            Err(_) => {
                self.lose(now);
                false
            }
        }
    }

    /// Ends the connection; it is dialled again later.
    pub fn lose(&mut self, now: Instant) {
        self.stream = None;
        self.welcomed = false;
        self.incoming = Vec::new();
        self.outgoing = Vec::new();
        self.written = 0;
        self.give_up_at = None;
        self.dial_at = now + self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
    }

    /// Reads frames. A frame that is none ends the connection as much as its end does.
    pub fn receive(&mut self, now: Instant) -> Vec<ServerFrame> {
        let mut frames = Vec::new();
        if self.read(&mut frames).is_err() {
            self.lose(now);
        }
        frames
    }

    fn read(&mut self, frames: &mut Vec<ServerFrame>) -> io::Result<()> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let mut buffer = [0; READ_BYTES];
        let count = match stream.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(()),
            Err(error) => return Err(error),
        };
        for piece in buffer[..count].split_inclusive(|byte| *byte == b'\n') {
            self.incoming.extend_from_slice(piece);
            if self.incoming.len() > FRAME_BYTES_MAX {
                return Err(ErrorKind::InvalidData.into());
            }
            if piece.ends_with(b"\n") {
                frames.push(serde_json::from_slice(&self.incoming)?);
                self.incoming.clear();
                self.incoming.shrink_to(ROOM_BYTES);
            }
        }
        Ok(())
    }

    /// Has this written by the next [`Connection::flush`].
    pub fn send(&mut self, line: &str) {
        if self.stream.is_some() {
            self.outgoing.extend_from_slice(line.as_bytes());
        }
    }

    /// Writes as much as the server takes.
    pub fn flush(&mut self, now: Instant) {
        let Some(stream) = &mut self.stream else { return };
        while self.written < self.outgoing.len() {
            match stream.write(&self.outgoing[self.written..]) {
                Ok(count) => {
                    self.written += count;
                    self.give_up_at = self.give_up_at.filter(|_| !self.welcomed);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.give_up_at.get_or_insert(now + PATIENCE);
                    return;
                }
                Err(_) => {
                    self.lose(now);
                    return;
                }
            }
        }
        self.outgoing.clear();
        self.outgoing.shrink_to(ROOM_BYTES);
        self.written = 0;
    }
}

/// A full queue of the listener is an error like any other, not something to wait for.
pub fn dial(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}
