//! Starts the process of a piece of work.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use raworc_core::ids::MessageId;
use raworc_core::link::{AGENT_UID, Program, Stream, Work, WorkId};
use rustix::io::{Errno, ioctl_fionbio, write};

/// A script up to this long is given as an argument; Linux allows 128 KiB (`MAX_ARG_STRLEN`).
const ARGUMENT_BYTES_MAX: usize = 96 * 1024;
/// Shells, the preferred one first.
const SHELLS: [&str; 6] = ["/bin/bash", "/usr/bin/bash", "/bin/sh", "/usr/bin/sh", "/bin/busybox", "/bin/dash"];
/// What a script is called in its own error messages.
const SCRIPT_NAME: &str = "shell";

/// A process that was started.
pub struct Started {
    /// Its id, which is also its process group.
    pub process: i32,
    /// Its outputs; reading them does not block.
    pub pipes: Vec<(Stream, OwnedFd)>,
    /// What it is to be given.
    pub feed: Option<Feed>,
    /// A script's file.
    pub script: Option<ScriptFile>,
}

/// Starts the work's process, as the agents' user. Whoever calls this also reaps: the standard library has to find a
/// child whose exec failed.
///
/// # Errors
/// A sentence for whoever asked for it.
pub fn start(work: &Work) -> Result<Started, String> {
    let (mut command, script) = command(work).map_err(|error| format!("it could not be prepared: {error}"))?;
    let name = command.get_program().to_string_lossy().into_owned();
    prepare(&mut command, work);
    let mut child = command.spawn().map_err(|error| match fs::metadata(&work.directory) {
        Err(_) => format!("the directory {} cannot be used", work.directory),
        Ok(_) => format!("{name} could not be started: {error}"),
    })?;
    let process = i32::try_from(child.id()).unwrap_or(i32::MAX);
    Ok(Started { process, feed: feed(&mut child, &work.program), pipes: pipes(&mut child), script })
}

/// A script that is too long for an argument; removed when it is dropped.
pub struct ScriptFile(PathBuf);

impl ScriptFile {
    fn write(work: WorkId, script: &str) -> io::Result<Self> {
        let (WorkId::Message(MessageId(id)) | WorkId::Exec(id)) = work;
        let path = std::env::temp_dir().join(format!(".raworc-{id}"));
        // Everyone may make files there: one of this name that is there already is not ours.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path)?;
        let this = Self(path);
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        file.write_all(script.as_bytes())?;
        Ok(this)
    }
}

impl Drop for ScriptFile {
    fn drop(&mut self) {
        // In a temporary directory that ends with the container: nothing is lost where it stays.
        let _ = fs::remove_file(&self.0);
    }
}

/// The program of a piece of work and its arguments; a script's file has to be kept for as long as it runs.
pub fn command(work: &Work) -> io::Result<(Command, Option<ScriptFile>)> {
    match &work.program {
        Program::Shell { script } => shell(work.id, script),
        Program::Command { argv, .. } => {
            let mut words = argv.iter();
            let empty = || io::Error::new(io::ErrorKind::InvalidInput, "the command is empty");
            let mut command = Command::new(words.next().ok_or_else(empty)?);
            command.args(words);
            Ok((command, None))
        }
    }
}

/// The shell, without arguments of its own.
pub fn plain_shell() -> io::Result<Command> {
    let none = || io::Error::new(io::ErrorKind::NotFound, "there is no shell in this container");
    let shell = SHELLS.iter().find(|path| Path::new(path).exists()).ok_or_else(none)?;
    let mut command = Command::new(shell);
    if shell.ends_with("busybox") {
        command.arg("sh");
    }
    Ok(command)
}

fn shell(work: WorkId, script: &str) -> io::Result<(Command, Option<ScriptFile>)> {
    let mut command = plain_shell()?;
    if script.len() <= ARGUMENT_BYTES_MAX {
        command.arg("-c").arg(script).arg(SCRIPT_NAME);
        return Ok((command, None));
    }
    let file = ScriptFile::write(work, script)?;
    command.arg(&file.0);
    Ok((command, Some(file)))
}

fn prepare(command: &mut Command, work: &Work) {
    command.envs(&work.env).current_dir(&work.directory);
    let has_stdin = matches!(&work.program, Program::Command { stdin, .. } if !stdin.is_empty());
    command.stdin(if has_stdin { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    if rustix::process::geteuid().is_root() {
        // The standard library drops supplementary groups too when it changes the user as root.
        command.uid(AGENT_UID).gid(AGENT_UID);
    }
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
