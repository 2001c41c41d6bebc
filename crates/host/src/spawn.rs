//! Starts the first process of work.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use raworc_core::link::{AGENT_UID, Ending, OutputStream, Program, Work};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, ioctl_fionbio, write};

use crate::gateway::Gateway;
use crate::identity::{self, WorkGidAllocator};
use crate::launch;
use crate::processes::{self, ProcessSelector};
use crate::script::{self, Script, Scripts};
use crate::terminal::Terminal;

/// Exit status for a program that does not exist, as in a shell (POSIX, 2.8.2).
const NOT_FOUND: i32 = 127;
/// Exit status for a program that cannot be executed.
const NOT_EXECUTABLE: i32 = 126;

/// The process of a message or command.
pub struct SpawnedProcess {
    /// Selects its processes; the first leads a process group.
    pub selector: ProcessSelector,
    /// Its output pipes, non-blocking.
    pub pipes: Vec<(OutputStream, OwnedFd)>,
    /// Its standard input, if data is to be written to it.
    pub stdin: Option<StdinWriter>,
    /// The script file, if it is a script.
    pub script: Option<Script>,
}

/// The process of interactive work.
pub struct AttachedProcess {
    /// Selects its processes; the first leads a process group.
    pub selector: ProcessSelector,
    /// The child, with its pipes if there are any.
    pub child: Child,
    /// The script file, if it is a script.
    pub script: Option<Script>,
}

/// Why work could not be started.
pub struct StartError {
    /// The ending to report.
    pub ending: Ending,
    /// A sentence for the client.
    pub reason: String,
}

impl StartError {
    /// A failure of the host, not of the work.
    pub fn host_failure(reason: impl Into<String>) -> Self {
        Self { ending: Ending::NotStarted, reason: reason.into() }
    }

    fn with_status(status: i32, reason: String) -> Self {
        Self { ending: Ending::Exited(status), reason }
    }
}

/// Starts the processes of work.
pub struct Spawner {
    scripts: Scripts,
    work_gids: WorkGidAllocator,
    /// The name of the agents' user, once it is needed.
    agent_name: Option<String>,
    /// Where programs find the gateway.
    gateway: Option<SocketAddrV4>,
}

impl Spawner {
    /// Writes scripts to the directory `scripts`.
    pub fn new(scripts: PathBuf, gateway: Option<SocketAddrV4>) -> Self {
        Self { scripts: Scripts::new(scripts), work_gids: WorkGidAllocator::default(), agent_name: None, gateway }
    }

