//! One connection of a program to the gateway: bytes go both ways, each side only as fast as the other accepts.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use raworc_core::link::ServerFrame;
use rustix::event::PollFlags;
use rustix::net::{Shutdown, shutdown};

/// Bytes of the server's answer to the first frame, at most.
const WELCOME_BYTES_MAX: usize = 1024;

/// An end of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The program inside.
    Program,
    /// The server.
    Server,
}

/// Bytes on their way from one end to the other.
#[derive(Default)]
struct Flow {
    /// Read and not yet written; nothing more is read before they are.
    pending: Vec<u8>,
    /// How many bytes of `pending` have been written.
    written: usize,
    /// The source has said that nothing follows.
    is_ended: bool,
    /// The target has been told.
    is_closed: bool,
}

impl Flow {
    fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Writes as much as `target` takes, then `bytes`; what it does not take is kept.
    fn write(&mut self, target: &mut (impl Write + AsFd), bytes: &[u8]) -> io::Result<()> {
        self.pending.extend_from_slice(bytes);
        while self.written < self.pending.len() {
            match target.write(&self.pending[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        // Most connections are idle most of the time.
        self.pending = Vec::new();
        self.written = 0;
        if self.is_ended && !self.is_closed {
            self.is_closed = true;
            shutdown(&*target, Shutdown::Write)?;
        }
        Ok(())
    }
}

/// One connection.
pub struct Relay {
    program: TcpStream,
    server: Option<UnixStream>,
    /// When it is dropped unless the server has been reached.
    give_up_at: Instant,
    /// The server's answer to the first frame, as far as it has come; `None` once it is complete.
    welcome: Option<Vec<u8>>,
    up: Flow,
    down: Flow,
}

impl Relay {
    /// A program's connection; `hello` is sent to the server first.
    ///
    /// # Errors
    /// Where the descriptor cannot be set up.
    pub fn new(program: TcpStream, hello: Vec<u8>, give_up_at: Instant) -> io::Result<Self> {
        program.set_nonblocking(true)?;
        // What is read goes on at once.
        program.set_nodelay(true)?;
        let up = Flow { pending: hello, ..Flow::default() };
        Ok(Self { program, server: None, give_up_at, welcome: Some(Vec::new()), up, down: Flow::default() })
    }

    /// When it is dropped; `None` once it has a connection to the server.
    pub fn give_up_at(&self) -> Option<Instant> {
        self.server.is_none().then_some(self.give_up_at)
    }

    /// Goes on with a connection to the server.
    pub fn connect(&mut self, server: UnixStream) {
        self.server = Some(server);
    }

    /// The descriptors to poll. One without flags is left out: poll would report its hangup for ever.
    pub fn sources(&self) -> impl Iterator<Item = (End, BorrowedFd<'_>, PollFlags)> {
        let flags = |from: &Flow, to: &Flow| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, from.is_empty() && !from.is_ended);
            flags.set(PollFlags::OUT, !to.is_empty());
            flags
        };
        let server = self.server.as_ref();
        let program = server.map(|_| (End::Program, self.program.as_fd(), flags(&self.up, &self.down)));
        let server = server.map(|server| (End::Server, server.as_fd(), flags(&self.down, &self.up)));
        program.into_iter().chain(server).filter(|(_, _, flags)| !flags.is_empty())
    }

    /// Reads and writes what is possible. Returns false when the connection is over.
    pub fn handle_ready(&mut self, end: End, buffer: &mut [u8]) -> bool {
        let Some(server) = &mut self.server else { return true };
        let passed = match end {
            End::Program => self
                .down
                .write(&mut self.program, &[])
                .and_then(|()| pass(&mut self.program, server, &mut self.up, buffer, &mut None)),
            End::Server => self
                .up
                .write(server, &[])
                .and_then(|()| pass(server, &mut self.program, &mut self.down, buffer, &mut self.welcome)),
        };
        passed.is_ok() && !(self.up.is_closed && self.down.is_closed)
    }
}

/// Reads once and writes it on, after the line that `welcome` waits for.
fn pass(
    from: &mut impl Read,
    to: &mut (impl Write + AsFd),
    flow: &mut Flow,
    buffer: &mut [u8],
    welcome: &mut Option<Vec<u8>>,
) -> io::Result<()> {
    if !flow.is_empty() || flow.is_ended {
        return Ok(());
    }
    let bytes = match from.read(buffer) {
        Ok(0) => {
            flow.is_ended = true;
            &[]
        }
        Ok(count) => after_welcome(welcome, &buffer[..count])?,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(()),
        Err(error) => return Err(error),
    };
    flow.write(to, bytes)
}

/// What of `bytes` comes after the server's welcome. Anything else than a welcome ends the connection.
fn after_welcome<'b>(welcome: &mut Option<Vec<u8>>, bytes: &'b [u8]) -> io::Result<&'b [u8]> {
    let Some(line) = welcome else { return Ok(bytes) };
    let end = bytes.iter().position(|byte| *byte == b'\n');
    line.extend_from_slice(end.map_or(bytes, |end| &bytes[..end]));
    if line.len() > WELCOME_BYTES_MAX {
        return Err(ErrorKind::InvalidData.into());
    }
    let Some(end) = end else { return Ok(&[]) };
    let ServerFrame::Welcome { .. } = serde_json::from_slice(line)? else {
        return Err(ErrorKind::ConnectionRefused.into());
    };
    *welcome = None;
    Ok(&bytes[end + 1..])
}
