//! Starts a container through libcontainer, in a worker.

use std::collections::HashMap;
use std::convert::Infallible;
use std::error::Error;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::{LinuxNamespaceType, Spec};
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::libc::sock_filter;
use nix::sched::{CloneFlags, setns};
use nix::unistd::execve;

use crate::mounts::Mounts;
use crate::protocol::{PROCESS_FILE, Prepare, Process};
use crate::{network, sys, view};

/// Starts the container whose cgroup this process is in already; its first process inherits standard input. It sees the cgroup
/// hierarchies of these names.
pub fn start(
    state: &Path,
    prepare: &Prepare,
    users: BorrowedFd<'_>,
    filter: &[sock_filter],
    hierarchies: &[String],
) -> Result<Process, String> {
    let Reduced { bundle, mounts, sysctls } = reduce(prepare, users)?;
    let mut container = ContainerBuilder::new(prepare.container.clone(), SyscallType::default())
        .with_executor(Host { filter: filter.to_vec(), environment: Vec::new() })
        .with_root_path(state)
        .and_then(ContainerBuilder::validate_id)
        .and_then(|builder| builder.as_init(&bundle).with_systemd(false).with_detach(true).build())
        .map_err(|e| describe(&e))?;
    let pid = container.pid().ok_or("it has no process")?.as_raw();
    let process = record(&prepare.bundle, pid)?;
    network::prepare(pid, &sysctls, prepare.users.base)?;
    furnish(pid, &mounts, hierarchies)?;
    container.start().map_err(|e| describe(&e))?;
    Ok(process)
}

/// Mounts in the container what libcontainer does not, and comes back.
fn furnish(pid: i32, mounts: &Mounts, hierarchies: &[String]) -> Result<(), String> {
    let own = File::open("/proc/self/ns/mnt").map_err(|e| format!("/proc/self/ns/mnt: {e}"))?;
    view::enter(pid)?;
    mounts.carry_out()?;
    view::show_cgroups(hierarchies)?;
    setns(own, CloneFlags::CLONE_NEWNS).map_err(|e| format!("its mount namespace can't be left: {e}"))
}

/// Writes down, before it runs, which process a container is: whoever finds the bundle can find and stop it.
pub fn record(bundle: &Path, pid: i32) -> Result<Process, String> {
    let process = Process::find(pid).ok_or("its process ended at once")?;
    let file = bundle.join(PROCESS_FILE);
    std::fs::write(&file, process.to_string()).map_err(|e| format!("{}: {e}", file.display()))?;
    Ok(process)
}

/// A bundle without what is done here: mounts and settings of the kernel. Limits and system call filter are in none that
/// libcontainer gets: the worker's cgroup has the ones, [`Host`] loads the other.
struct Reduced {
    bundle: PathBuf,
    mounts: Mounts,
    sysctls: HashMap<String, String>,
}

fn reduce(prepare: &Prepare, users: BorrowedFd<'_>) -> Result<Reduced, String> {
    let bundle = &prepare.bundle;
    let failed = |e: &dyn Error| format!("{}: {e}", bundle.display());
    let mut spec = Spec::load(bundle.join("config.json")).map_err(|e| failed(&e))?;
    join(&mut spec, users);
    let mounts = Mounts::take(&mut spec, prepare.users.base)?;
    let linux = spec.linux_mut().as_mut().ok_or("its configuration is not for Linux")?;
    let sysctls = linux.sysctl().clone().unwrap_or_default();
    linux.set_sysctl(None);
    let reduced = bundle.join("embedded");
    std::fs::create_dir_all(&reduced).map_err(|e| failed(&e))?;
    spec.save(reduced.join("config.json")).map_err(|e| failed(&e))?;
    Ok(Reduced { bundle: reduced, mounts, sysctls })
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
