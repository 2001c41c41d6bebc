//! The pipes of an attached command, with the buffered standard input.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;

use raworc_core::link::OutputStream;
use rustix::event::PollFlags;
use rustix::io::{Errno, ioctl_fionbio, read, write};

/// Bytes of input that the program has not read; above that, the client is not read from.
const INPUT_BYTES_MAX: usize = 64 * 1024;
/// Bytes read from one output after the program has ended: the largest pipe of an unprivileged process (pipe(7)).
/// More comes from background processes.
const DRAIN_BYTES_MAX: usize = 1024 * 1024;

/// A pipe of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pipe {
    /// Standard input.
    Stdin,
    /// An output.
    Output(OutputStream),
}

struct Output {
    stream: OutputStream,
    /// `None` at the end of the output.
    pipe: Option<OwnedFd>,
    /// The end has been passed on, or nobody waits for it.
    is_done: bool,
    /// Bytes that may still be read after the program has ended.
    left: usize,
}

/// The pipes of one command.
pub struct PipedIo {
    stdin: Option<OwnedFd>,
    input: VecDeque<u8>,
    /// The client has closed its side of standard input.
    input_ended: bool,
    outputs: Vec<Output>,
}

impl PipedIo {
    /// Takes the pipes of a newly started child.
    pub fn of(child: &mut Child) -> Self {
        let stdout = child.stdout.take().map(|pipe| (OutputStream::Stdout, OwnedFd::from(pipe)));
        let stderr = child.stderr.take().map(|pipe| (OutputStream::Stderr, OwnedFd::from(pipe)));
        let outputs = stdout.into_iter().chain(stderr).map(|(stream, pipe)| Output {
            stream,
            pipe: nonblocking(pipe),
            is_done: false,
            left: DRAIN_BYTES_MAX,
        });
        let stdin = child.stdin.take().map(OwnedFd::from).and_then(nonblocking);
        Self { stdin, input: VecDeque::new(), input_ended: false, outputs: outputs.collect() }
    }

    /// The events to poll for. Standard input is polled even without data, to notice when the program closes it.
    pub fn sources(&self, wants_output: bool) -> impl Iterator<Item = (Pipe, BorrowedFd<'_>, PollFlags)> {
        let flags = if self.input.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let stdin = self.stdin.iter().map(move |pipe| (Pipe::Stdin, pipe.as_fd(), flags));
        let outputs = self.outputs.iter().filter(move |output| wants_output && !output.is_done);
        stdin.chain(outputs.filter_map(|output| {
            let pipe = output.pipe.as_ref()?;
            Some((Pipe::Output(output.stream), pipe.as_fd(), PollFlags::IN))
        }))
    }

    /// Whether more input is accepted. Input after the program has closed its standard input is dropped.
    pub fn takes_input(&self) -> bool {
        self.input.len() < INPUT_BYTES_MAX
    }

    /// Queues input.
    pub fn queue_input(&mut self, bytes: &[u8]) {
        if self.stdin.is_some() && !self.input_ended {
            self.input.extend(bytes);
            self.flush_input();
        }
    }

    /// Closes standard input after the queued bytes.
    pub fn end_input(&mut self) {
        self.input_ended = true;
        self.flush_input();
    }

    /// Writes as much input as the program takes.
    pub fn flush_input(&mut self) {
        let Some(pipe) = &self.stdin else { return };
        while !self.input.is_empty() {
            match write(pipe, self.input.as_slices().0) {
                Ok(count) => drop(self.input.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // The program has closed its standard input, which is no error.
                Err(_) => return self.close_input(),
            }
        }
        if self.input_ended {
            self.close_input();
        }
    }

    /// Whether input is queued.
    pub fn has_input(&self) -> bool {
        !self.input.is_empty()
    }

    /// Records that the program has closed its standard input.
    pub fn close_input(&mut self) {
        self.stdin = None;
        self.input = VecDeque::new();
    }

    /// Reads an output once and returns how many bytes are in `buffer`. With `has_ended`, the program has exited, so
    /// an empty pipe means the end.
    pub fn read(&mut self, stream: OutputStream, buffer: &mut [u8], has_ended: bool) -> usize {
        let Some(output) = self.outputs.iter_mut().find(|output| output.stream == stream) else { return 0 };
        let Some(pipe) = &output.pipe else { return 0 };
        match read(pipe, &mut *buffer) {
            Ok(0) => {
                output.pipe = None;
                output.is_done = true;
                0
            }
            Ok(count) => {
                if has_ended {
                    output.left = output.left.saturating_sub(count);
                    output.is_done = output.left == 0;
                }
                count
            }
            Err(Errno::INTR) => 0,
            Err(Errno::AGAIN) => {
                output.is_done |= has_ended;
                0
            }
            Err(_) => {
                output.pipe = None;
                output.is_done = true;
                0
            }
        }
    }

    /// Stops reading all outputs.
    pub fn abandon_outputs(&mut self) {
        self.outputs.iter_mut().for_each(|output| output.is_done = true);
    }

    /// Outputs that may have more data.
    pub fn unfinished(&self) -> impl Iterator<Item = OutputStream> {
        self.outputs.iter().filter(|output| !output.is_done).map(|output| output.stream)
    }

    /// The output pipes that background processes may still write to.
    pub fn into_pipes(self) -> impl Iterator<Item = OwnedFd> {
        self.outputs.into_iter().filter_map(|output| output.pipe)
    }
}

/// Makes our end non-blocking; the program's end stays as it expects.
fn nonblocking(pipe: OwnedFd) -> Option<OwnedFd> {
    ioctl_fionbio(&pipe, true).is_ok().then_some(pipe)
}
