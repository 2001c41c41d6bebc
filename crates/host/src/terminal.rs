//! A pseudoterminal with its scrollback and its queued input.

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

/// Bytes of input that the terminal has not taken; above that, clients are not read from.
const INPUT_BYTES_MAX: usize = 64 * 1024;
/// Bytes read from a terminal after its program has ended, which covers the kernel's buffers.
const DRAIN_BYTES_MAX: usize = 128 * 1024;

/// The last bytes of a terminal's output, addressed by their offset in the whole output.
#[derive(Default)]
pub struct Scrollback {
    bytes: VecDeque<u8>,
    /// The offset after the last byte.
    end: u64,
}

impl Scrollback {
    /// The offset of the first byte that is kept.
    pub fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// The offset after the last byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.end += bytes.len() as u64;
        self.bytes.drain(..self.bytes.len().saturating_sub(TERMINAL_REPLAY_BYTES));
    }

    /// Up to `max` bytes from `offset` on; `None` if they are no longer kept.
    pub fn read_from(&self, offset: u64, max: usize) -> Option<&[u8]> {
        let skipped = usize::try_from(offset.checked_sub(self.start())?).ok()?;
        let (first, second) = self.bytes.as_slices();
        let bytes = match skipped.checked_sub(first.len()) {
            Some(skipped) => second.get(skipped..)?,
            None => &first[skipped..],
        };
        Some(&bytes[..bytes.len().min(max)])
    }

    /// The kept output for a client that attaches now, without terminal queries. If something was dropped, it begins
    /// after the first line feed, because the first bytes may be half of an escape sequence.
    pub fn replay(&self) -> Vec<u8> {
        let line = self.bytes.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let skipped = if self.start() == 0 { 0 } else { line };
        without_queries(&self.bytes.range(skipped..).copied().collect::<Vec<_>>())
    }
}

/// One terminal.
pub struct Terminal {
    master: OwnedFd,
    /// Kept open, so that a program can close its side and open `/dev/tty` again.
    slave: OwnedFd,
    /// The last output.
    pub scrollback: Scrollback,
    input: VecDeque<u8>,
    size: Size,
}

impl Terminal {
    /// Opens a terminal that belongs to the agents' user.
    pub fn open(size: Size) -> io::Result<Self> {
        identity::with_agent_fsuid(|| Self::create(size))
    }

    fn create(size: Size) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let master = openpt(flags | OpenptFlags::CLOEXEC)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags | OpenptFlags::CLOEXEC)?;
        ioctl_fionbio(&master, true)?;
        let mut modes = tcgetattr(&slave)?;
        modes.input_modes |= InputModes::IUTF8;
        tcsetattr(&slave, OptionalActions::Now, &modes)?;
        let terminal = Self { master, slave, scrollback: Scrollback::default(), input: VecDeque::new(), size };
        terminal.set_size(size);
        Ok(terminal)
    }

    /// The program's side, for one of its standard streams.
    pub fn stdio(&self) -> io::Result<Stdio> {
        Ok(Stdio::from(self.slave.try_clone()?))
    }

    /// The events to poll for.
    pub fn source(&self, wants_output: bool) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, wants_output);
        flags.set(PollFlags::OUT, !self.input.is_empty());
        (!flags.is_empty()).then(|| (self.master.as_fd(), flags))
    }

    /// Whether more input is accepted.
    pub fn takes_input(&self) -> bool {
        self.input.len() < INPUT_BYTES_MAX
    }

    /// Queues input.
    pub fn queue_input(&mut self, bytes: &[u8]) {
        self.input.extend(bytes);
        self.flush_input();
    }

    /// Writes as much input as the terminal takes.
    pub fn flush_input(&mut self) {
        while !self.input.is_empty() {
            match write(&self.master, self.input.as_slices().0) {
                Ok(count) => drop(self.input.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.input.clear(),
            }
        }
    }

    /// Reads output. Returns false if no process has the terminal open.
    pub fn read(&mut self, buffer: &mut [u8]) -> bool {
        match read(&self.master, &mut *buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.scrollback.push(&buffer[..count]);
                true
            }
            Err(error) => matches!(error, Errno::AGAIN | Errno::INTR),
        }
    }

    /// Reads the remaining output after the program has ended.
    pub fn drain(&mut self, buffer: &mut [u8]) {
        let end = self.scrollback.end() + DRAIN_BYTES_MAX as u64;
        let mut before = None;
        while self.scrollback.end() < end && before != Some(self.scrollback.end()) {
            before = Some(self.scrollback.end());
            if !self.read(buffer) {
                return;
            }
        }
    }

    /// Sets the size; programs get SIGWINCH if it changed.
    pub fn resize(&mut self, size: Size) {
        self.size = size;
        self.set_size(size);
    }

    /// Makes full-screen programs redraw, for a newly attached client.
    pub fn redraw(&mut self, size: Size) {
        // The kernel sends SIGWINCH only if the size changes.
        self.set_size(Size { rows: size.rows.saturating_add(1), ..size });
        self.resize(size);
    }

    /// The current size.
    pub fn size(&self) -> Size {
        self.size
    }

    fn set_size(&self, size: Size) {
        let size = Winsize { ws_col: size.columns, ws_row: size.rows, ws_xpixel: 0, ws_ypixel: 0 };
        // Fails only after the terminal was hung up.
        let _ = tcsetwinsize(&self.master, size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_kept() {
        let mut scrollback = Scrollback::default();
        assert_eq!(
            (scrollback.start(), scrollback.replay(), scrollback.read_from(0, 9)),
            (0, Vec::new(), Some(&b""[..]))
        );
        scrollback.push(b"one\ntwo");
        assert_eq!((scrollback.read_from(0, 2), scrollback.read_from(4, 9)), (Some(&b"on"[..]), Some(&b"two"[..])));
        assert_eq!(
            (scrollback.replay(), scrollback.read_from(8, 1)),
            (b"one\ntwo".to_vec(), None),
            "there is nothing yet"
        );
        scrollback.push(&vec![b'x'; TERMINAL_REPLAY_BYTES - 5]);
        assert_eq!((scrollback.start(), scrollback.read_from(0, 9)), (2, None), "it is no longer kept");
        assert_eq!(scrollback.read_from(2, 2), Some(&b"e\n"[..]));
        assert!(scrollback.replay().starts_with(b"two"), "a line begins there");
        scrollback.push(&vec![b'y'; 2 * TERMINAL_REPLAY_BYTES]);
        assert_eq!(scrollback.replay().len(), TERMINAL_REPLAY_BYTES, "there is no line");
        assert_eq!(scrollback.end(), 7 + 3 * TERMINAL_REPLAY_BYTES as u64 - 5);
    }
}
