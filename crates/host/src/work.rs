//! One piece of work: its process, and the thread that reads what it writes.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use raworc_core::limits::{OUTPUT_CHUNK_BYTES_MAX, UNACKED_BYTES_MAX};
use raworc_core::link::{AGENT_UID, Program, Stream, TOKEN_VARIABLE, Work, WorkId};

use crate::gate::Gate;
use crate::host::Event;
use crate::signals::{Reaping, STACK_BYTES};
use crate::utf8::Decoder;

/// A script up to this long is given as an argument; Linux allows 128 KiB (`MAX_ARG_STRLEN`).
const ARGUMENT_BYTES_MAX: usize = 96 * 1024;
/// Shells, the preferred one first.
const SHELLS: [&str; 6] = ["/bin/bash", "/usr/bin/bash", "/bin/sh", "/usr/bin/sh", "/bin/busybox", "/bin/dash"];
/// Reads from one pipe before the other gets its turn: more than the largest pipe holds (1 MiB, pipe(7)).
const READS_MAX: usize = 128;
/// What a script is called in its own error messages.
const SCRIPT_NAME: &str = "shell";

/// A process that was started.
pub struct Started {
    /// Its id, which is also its process group.
    pub pid: i32,
    /// Closed to tell the reader that the process has ended.
    pub done: OwnedFd,
    /// A script's file, to be removed at the end.
    pub script: Option<PathBuf>,
}

/// Starts the work's process, as the agents' user.
///
/// # Errors
/// A sentence for whoever asked for it.
pub fn start(work: &Work, events: &Sender<Event>, gate: &Arc<Gate>, reaping: &Reaping) -> Result<Started, String> {
    let (mut command, script) = command(work).map_err(|error| format!("the script could not be prepared: {error}"))?;
    let name = command.get_program().to_string_lossy().into_owned();
    prepare(&mut command, work);
    let spawned = reaping.held(|| command.spawn());
    let mut child = spawned.map_err(|error| {
        remove(script.as_deref());
        match fs::metadata(&work.directory) {
            Err(_) => format!("the directory {} cannot be used", work.directory),
            Ok(_) => format!("{name} could not be started: {error}"),
        }
    })?;
    if let (Some(stdin), Program::Command { stdin: text, .. }) = (child.stdin.take(), &work.program) {
        feed(stdin, text.clone());
    }
    let failed = |error: io::Error| format!("its output could not be read: {error}");
    let (done_reader, done) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| failed(error.into()))?;
    if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
        let reader = Reader {
            work: work.id,
            pipes: vec![
                Pipe { stream: Stream::Stdout, fd: stdout.into(), decoder: Decoder::default() },
                Pipe { stream: Stream::Stderr, fd: stderr.into(), decoder: Decoder::default() },
            ],
            left: work.output_bytes_max,
            dropped: 0,
            gate: Arc::clone(gate),
            events: events.clone(),
        };
        let run = move || reader.run(done_reader);
        thread::Builder::new().name("output".into()).stack_size(STACK_BYTES).spawn(run).map_err(failed)?;
    }
    Ok(Started { pid: i32::try_from(child.id()).unwrap_or(i32::MAX), done, script })
}

/// Removes a script's file.
pub fn remove(script: Option<&Path>) {
    if let Some(path) = script {
        // In a temporary directory that ends with the container: nothing is lost where it stays.
        let _ = fs::remove_file(path);
    }
}

fn command(work: &Work) -> io::Result<(Command, Option<PathBuf>)> {
    match &work.program {
        Program::Shell { script } => {
            let none = || io::Error::new(io::ErrorKind::NotFound, "there is no shell in this container");
            let shell = SHELLS.iter().find(|path| Path::new(path).exists()).ok_or_else(none)?;
            let mut command = Command::new(shell);
            if shell.ends_with("busybox") {
                command.arg("sh");
            }
            if script.len() <= ARGUMENT_BYTES_MAX {
                command.arg("-c").arg(script).arg(SCRIPT_NAME);
                return Ok((command, None));
            }
            let path = script_file(work.id, script)?;
            command.arg(&path);
            Ok((command, Some(path)))
        }
        Program::Command { argv, .. } => {
            let mut words = argv.iter();
            let empty = || io::Error::new(io::ErrorKind::InvalidInput, "the command is empty");
            let mut command = Command::new(words.next().ok_or_else(empty)?);
            command.args(words);
            Ok((command, None))
        }
    }
}

/// A script that is too long for an argument.
fn script_file(work: WorkId, script: &str) -> io::Result<PathBuf> {
    let (WorkId::Message(raworc_core::ids::MessageId(id)) | WorkId::Exec(id)) = work;
    let path = std::env::temp_dir().join(format!(".raworc-{id}"));
    // Everyone may make files there: one of this name that is there already is not ours.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path)?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.write_all(script.as_bytes())?;
    Ok(path)
}

