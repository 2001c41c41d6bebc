//! A command whose streams are pipes: what is on its way to its standard input, and from its outputs.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;

use raworc_core::link::Stream;
use rustix::event::PollFlags;
use rustix::io::{Errno, ioctl_fionbio, read, write};

/// Come for the program but not yet taken by it, in bytes; then nothing more is read from the client.
const INPUT_BYTES_MAX: usize = 64 * 1024;
/// Read of an output after its program has ended, in bytes: the largest pipe of an unprivileged process (pipe(7)). What
/// is more comes from a process that was left running.
const DRAIN_BYTES_MAX: usize = 1024 * 1024;

/// One of the pipes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pipe {
    /// Standard input.
    Stdin,
    /// An output.
    Output(Stream),
}

struct Output {
    stream: Stream,
    /// None at its end.
    pipe: Option<OwnedFd>,
    /// Nothing more of it is passed on.
    is_done: bool,
    /// What may still be read after the program has ended.
    left: usize,
}

/// The pipes of one command.
pub struct Piped {
    stdin: Option<OwnedFd>,
    input: VecDeque<u8>,
    /// The client has ended its standard input.
    input_ended: bool,
    outputs: Vec<Output>,
}

impl Piped {
    /// The pipes of a child that was just started with them.
    pub fn of(child: &mut Child) -> Self {
        let stdout = child.stdout.take().map(|pipe| (Stream::Stdout, OwnedFd::from(pipe)));
        let stderr = child.stderr.take().map(|pipe| (Stream::Stderr, OwnedFd::from(pipe)));
        let outputs = stdout.into_iter().chain(stderr).map(|(stream, pipe)| Output {
            stream,
            pipe: nonblocking(pipe),
            is_done: false,
            left: DRAIN_BYTES_MAX,
        });
        let stdin = child.stdin.take().map(OwnedFd::from).and_then(nonblocking);
        Self { stdin, input: VecDeque::new(), input_ended: false, outputs: outputs.collect() }
    }

    /// What to wait for. Standard input is waited for also where there is nothing to write: its reader may close it.
    pub fn sources(&self, wants_output: bool) -> impl Iterator<Item = (Pipe, BorrowedFd<'_>, PollFlags)> {
        let flags = if self.input.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let stdin = self.stdin.iter().map(move |pipe| (Pipe::Stdin, pipe.as_fd(), flags));
        let outputs = self.outputs.iter().filter(move |output| wants_output && !output.is_done);
        stdin.chain(outputs.filter_map(|output| {
            let pipe = output.pipe.as_ref()?;
            Some((Pipe::Output(output.stream), pipe.as_fd(), PollFlags::IN))
        }))
    }

    /// Whether more may come for the program. What comes after it has closed its standard input is dropped.
    pub fn takes_input(&self) -> bool {
        self.input.len() < INPUT_BYTES_MAX
    }

    /// For the program's standard input.
    pub fn put(&mut self, bytes: &[u8]) {
        if self.stdin.is_some() && !self.input_ended {
            self.input.extend(bytes);
            self.write();
        }
    }

    /// Standard input ends behind what has come.
    pub fn end_input(&mut self) {
        self.input_ended = true;
        self.write();
    }

    /// Passes on as much as the program takes.
    pub fn write(&mut self) {
        let Some(pipe) = &self.stdin else { return };
        while !self.input.is_empty() {
            match write(pipe, self.input.as_slices().0) {
                Ok(count) => drop(self.input.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // It reads no more, as is its right.
                Err(_) => return self.close_input(),
            }
        }
        if self.input_ended {
            self.close_input();
        }
    }

    /// Whether there is something for the program.
    pub fn has_input(&self) -> bool {
        !self.input.is_empty()
    }

    /// The program reads no more.
    pub fn close_input(&mut self) {
        self.stdin = None;
        self.input = VecDeque::new();
    }

    /// Reads what the program wrote, once; how many bytes came into `buffer`. `has_ended` says that the program has, so
    /// that the output is done where there is nothing now.
    pub fn read(&mut self, stream: Stream, buffer: &mut [u8], has_ended: bool) -> usize {
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

    /// Nobody waits for the outputs any more.
    pub fn give_up(&mut self) {
        self.outputs.iter_mut().for_each(|output| output.is_done = true);
    }

    /// Outputs of which something may still come.
    pub fn unfinished(&self) -> impl Iterator<Item = Stream> {
        self.outputs.iter().filter(|output| !output.is_done).map(|output| output.stream)
    }

    /// The outputs that processes which were left running may still write to.
    pub fn into_pipes(self) -> impl Iterator<Item = OwnedFd> {
        self.outputs.into_iter().filter_map(|output| output.pipe)
    }
}

/// Only our end does not block: the program's is as it expects it.
fn nonblocking(pipe: OwnedFd) -> Option<OwnedFd> {
    ioctl_fionbio(&pipe, true).is_ok().then_some(pipe)
}
