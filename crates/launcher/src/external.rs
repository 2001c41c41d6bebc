//! Starts a container through another OCI runtime, in a worker.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::container::record;
use crate::protocol::{Prepare, Process};

/// How much of the runtime's last words goes into an error.
const LOG_BYTES_MAX: usize = 2048;

/// Creates and starts the container; its first process inherits standard input.
pub fn start(runtime: &Path, state: &Path, prepare: &Prepare) -> Result<Process, String> {
    let pid_file = prepare.bundle.join("pid");
    let log = prepare.bundle.join("runtime.log");
    let mut create = command(runtime, state, Some(&log), "create");
    create.stdin(Stdio::inherit());
    create.arg("--bundle").arg(&prepare.bundle).arg("--pid-file").arg(&pid_file).arg(&prepare.container);
    run(create, Some(&log))?;
    let text = std::fs::read_to_string(&pid_file).map_err(|e| format!("{}: {e}", pid_file.display()))?;
    let pid = text.trim().parse().map_err(|_| format!("{} does not name a process", pid_file.display()))?;
    let process = record(&prepare.bundle, pid)?;
    let mut begin = command(runtime, state, Some(&log), "start");
    begin.arg(&prepare.container);
    run(begin, Some(&log))?;
    Ok(process)
}

/// Has the runtime forget the container, if it knows it.
pub fn delete(runtime: &Path, state: &Path, container: &str) -> Result<(), String> {
    let mut query = command(runtime, state, None, "state");
    query.arg(container);
    if run(query, None).is_err() {
        return Ok(());
    }
    let mut delete = command(runtime, state, None, "delete");
    delete.arg("--force").arg(container);
    run(delete, None)
}

fn command(runtime: &Path, state: &Path, log: Option<&Path>, verb: &str) -> Command {
    let mut command = Command::new(runtime);
    command.arg("--root").arg(state);
    if let Some(log) = log {
        command.arg("--log").arg(log);
    }
    // A container inherits these from `create`: it must not hold a pipe that someone waits on.
    command.arg(verb).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: prctl is async-signal-safe, and this process is single-threaded anyway.
    unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
    command
}

fn run(mut command: Command, log: Option<&Path>) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().map_err(|e| format!("{name}: {e}"))?;
    if status.success() {
        return Ok(());
    }
    let words = log.and_then(|log| std::fs::read(log).ok()).unwrap_or_default();
    let words = String::from_utf8_lossy(&words[words.len().saturating_sub(LOG_BYTES_MAX)..]).trim().to_owned();
    Err(format!("{name}: {status}: {words}"))
}