fn prepare(command: &mut Command, work: &Work) {
    let inherited = std::env::vars_os().filter(|(name, _)| name != TOKEN_VARIABLE);
    command.env_clear().envs(inherited).envs(&work.env).current_dir(&work.directory);
    let has_stdin = matches!(&work.program, Program::Command { stdin, .. } if !stdin.is_empty());
    command.stdin(if has_stdin { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    if nix::unistd::geteuid().is_root() && std::process::id() == 1 {
        // The standard library drops supplementary groups too when it changes the user as root.
        command.uid(AGENT_UID).gid(AGENT_UID);
    }
}

fn feed(mut stdin: ChildStdin, text: String) {
    let run = move || {
        // A program that does not read all of it is within its rights.
        let _ = stdin.write_all(text.as_bytes());
    };
    if let Err(error) = thread::Builder::new().name("stdin".into()).stack_size(STACK_BYTES).spawn(run) {
        eprintln!("standard input could not be fed: {error}");
    }
}

struct Pipe {
    stream: Stream,
    fd: OwnedFd,
    decoder: Decoder,
}

struct Reader {
    work: WorkId,
    pipes: Vec<Pipe>,
    /// Bytes of text that may still be passed on.
    left: usize,
    dropped: u64,
    gate: Arc<Gate>,
    events: Sender<Event>,
}

impl Reader {
    /// Passes on what comes until the process has ended and nothing more is there at once. Processes left running may hold
    /// the pipes for long after that: what they write is read and dropped, so that they neither wait nor die.
    fn run(mut self, done: OwnedFd) {
        for pipe in &self.pipes {
            let _ = fcntl(&pipe.fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        }
        // A byte that is no UTF-8 becomes three.
        let mut buffer = vec![0; OUTPUT_CHUNK_BYTES_MAX / 3];
        loop {
            let ended = self.wait(Some(&done));
            self.read_all(&mut buffer, true);
            if ended {
                break;
            }
        }
        let work = self.work;
        let mut pipes = std::mem::take(&mut self.pipes);
        for pipe in &mut pipes {
            let text = pipe.decoder.finish();
            self.pass_on(pipe.stream, text);
        }
        self.pipes = pipes;
        let drained = self.events.send(Event::Drained { work, dropped_bytes: self.dropped }).is_ok();
        while drained && !self.pipes.is_empty() {
            self.wait(None);
            self.read_all(&mut buffer, false);
        }
    }

    /// Waits until there is something to read; true where `done` was closed.
    fn wait(&self, done: Option<&OwnedFd>) -> bool {
        let mut fds: Vec<PollFd<'_>> =
            self.pipes.iter().map(|pipe| PollFd::new(pipe.fd.as_fd(), PollFlags::POLLIN)).collect();
        fds.extend(done.map(|done| PollFd::new(done.as_fd(), PollFlags::POLLIN)));
        // An interrupted wait is tried again by the loop around it.
        let _ = poll(&mut fds, PollTimeout::NONE);
        done.is_some() && fds.last().and_then(PollFd::any).unwrap_or(false)
    }

    /// Reads what is there; forgets pipes that nobody can write to any more.
    fn read_all(&mut self, buffer: &mut [u8], wanted: bool) {
        for mut pipe in std::mem::take(&mut self.pipes) {
            if self.read(&mut pipe, buffer, wanted) {
                self.pipes.push(pipe);
            }
        }
    }

    /// Reads what one pipe holds; false where that was its end.
    fn read(&mut self, pipe: &mut Pipe, buffer: &mut [u8], wanted: bool) -> bool {
        for _ in 0..READS_MAX {
            match nix::unistd::read(&pipe.fd, buffer) {
                Ok(0) => {
                    let text = pipe.decoder.finish();
                    self.pass_on(pipe.stream, text);
                    return false;
                }
                Ok(count) if wanted => {
                    let text = pipe.decoder.decode(&buffer[..count]);
                    self.pass_on(pipe.stream, text);
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return true,
                Err(_) => return false,
            }
        }
        true
    }

    fn pass_on(&mut self, stream: Stream, mut text: String) {
        if text.len() > self.left {
            let cut = (0..=self.left).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            self.dropped += u64::try_from(text.len() - cut).unwrap_or(u64::MAX);
            text.truncate(cut);
            self.left = cut;
        }
        self.left -= text.len();
        if text.is_empty() {
            return;
        }
        self.gate.enter(text.len(), UNACKED_BYTES_MAX);
        // Nobody listens any more only when the host ends.
        let _ = self.events.send(Event::Output { work: self.work, stream, text });
    }
}
