//! Starts the process of a piece of work.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use raworc_core::link::{AGENT_UID, Ending, Program, Stream, Work};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, ioctl_fionbio, write};

use crate::identity::{self, Tags};
use crate::launch;
use crate::processes::{self, Owner};
use crate::script::{self, Script, Scripts};
use crate::terminal::Terminal;

/// Exit status of a program that is not there, as a shell's (POSIX, 2.8.2).
const NOT_FOUND: i32 = 127;
/// Exit status of one that is there and cannot be run.
const NOT_EXECUTABLE: i32 = 126;

/// A process that was started.
pub struct Started {
    /// How its processes are found; the first one leads a process group.
    pub owner: Owner,
    /// Its outputs; reading them does not block.
    pub pipes: Vec<(Stream, OwnedFd)>,
    /// What it is to be given.
    pub feed: Option<Feed>,
    /// A script's file.
    pub script: Option<Script>,
}

/// A process of attached work that was started.
pub struct Attached {
    /// How its processes are found; the first one leads a process group.
    pub owner: Owner,
    /// Its pipes, where they were wanted.
    pub child: Child,
    /// A script's file.
    pub script: Option<Script>,
}

/// Why work has no process.
pub struct NotStarted {
    /// How it ended therefore.
    pub ending: Ending,
    /// A sentence for whoever asked for it.
    pub reason: String,
}

impl NotStarted {
    /// For a reason that is not the work's.
    pub fn here(reason: impl Into<String>) -> Self {
        Self { ending: Ending::NotStarted, reason: reason.into() }
    }

    fn with_status(status: i32, reason: String) -> Self {
        Self { ending: Ending::Exited(status), reason }
    }
}

/// Starts processes.
pub struct Spawner {
    scripts: Scripts,
    tags: Tags,
    /// What the agents' user is called, once someone has asked.
    agent_name: Option<String>,
}

impl Spawner {
    /// One that puts scripts into this directory.
    pub fn new(scripts: PathBuf) -> Self {
        Self { scripts: Scripts::new(scripts), tags: Tags::default(), agent_name: None }
    }

