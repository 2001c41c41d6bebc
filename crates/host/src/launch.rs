//! Starts a program on a terminal. Between fork and exec, where no safe code may run, nothing is done; this program
//! executes itself instead, becomes the leader of a session, and then the program.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, stdin};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use raworc_core::link::AGENT_UID;
use rustix::process::{geteuid, ioctl_tiocsctty, setsid};

/// The first argument of a host that is to become another program.
const WORD: &str = "launch";
/// Where every process finds its own program.
const SELF: &str = "/proc/self/exe";
/// As shells say it: there is no such program.
const NOT_FOUND: u8 = 127;
/// As shells say it: there is one, but it cannot be executed.
const NOT_EXECUTABLE: u8 = 126;

/// What starts `command` in `directory`, as the agents' user, in control of the terminal that is its standard input.
pub fn command(command: &Command, directory: &str) -> Command {
    let mut launcher = Command::new(SELF);
    launcher.arg(WORD).arg(directory).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => launcher.env(name, value),
            None => launcher.env_remove(name),
        };
    }
    launcher
}

/// Becomes the program, where that is what this process was started for.
pub fn become_program() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next()? != WORD {
        return None;
    }
    let (directory, program) = (arguments.next()?, arguments.next()?);
    let error = execute(&directory, &program, arguments);
    // The reason appears on the terminal, as a shell would say it.
    let not_there = error.kind() == io::ErrorKind::NotFound;
    match fs::metadata(&directory) {
        Err(_) => eprintln!("the directory {} cannot be used", directory.to_string_lossy()),
        Ok(_) => eprintln!("{} could not be started: {error}", program.to_string_lossy()),
    }
    Some(ExitCode::from(if not_there { NOT_FOUND } else { NOT_EXECUTABLE }))
}

fn execute(directory: &OsString, program: &OsString, arguments: impl Iterator<Item = OsString>) -> io::Error {
    if let Err(error) = setsid().and_then(|_| ioctl_tiocsctty(stdin())) {
        return error.into();
    }
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory);
    if geteuid().is_root() {
        // The standard library drops supplementary groups too when it changes the user as root.
        command.uid(AGENT_UID).gid(AGENT_UID);
    }
    command.exec()
}
