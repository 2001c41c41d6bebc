//! A worker: one forked process for one request.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::libc::sock_filter;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::cgroup::{Cgroup, Cgroups};
use crate::protocol::{Action, FAILURE_CHARACTERS_MAX, Outcome, Setup, Start};
use crate::sys::{Fork, fork};
use crate::{container, external, stage, sys};

/// What every worker needs.
pub struct Workshop {
    /// The server's words.
    pub setup: Setup,
    /// Where the parts of containers are mounted.
    pub stage: PathBuf,
    /// The machine's cgroups; `None` where an external runtime makes them.
    pub cgroups: Option<Cgroups>,
    /// The compiled system call filter.
    pub filter: Vec<sock_filter>,
}

/// A worker that runs.
pub struct Worker {
    /// Its process.
    pub pid: i32,
    /// The request it works on.
    pub request: u64,
    /// The container that it starts, if it starts one.
    pub container: Option<String>,
    /// It writes its outcome here, as JSON, in one go.
    pub outcome: OwnedFd,
}

impl Workshop {
    /// Forks a worker for `action`.
    pub fn employ(&self, request: u64, action: Action, workspace: Option<OwnedFd>) -> Result<Worker, String> {
        let cgroup = match (&action, &self.cgroups) {
            (Action::Start(start), Some(cgroups)) => Some(cgroups.create(&start.cgroup, &start.limits)?),
            _ => None,
        };
        let (outcome, reply) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| e.to_string())?;
        rustix::io::ioctl_fionbio(&outcome, true).map_err(|e| e.to_string())?;
        let parent = std::process::id();
        let inside = cgroup.as_ref().and_then(Cgroup::fork_into);
        match fork(inside).map_err(|e| format!("no process for it: {e}"))? {
            Fork::Parent(pid) => {
                let container = match action {
                    Action::Start(start) => Some(start.container),
                    Action::Delete { .. } => None,
                };
                Ok(Worker { pid, request, container, outcome })
            }
            Fork::Child => {
                drop(outcome);
                let status = self.work(parent, &action, workspace, cgroup, File::from(reply));
                std::process::exit(status)
            }
        }
    }

    /// The worker's life; returns its exit status.
    fn work(
        &self,
        parent: u32,
        action: &Action,
        workspace: Option<OwnedFd>,
        cgroup: Option<Cgroup>,
        mut reply: File,
    ) -> i32 {
        let outcome = self.begin(parent).and_then(|()| match action {
            Action::Start(start) => self.start(start, workspace, cgroup),
            Action::Delete { container } => self.delete(container),
        });
        let shortened = |text: String| text.chars().take(FAILURE_CHARACTERS_MAX).collect();
        let outcome = outcome.unwrap_or_else(|text| Outcome::Failed(shortened(text)));
        let sent = serde_json::to_vec(&outcome).map_err(Into::into).and_then(|json| reply.write_all(&json));
        i32::from(sent.is_err())
    }

    fn begin(&self, parent: u32) -> Result<(), String> {
        // A worker doesn't outlive its launcher: the server would not know of it. The second line is for a launcher that
        // died before the first one.
        set_pdeathsig(Signal::SIGKILL).map_err(|e| e.to_string())?;
        if std::os::unix::process::parent_id() != parent {
            return Err("the launcher has gone".into());
        }
        sys::reset_signals();
        // The container's first process inherits these; the socket to the server was 0.
        let null = File::options().read(true).write(true).open("/dev/null").map_err(|e| format!("/dev/null: {e}"))?;
        rustix::stdio::dup2_stdin(&null).map_err(|e| e.to_string())?;
        rustix::stdio::dup2_stdout(&null).map_err(|e| e.to_string())?;
        rustix::stdio::dup2_stderr(&null).map_err(|e| e.to_string())
    }

    fn start(&self, start: &Start, workspace: Option<OwnedFd>, cgroup: Option<Cgroup>) -> Result<Outcome, String> {
        if let Some(cgroup) = cgroup {
            cgroup.enter()?;
        }
        let workspace = workspace.ok_or("no workspace came with the request")?;
        stage::attach_workspace(&self.stage, workspace.as_fd())?;
        drop(workspace);
        let state = &self.setup.state;
        let process = match &self.setup.oci_runtime {
            Some(runtime) => external::start(runtime, state, start)?,
            None => container::start(state, start, &self.filter)?,
        };
        Ok(Outcome::Started(process))
    }

    fn delete(&self, container: &str) -> Result<Outcome, String> {
        if let Some(runtime) = &self.setup.oci_runtime {
            external::delete(runtime, &self.setup.state, container)?;
        }
        Ok(Outcome::Deleted)
    }
}
