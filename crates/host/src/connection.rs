//! The host's connection to the server. It reconnects for as long as it takes, and no call blocks.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use raworc_core::limits::FRAME_BYTES_MAX;
use raworc_core::link::ServerFrame;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// The first delay before reconnecting; it doubles with each failure.
const BACKOFF: Duration = Duration::from_millis(10);
/// The longest delay before reconnecting.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// How long the server may take to answer a hello, or to read queued bytes.
const SERVER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes per read.
const READ_BYTES: usize = 16 * 1024;
/// Capacity in bytes that the buffers keep between frames; a larger buffer is shrunk.
const RETAINED_BYTES: usize = 64 * 1024;

/// The connection to the server, with its reconnects.
pub struct Connection {
    path: PathBuf,
    stream: Option<UnixStream>,
    welcomed: bool,
    /// The beginning of a frame that is not complete yet.
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// How many bytes of `outgoing` have been written.
    written: usize,
    backoff: Duration,
    dial_at: Instant,
    /// When the connection is dropped because the server does not answer or read.
    give_up_at: Option<Instant>,
}

impl Connection {
    /// A connection to the socket at `path`, not connected yet.
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

    /// The descriptor to poll, and whether there are bytes to write.
    pub fn descriptor(&self) -> Option<(BorrowedFd<'_>, bool)> {
        self.stream.as_ref().map(|stream| (stream.as_fd(), !self.outgoing.is_empty()))
    }

    /// When [`Connection::handle_timers`] has to be called next.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.stream.is_some() { self.give_up_at } else { Some(self.dial_at) }
    }

    /// Whether the server has answered our hello.
    pub fn is_welcomed(&self) -> bool {
        self.welcomed
    }

    /// Records that the server has answered our hello.
    pub fn welcome(&mut self) {
        // The connection may have been closed right after the welcome.
        self.welcomed = self.stream.is_some();
        self.backoff = BACKOFF;
        self.give_up_at = None;
    }

    /// Drops a connection that has timed out, and reconnects when it is time. Returns true if it is newly connected.
    pub fn handle_timers(&mut self, now: Instant) -> bool {
        if self.give_up_at.is_some_and(|at| at <= now) {
            self.disconnect(now);
        }
        if self.stream.is_some() || self.dial_at > now {
            return false;
        }
        match dial(&self.path) {
            Ok(stream) => {
                self.stream = Some(stream);
                self.give_up_at = Some(now + SERVER_TIMEOUT);
                true
            }
            Err(_) => {
                self.disconnect(now);
                false
            }
        }
    }

    /// Closes the connection and schedules a reconnect.
    pub fn disconnect(&mut self, now: Instant) {
        self.stream = None;
        self.welcomed = false;
        self.incoming = Vec::new();
        self.outgoing = Vec::new();
        self.written = 0;
        self.give_up_at = None;
        self.dial_at = now + self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
    }

    /// Reads frames. An invalid frame closes the connection, as its end does.
    pub fn receive(&mut self, now: Instant) -> Vec<ServerFrame> {
        let mut frames = Vec::new();
        if self.read(&mut frames).is_err() {
            self.disconnect(now);
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
                self.incoming.shrink_to(RETAINED_BYTES);
            }
        }
        Ok(())
    }

    /// Queues a line for the next [`Connection::flush`].
    pub fn send(&mut self, line: &str) {
        if self.stream.is_some() {
            self.outgoing.extend_from_slice(line.as_bytes());
        }
    }

    /// Writes as much as the socket takes.
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
                    self.give_up_at.get_or_insert(now + SERVER_TIMEOUT);
                    return;
                }
                Err(_) => {
                    self.disconnect(now);
                    return;
                }
            }
        }
        self.outgoing.clear();
        self.outgoing.shrink_to(RETAINED_BYTES);
        self.written = 0;
    }
}

/// Connects without blocking. A full accept queue is an error, so the caller tries again later.
pub fn dial(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}