    /// Starts a work's process as the agents' user. Only the calling thread may reap, because the standard library
    /// waits for a child whose exec failed.
    ///
    /// # Errors
    /// Why it cannot be started.
    pub fn start(&mut self, work: &Work) -> Result<SpawnedProcess, StartError> {
        let (mut command, script) = self.command(work)?;
        self.prepare(&mut command, work);
        let has_stdin = matches!(&work.program, Program::Command { stdin, .. } if !stdin.is_empty());
        command.stdin(if has_stdin { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let (selector, mut child) = self.spawn(&mut command, work)?;
        Ok(SpawnedProcess { selector, stdin: stdin(&mut child, &work.program), pipes: pipes(&mut child), script })
    }

    /// Starts it with a pipe for each standard stream.
    ///
    /// # Errors
    /// Why it cannot be started.
    pub fn start_piped(&mut self, work: &Work) -> Result<AttachedProcess, StartError> {
        let (mut command, script) = self.command(work)?;
        self.prepare(&mut command, work);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let (selector, child) = self.spawn(&mut command, work)?;
        Ok(AttachedProcess { selector, child, script })
    }

    /// Starts it with `terminal` as its controlling terminal. A missing program is reported on the terminal.
    ///
    /// # Errors
    /// Why it cannot be started.
    pub fn start_on(&mut self, terminal: &Terminal, work: &Work) -> Result<AttachedProcess, StartError> {
        let (program, script) = self.command(work)?;
        let mut command = launch::terminal_command(&program);
        self.prepare(&mut command, work);
        let streams = [terminal.stdio(), terminal.stdio(), terminal.stdio()];
        let [Ok(stdin), Ok(stdout), Ok(stderr)] = streams else {
            return Err(StartError::host_failure("there are too few descriptors"));
        };
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        let (selector, child) = self.spawn(&mut command, work)?;
        Ok(AttachedProcess { selector, child, script })
    }

    fn spawn(&mut self, command: &mut Command, work: &Work) -> Result<(ProcessSelector, Child), StartError> {
        let work_gid = self.work_gids.allocate(processes::work_gids_in_use);
        let spawned = identity::as_agent(work_gid, || command.spawn());
        let child = spawned.map_err(|error| start_error(&error, command, work))?;
        let leader = i32::try_from(child.id()).unwrap_or(i32::MAX);
        Ok((ProcessSelector { leader, work_gid }, child))
    }

    fn command(&mut self, work: &Work) -> Result<(Command, Option<Script>), StartError> {
        self.program(work).map_err(|error| StartError::host_failure(format!("it could not be prepared: {error}")))
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
        if let Some(address) = self.gateway {
            command.envs(Gateway::variables(address, work.id));
        }
        // What the session and the agent set comes last, so that it prevails.
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

/// The message and exit status that a shell would give.
fn start_error(error: &io::Error, command: &Command, work: &Work) -> StartError {
    if let Err(error) = can_be_entered(&work.directory) {
        let error = io::Error::from(error);
        return StartError::with_status(
            NOT_EXECUTABLE,
            format!("the directory {} cannot be used: {error}", work.directory),
        );
    }
    let name = command.get_program().to_string_lossy();
    let is_script = matches!(work.program, Program::Shell { .. });
    let what = if is_script { format!("the script's interpreter {name}") } else { name.to_string() };
    match error.kind() {
        ErrorKind::NotFound if name.starts_with('/') && fs::symlink_metadata(&*name).is_ok() => {
            StartError::with_status(
                NOT_FOUND,
                format!("{what} could not be started: what it needs to run is not there"),
            )
        }
        ErrorKind::NotFound => StartError::with_status(NOT_FOUND, format!("{what} was not found")),
        // A directory of PATH that cannot be searched gives this error, too, although the program does not exist.
        ErrorKind::PermissionDenied if !name.contains('/') && !is_in_path(&name, work) => {
            StartError::with_status(NOT_FOUND, format!("{what} was not found"))
        }
        // A shortage of resources, which is neither the program's nor the client's fault.
        ErrorKind::WouldBlock | ErrorKind::OutOfMemory | ErrorKind::InvalidInput => {
            StartError::host_failure(format!("{what} could not be started: {error}"))
        }
        _ => StartError::with_status(NOT_EXECUTABLE, format!("{what} could not be started: {error}")),
    }
}

fn is_in_path(name: &str, work: &Work) -> bool {
    let path = work.env.get("PATH").cloned().or_else(|| std::env::var("PATH").ok()).unwrap_or_default();
    identity::with_agent_fsuid(|| path.split(':').any(|directory| Path::new(directory).join(name).exists()))
}

fn can_be_entered(directory: &str) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // The dot makes the kernel check search permission.
    identity::with_agent_fsuid(|| open(format!("{directory}/."), flags, Mode::empty())).map(drop)
}

fn pipes(child: &mut Child) -> Vec<(OutputStream, OwnedFd)> {
    let stdout = child.stdout.take().map(|pipe| (OutputStream::Stdout, OwnedFd::from(pipe)));
    let stderr = child.stderr.take().map(|pipe| (OutputStream::Stderr, OwnedFd::from(pipe)));
    let pipes: Vec<(OutputStream, OwnedFd)> = stdout.into_iter().chain(stderr).collect();
    // Makes our ends non-blocking; the agent's ends stay as it expects.
    pipes.into_iter().filter(|(_, pipe)| ioctl_fionbio(pipe, true).is_ok()).collect()
}

/// Writes a process's standard input.
pub struct StdinWriter {
    pipe: OwnedFd,
    text: String,
    written: usize,
}

fn stdin(child: &mut Child, program: &Program) -> Option<StdinWriter> {
    let pipe = OwnedFd::from(child.stdin.take()?);
    let Program::Command { stdin, .. } = program else { return None };
    ioctl_fionbio(&pipe, true).ok()?;
    Some(StdinWriter { pipe, text: stdin.clone(), written: 0 })
}

impl StdinWriter {
    /// The descriptor to poll.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Writes as much as the process takes. Returns false when all is written or the process has closed it.
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