    /// Starts the work's process, as the agents' user. Whoever calls this also reaps: the standard library has to find a
    /// child whose exec failed.
    ///
    /// # Errors
    /// Why it could not.
    pub fn start(&mut self, work: &Work) -> Result<Started, NotStarted> {
        let (mut command, script) = self.command(work)?;
        self.prepare(&mut command, work);
        let has_stdin = matches!(&work.program, Program::Command { stdin, .. } if !stdin.is_empty());
        command.stdin(if has_stdin { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let (owner, mut child) = self.spawn(&mut command, work)?;
        Ok(Started { owner, feed: feed(&mut child, &work.program), pipes: pipes(&mut child), script })
    }

    /// The same with a pipe for each of its standard streams.
    ///
    /// # Errors
    /// Why it could not.
    pub fn start_piped(&mut self, work: &Work) -> Result<Attached, NotStarted> {
        let (mut command, script) = self.command(work)?;
        self.prepare(&mut command, work);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let (owner, child) = self.spawn(&mut command, work)?;
        Ok(Attached { owner, child, script })
    }

    /// The same on a terminal, which controls the process. A program that is not there is told on the terminal.
    ///
    /// # Errors
    /// Why it could not.
    pub fn start_on(&mut self, terminal: &Terminal, work: &Work) -> Result<Attached, NotStarted> {
        let (program, script) = self.command(work)?;
        let mut command = launch::on_terminal(&program);
        self.prepare(&mut command, work);
        let streams = [terminal.stdio(), terminal.stdio(), terminal.stdio()];
        let [Ok(stdin), Ok(stdout), Ok(stderr)] = streams else {
            return Err(NotStarted::here("there are too few descriptors"));
        };
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        let (owner, child) = self.spawn(&mut command, work)?;
        Ok(Attached { owner, child, script })
    }

    fn spawn(&mut self, command: &mut Command, work: &Work) -> Result<(Owner, Child), NotStarted> {
        let tag = self.tags.next(processes::tags_in_use);
        let spawned = identity::as_agent(tag, || command.spawn());
        let child = spawned.map_err(|error| why(&error, command, work))?;
        let leader = i32::try_from(child.id()).unwrap_or(i32::MAX);
        Ok((Owner { leader, tag }, child))
    }

    fn command(&mut self, work: &Work) -> Result<(Command, Option<Script>), NotStarted> {
        self.program(work).map_err(|error| NotStarted::here(format!("it could not be prepared: {error}")))
    }

    fn program(&mut self, work: &Work) -> io::Result<(Command, Option<Script>)> {
        let empty = || io::Error::new(ErrorKind::InvalidInput, "the command is empty");
        match &work.program {
            Program::Shell { script: text } => {
                let mut command = command(&script::interpreter(text)?).ok_or_else(empty)?;
                let script = self.scripts.write(text)?;
                command.arg(script.path());
                Ok((command, Some(script)))
            }
            Program::Command { argv, .. } => Ok((command(argv).ok_or_else(empty)?, None)),
        }
    }

    fn prepare(&mut self, command: &mut Command, work: &Work) {
        let name = self.agent_name.get_or_insert_with(identity::agent_name);
        command.env("USER", &*name).env("LOGNAME", name).env("PWD", &work.directory);
        if let Some(shell) = script::shell().ok().and_then(|words| words.into_iter().next()) {
            command.env("SHELL", shell);
        }
        command.envs(&work.env).current_dir(&work.directory);
        if identity::is_root() {
            command.uid(AGENT_UID);
        }
    }
}

fn command(words: &[String]) -> Option<Command> {
    let (program, arguments) = words.split_first()?;
    let mut command = Command::new(program);
    command.args(arguments);
    Some(command)
}

/// What a shell would say, and the status it would end with.
fn why(error: &io::Error, command: &Command, work: &Work) -> NotStarted {
    if let Err(error) = can_be_entered(&work.directory) {
        let error = io::Error::from(error);
        return NotStarted::with_status(
            NOT_EXECUTABLE,
            format!("the directory {} cannot be used: {error}", work.directory),
        );
    }
    let name = command.get_program().to_string_lossy();
    let is_script = matches!(work.program, Program::Shell { .. });
    let what = if is_script { format!("the script's interpreter {name}") } else { name.to_string() };
    match error.kind() {
        ErrorKind::NotFound if name.starts_with('/') && fs::symlink_metadata(&*name).is_ok() => {
            NotStarted::with_status(
                NOT_FOUND,
                format!("{what} could not be started: what it needs to run is not there"),
            )
        }
        ErrorKind::NotFound => NotStarted::with_status(NOT_FOUND, format!("{what} was not found")),
        // A directory of PATH that may not be searched hides that there is none.
        ErrorKind::PermissionDenied if !name.contains('/') && !is_in_path(&name, work) => {
            NotStarted::with_status(NOT_FOUND, format!("{what} was not found"))
        }
        // Neither the program's fault nor its caller's.
        ErrorKind::WouldBlock | ErrorKind::OutOfMemory | ErrorKind::InvalidInput => {
            NotStarted::here(format!("{what} could not be started: {error}"))
        }
        _ => NotStarted::with_status(NOT_EXECUTABLE, format!("{what} could not be started: {error}")),
    }
}

fn is_in_path(name: &str, work: &Work) -> bool {
    let path = work.env.get("PATH").cloned().or_else(|| std::env::var("PATH").ok()).unwrap_or_default();
    identity::with_agents_files(|| path.split(':').any(|directory| Path::new(directory).join(name).exists()))
}

fn can_be_entered(directory: &str) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // The dot is what has to be looked up in it.
    identity::with_agents_files(|| open(format!("{directory}/."), flags, Mode::empty())).map(drop)
}

fn pipes(child: &mut Child) -> Vec<(Stream, OwnedFd)> {
    let stdout = child.stdout.take().map(|pipe| (Stream::Stdout, OwnedFd::from(pipe)));
    let stderr = child.stderr.take().map(|pipe| (Stream::Stderr, OwnedFd::from(pipe)));
    let pipes: Vec<(Stream, OwnedFd)> = stdout.into_iter().chain(stderr).collect();
    // Only our ends: the agent's are as it expects them.
    pipes.into_iter().filter(|(_, pipe)| ioctl_fionbio(pipe, true).is_ok()).collect()
}

/// Standard input on its way to a process.
pub struct Feed {
    pipe: OwnedFd,
    text: String,
    written: usize,
}

fn feed(child: &mut Child, program: &Program) -> Option<Feed> {
    let pipe = OwnedFd::from(child.stdin.take()?);
    let Program::Command { stdin, .. } = program else { return None };
    ioctl_fionbio(&pipe, true).ok()?;
    Some(Feed { pipe, text: stdin.clone(), written: 0 })
}

impl Feed {
    /// What to wait for.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Writes as much as the process takes; false where that is all, or where it reads no more, as is its right.
    pub fn write(&mut self) -> bool {
        match write(&self.pipe, &self.text.as_bytes()[self.written..]) {
            Ok(count) => {
                self.written += count;
                self.written < self.text.len()
            }
            Err(error) => matches!(error, Errno::AGAIN | Errno::INTR),
        }
    }
}
