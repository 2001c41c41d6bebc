//! Starts a container through libcontainer, in a worker.

use std::collections::HashMap;
use std::convert::Infallible;
use std::error::Error;
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::{LinuxNamespaceType, Spec};
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::libc::sock_filter;
use nix::unistd::execve;

use crate::protocol::{PROCESS_FILE, Prepare, Process};
use crate::sys;

/// Starts the container whose cgroup this process is in already; its first process inherits standard input.
pub fn start(
    state: &Path,
    prepare: &Prepare,
    users: BorrowedFd<'_>,
    filter: &[sock_filter],
) -> Result<Process, String> {
    let bundle = reduce(&prepare.bundle, users)?;
    let mut container = ContainerBuilder::new(prepare.container.clone(), SyscallType::default())
        .with_executor(Host { filter: filter.to_vec(), environment: Vec::new() })
        .with_root_path(state)
        .and_then(ContainerBuilder::validate_id)
        .and_then(|builder| builder.as_init(&bundle).with_systemd(false).with_detach(true).build())
        .map_err(|e| describe(&e))?;
    let pid = container.pid().ok_or("it has no process")?.as_raw();
    let process = record(&prepare.bundle, pid)?;
    loopback(pid).map_err(|e| format!("its loopback interface can't be brought up: {e}"))?;
    container.start().map_err(|e| describe(&e))?;
    Ok(process)
}

/// Writes down, before it runs, which process a container is: whoever finds the bundle can find and stop it.
pub fn record(bundle: &Path, pid: i32) -> Result<Process, String> {
    let process = Process::find(pid).ok_or("its process ended at once")?;
    let file = bundle.join(PROCESS_FILE);
    std::fs::write(&file, process.to_string()).map_err(|e| format!("{}: {e}", file.display()))?;
    Ok(process)
}

/// A bundle without what is done here already: limits (the worker's cgroup has them) and the system call filter
/// (compiled once for all containers, loaded by [`Host`]).
fn reduce(bundle: &Path, users: BorrowedFd<'_>) -> Result<std::path::PathBuf, String> {
    let failed = |e: &dyn Error| format!("{}: {e}", bundle.display());
    let mut spec = Spec::load(bundle.join("config.json")).map_err(|e| failed(&e))?;
    join(&mut spec, users);
    let mut linux = spec.linux().clone().ok_or("its configuration is not for Linux")?;
    linux.set_resources(None).set_seccomp(None);
    spec.set_linux(Some(linux));
    let reduced = bundle.join("embedded");
    std::fs::create_dir_all(&reduced).map_err(|e| failed(&e))?;
    spec.save(reduced.join("config.json")).map_err(|e| failed(&e))?;
    Ok(reduced)
}

/// Has a container join a user namespace of which this worker has a descriptor, in place of making one.
fn join(spec: &mut Spec, users: BorrowedFd<'_>) {
    let path = format!("/proc/{}/fd/{}", std::process::id(), users.as_raw_fd());
    let Some(linux) = spec.linux_mut() else { return };
    let namespaces = linux.namespaces_mut().iter_mut().flatten();
    for namespace in namespaces.filter(|namespace| namespace.typ() == LinuxNamespaceType::User) {
        namespace.set_path(Some(path.clone().into()));
    }
}

/// libcontainer leaves the loopback interface down.
fn loopback(pid: i32) -> std::io::Result<()> {
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
    nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
    sys::loopback_up()
}

fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Runs the container's first process: loads the filter and executes the program.
#[derive(Clone)]
struct Host {
    filter: Vec<sock_filter>,
    environment: Vec<CString>,
}

impl Host {
    fn execute(&self, spec: &Spec) -> Result<Infallible, Box<dyn Error + Send + Sync>> {
        let process = spec.process().as_ref().ok_or("no process")?;
        let words = process.args().as_ref().ok_or("no arguments")?;
        let words = words.iter().map(|word| CString::new(word.as_str())).collect::<Result<Vec<_>, _>>()?;
        let variables = process.env().iter().flatten().map(|text| CString::new(text.as_str()));
        let variables = variables.chain(self.environment.iter().cloned().map(Ok)).collect::<Result<Vec<_>, _>>()?;
        let program = words.first().ok_or("no arguments")?;
        sys::load_filter(&self.filter)?;
        Ok(execve(program, &words, &variables)?)
    }
}

impl Executor for Host {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        match self.execute(spec) {
            Ok(never) => match never {},
            Err(error) => Err(ExecutorError::Execution(error)),
        }
    }

    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    /// Nothing of this process's environment is passed on; [`Host::execute`] takes the container's.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}
