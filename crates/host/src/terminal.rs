//! A terminal: the program's side of it, what it wrote last, and what is being typed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Stdio;

use raworc_core::limits::TERMINAL_REPLAY_BYTES;
use raworc_core::link::Size;
use rustix::event::PollFlags;
use rustix::io::{Errno, ioctl_fionbio, read, write};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use crate::identity;
use crate::queries::without_queries;

/// Typed but not yet taken by the terminal, in bytes; then nothing more is read from clients.
const INPUT_BYTES_MAX: usize = 64 * 1024;
/// Read of a terminal whose program has ended, in bytes: what it wrote last is in the kernel's buffers.
const DRAIN_BYTES_MAX: usize = 128 * 1024;

/// The last bytes of an output, each with its place in the whole.
#[derive(Default)]
pub struct Replay {
    bytes: VecDeque<u8>,
    /// The place after the last byte.
    end: u64,
}

impl Replay {
    /// The place of the first byte that is kept.
    pub fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// The place after the last byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.end += bytes.len() as u64;
        self.bytes.drain(..self.bytes.len().saturating_sub(TERMINAL_REPLAY_BYTES));
    }

    /// Some of the bytes from `place` on, at most `max`; none where they are no longer kept.
    pub fn from(&self, place: u64, max: usize) -> Option<&[u8]> {
        let skipped = usize::try_from(place.checked_sub(self.start())?).ok()?;
        let (first, second) = self.bytes.as_slices();
        let bytes = match skipped.checked_sub(first.len()) {
            Some(skipped) => second.get(skipped..)?,
            None => &first[skipped..],
        };
        Some(&bytes[..bytes.len().min(max)])
    }

    /// What is kept, for a client that attaches now, without what its terminal would answer. Where something was dropped,
    /// it begins behind the first whole line, because the first bytes may be the second half of an escape sequence.
    pub fn again(&self) -> Vec<u8> {
        let line = self.bytes.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let skipped = if self.start() == 0 { 0 } else { line };
        without_queries(&self.bytes.range(skipped..).copied().collect::<Vec<_>>())
    }
}

/// One terminal.
pub struct Terminal {
    master: OwnedFd,
    /// Held open, so that a program that closes its side and opens `/dev/tty` later finds it as it was.
    slave: OwnedFd,
    /// What was written last.
    pub replay: Replay,
    input: VecDeque<u8>,
    size: Size,
}

impl Terminal {
    /// A terminal without a program. It is the agents' own, as one that they open themselves.
    pub fn open(size: Size) -> io::Result<Self> {
        identity::with_agents_files(|| Self::make(size))
    }

    fn make(size: Size) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let master = openpt(flags | OpenptFlags::CLOEXEC)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags | OpenptFlags::CLOEXEC)?;
        ioctl_fionbio(&master, true)?;
        let mut modes = tcgetattr(&slave)?;
        modes.input_modes |= InputModes::IUTF8;
        tcsetattr(&slave, OptionalActions::Now, &modes)?;
        let terminal = Self { master, slave, replay: Replay::default(), input: VecDeque::new(), size };
        terminal.set_size(size);
        Ok(terminal)
    }

    /// The program's side, as one of its standard streams.
    pub fn stdio(&self) -> io::Result<Stdio> {
        Ok(Stdio::from(self.slave.try_clone()?))
    }

    /// What to wait for.
    pub fn source(&self, wants_output: bool) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, wants_output);
        flags.set(PollFlags::OUT, !self.input.is_empty());
        (!flags.is_empty()).then(|| (self.master.as_fd(), flags))
    }

    /// Whether more may be typed.
    pub fn takes_input(&self) -> bool {
        self.input.len() < INPUT_BYTES_MAX
    }

    /// Something is typed.
    pub fn put(&mut self, bytes: &[u8]) {
        self.input.extend(bytes);
        self.write();
    }

    /// Passes on what was typed.
    pub fn write(&mut self) {
        while !self.input.is_empty() {
            match write(&self.master, self.input.as_slices().0) {
                Ok(count) => drop(self.input.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.input.clear(),
            }
        }
    }

    /// Reads what the program wrote; false where there is no other side any more.
    pub fn read(&mut self, buffer: &mut [u8]) -> bool {
        match read(&self.master, &mut *buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.replay.push(&buffer[..count]);
                true
            }
            Err(error) => matches!(error, Errno::AGAIN | Errno::INTR),
        }
    }

    /// Reads what is left after the program has ended.
    pub fn drain(&mut self, buffer: &mut [u8]) {
        let end = self.replay.end() + DRAIN_BYTES_MAX as u64;
        let mut before = None;
        while self.replay.end() < end && before != Some(self.replay.end()) {
            before = Some(self.replay.end());
            if !self.read(buffer) {
                return;
            }
        }
    }

    /// The client's terminal has this size; programs hear of it where it is a new one.
    pub fn resize(&mut self, size: Size) {
        self.size = size;
        self.set_size(size);
    }

    /// Has full-screen programs draw everything again, for a client that was not there when they did.
    pub fn redraw(&mut self, size: Size) {
        // The kernel tells programs of a size only where it differs from the one before.
        self.set_size(Size { rows: size.rows.saturating_add(1), ..size });
        self.resize(size);
    }

    /// The size it has.
    pub fn size(&self) -> Size {
        self.size
    }

    fn set_size(&self, size: Size) {
        let size = Winsize { ws_col: size.columns, ws_row: size.rows, ws_xpixel: 0, ws_ypixel: 0 };
        // It fails where the terminal was hung up; then nobody wants to know.
        let _ = tcsetwinsize(&self.master, size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_kept() {
        let mut replay = Replay::default();
        assert_eq!((replay.start(), replay.again(), replay.from(0, 9)), (0, Vec::new(), Some(&b""[..])));
        replay.push(b"one\ntwo");
        assert_eq!((replay.from(0, 2), replay.from(4, 9)), (Some(&b"on"[..]), Some(&b"two"[..])));
        assert_eq!((replay.again(), replay.from(8, 1)), (b"one\ntwo".to_vec(), None), "there is nothing yet");
        replay.push(&vec![b'x'; TERMINAL_REPLAY_BYTES - 5]);
        assert_eq!((replay.start(), replay.from(0, 9)), (2, None), "it is no longer kept");
        assert_eq!(replay.from(2, 2), Some(&b"e\n"[..]));
        assert!(replay.again().starts_with(b"two"), "a line begins there");
        replay.push(&vec![b'y'; 2 * TERMINAL_REPLAY_BYTES]);
        assert_eq!(replay.again().len(), TERMINAL_REPLAY_BYTES, "there is no line");
        assert_eq!(replay.end(), 7 + 3 * TERMINAL_REPLAY_BYTES as u64 - 5);
    }
}
