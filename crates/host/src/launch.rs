//! Starts a program on a terminal. Between fork and exec, where no safe code may run, nothing is done; this program executes
//! itself instead, as the agents' user already, becomes the leader of a session, and then the program.

use std::env;
use std::ffi::OsString;
use std::io::{self, stdin};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::process::{ioctl_tiocsctty, setsid};

/// The first argument of a host that is to become another program.
const WORD: &str = "launch";
/// Where every process finds its own program.
const SELF: &str = "/proc/self/exe";
/// As shells say it: there is no such program.
const NOT_FOUND: u8 = 127;
/// As shells say it: there is one, but it cannot be executed.
const NOT_EXECUTABLE: u8 = 126;

/// What becomes `program`, in control of the terminal that is its standard input.
pub fn on_terminal(program: &Command) -> Command {
    let mut command = Command::new(SELF);
    command.arg(WORD).arg(program.get_program()).args(program.get_args());
    command
}

/// Becomes the program, where that is what this process was started for.
pub fn become_program() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next()? != WORD {
        return None;
    }
    let program = arguments.next()?;
    let error = execute(&program, arguments);
    let name = program.to_string_lossy();
    // The reason appears on the terminal, as a shell would say it.
    if error.kind() == io::ErrorKind::NotFound || is_hidden(&error, &name) {
        eprintln!("{name} was not found");
        return Some(ExitCode::from(NOT_FOUND));
    }
    eprintln!("{name} could not be started: {error}");
    Some(ExitCode::from(NOT_EXECUTABLE))
}

/// A directory of PATH that may not be searched hides that the program is in none.
fn is_hidden(error: &io::Error, name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = || env::split_paths(&path).any(|directory| directory.join(name).exists());
    error.kind() == io::ErrorKind::PermissionDenied && !name.contains('/') && !is_there()
}

fn execute(program: &OsString, arguments: impl Iterator<Item = OsString>) -> io::Error {
    if let Err(error) = setsid().and_then(|_| ioctl_tiocsctty(stdin())) {
        return error.into();
    }
    Command::new(program).args(arguments).exec()
}
