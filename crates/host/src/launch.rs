//! Starts a program on a terminal. Code between fork and exec would be unsafe, so the host executes itself as the
//! agents' user; that process becomes a session leader, then executes the program.

use std::env;
use std::ffi::OsString;
use std::io::{self, stdin};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::process::{ioctl_tiocsctty, setsid};

/// The first argument that makes the host launch a program.
const LAUNCH_ARGUMENT: &str = "launch";
/// The path of the running executable.
const SELF_EXE: &str = "/proc/self/exe";
/// Exit status for a program that does not exist, as in shells.
const NOT_FOUND: u8 = 127;
/// Exit status for a program that cannot be executed, as in shells.
const NOT_EXECUTABLE: u8 = 126;

/// A command that launches `program` with the terminal on its standard input as controlling terminal.
pub fn terminal_command(program: &Command) -> Command {
    let mut command = Command::new(SELF_EXE);
    command.arg(LAUNCH_ARGUMENT).arg(program.get_program()).args(program.get_args());
    command
}

/// Executes the program if this process was started by [`terminal_command`]. Returns only on failure, or if it was
/// not.
pub fn exec_program() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next()? != LAUNCH_ARGUMENT {
        return None;
    }
    let program = arguments.next()?;
    let error = execute(&program, arguments);
    let name = program.to_string_lossy();
    // Written to the terminal, as a shell would do.
    if error.kind() == io::ErrorKind::NotFound || is_hidden(&error, &name) {
        eprintln!("{name} was not found");
        return Some(ExitCode::from(NOT_FOUND));
    }
    eprintln!("{name} could not be started: {error}");
    Some(ExitCode::from(NOT_EXECUTABLE))
}

/// Whether the error only says that a directory of PATH cannot be searched.
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
