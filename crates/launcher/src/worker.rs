//! A worker: one forked process for one request.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::libc::sock_filter;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::cgroup::{Cgroup, Cgroups};
use crate::protocol::{Assign, FAILURE_CHARACTERS_MAX, Outcome, Prepare, Remount, Setup};
use crate::sys::{Fork, fork};
use crate::{assign, container, external, stage, sys, userns, view};

/// What every worker needs.
pub struct WorkerContext {
    /// The server's words.
    pub setup: Setup,
    /// Where the parts of containers are mounted.
    pub stage: PathBuf,
    /// The machine's cgroups; `None` where an external runtime makes them.
    pub cgroups: Option<Cgroups>,
    /// The names of the hierarchies that containers see.
    pub hierarchies: Vec<String>,
    /// The compiled system call filter.
    pub filter: Vec<sock_filter>,
    /// The lock on the data directory: held while this launcher lives, or a worker that gives a container to a session.
    pub lock: Option<OwnedFd>,
}

/// A worker that runs.
pub struct Worker {
    /// Its process.
    pub pid: i32,
    /// The request it works on.
    pub request: u64,
    /// It writes its outcome here, as JSON, in one go.
    pub outcome: OwnedFd,
    /// The container that it prepares, if it prepares one, and the way to tell its first process something.
    pub prepares: Option<(String, OwnedFd)>,
}

/// An action together with what it needs.
pub enum Task {
    /// See [`Action::Prepare`](crate::protocol::Action::Prepare).
    Prepare {
        /// What to do.
        prepare: Prepare,
        /// Its own root filesystem, if it has one.
        root: Option<OwnedFd>,
    },
    /// See [`Action::Assign`].
    Assign {
        /// What to do.
        assign: Assign,
        /// The container's first process, which nobody but this launcher reaps.
        process: i32,
        /// The workspace.
        workspace: OwnedFd,
        /// The first process reads the other end.
        words: OwnedFd,
    },
    /// See [`Action::Remount`](crate::protocol::Action::Remount).
    Remount {
        /// What to do.
        remount: Remount,
        /// The workspace.
        workspace: OwnedFd,
    },
    /// See [`Action::Delete`].
    Delete {
        /// The container's name.
        container: String,
    },
}

impl WorkerContext {
    /// Forks a worker for `task`. It does not keep the launcher's `socket`.
    pub fn employ(&self, request: u64, task: Task, socket: BorrowedFd<'_>) -> Result<Worker, String> {
        let failed = |e: rustix::io::Errno| e.to_string();
        let (cgroup, prepares, stdin) = match &task {
            Task::Prepare { prepare, .. } => {
                let cgroups = self.cgroups.as_ref();
                let cgroup = cgroups.map(|cgroups| cgroups.create(&prepare.cgroup, &prepare.limits)).transpose()?;
                let (stdin, words) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(failed)?;
                (cgroup, Some((prepare.container.clone(), words)), Some(stdin))
            }
            Task::Assign { .. } | Task::Remount { .. } | Task::Delete { .. } => (None, None, None),
        };
        let (outcome, reply) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(failed)?;
        rustix::io::ioctl_fionbio(&outcome, true).map_err(failed)?;
        let parent = std::process::id();
        let inside = cgroup.as_ref().and_then(Cgroup::fork_into);
        match fork(inside).map_err(|e| format!("no process for it: {e}"))? {
            Fork::Parent(pid) => Ok(Worker { pid, request, outcome, prepares }),
            Fork::Child => {
                // What a worker leaves half-started may outlive both it and the launcher: the socket has to close when the
                // launcher dies, for the server to clean up.
                sys::close_inherited(socket);
                drop(outcome);
                // Only the launcher may hold it: its end is the end of what waits.
                drop(prepares);
                let status = self.work(parent, task, cgroup, stdin, File::from(reply));
                std::process::exit(status)
            }
        }
    }

    /// The worker's life; returns its exit status.
    fn work(&self, parent: u32, task: Task, cgroup: Option<Cgroup>, stdin: Option<OwnedFd>, mut reply: File) -> i32 {
        let outcome = self.begin(parent, stdin).and_then(|()| match task {
            Task::Prepare { prepare, root } => self.prepare(&prepare, root, cgroup),
            Task::Assign { assign, process, workspace, words } => {
                assign::assign(&assign, process, workspace.as_fd(), words).map(|()| Outcome::Assigned)
            }
            Task::Remount { remount, workspace } => {
                assign::remount(&remount, workspace.as_fd()).map(|()| Outcome::Remounted)
            }
            Task::Delete { container } => self.delete(&container),
        });
        let shortened = |text: String| text.chars().take(FAILURE_CHARACTERS_MAX).collect();
        let outcome = outcome.unwrap_or_else(|text| Outcome::Failed(shortened(text)));
        let sent = serde_json::to_vec(&outcome).map_err(Into::into).and_then(|json| reply.write_all(&json));
        i32::from(sent.is_err())
    }

    fn begin(&self, parent: u32, stdin: Option<OwnedFd>) -> Result<(), String> {
        // A worker doesn't outlive its launcher: the server would not know of it. The second line is for a launcher that
        // died before the first one.
        set_pdeathsig(Signal::SIGKILL).map_err(|e| e.to_string())?;
        if std::os::unix::process::parent_id() != parent {
            return Err("the launcher has gone".into());
        }
        sys::reset_signals();
        // The container's first process inherits these; the socket to the server was 0.
        let null = File::options().read(true).write(true).open("/dev/null").map_err(|e| format!("/dev/null: {e}"))?;
        let stdin = stdin.map_or_else(|| null.try_clone(), |stdin| Ok(File::from(stdin))).map_err(|e| e.to_string())?;
        rustix::stdio::dup2_stdin(&stdin).map_err(|e| e.to_string())?;
        rustix::stdio::dup2_stdout(&null).map_err(|e| e.to_string())?;
        rustix::stdio::dup2_stderr(&null).map_err(|e| e.to_string())
    }

    fn prepare(&self, prepare: &Prepare, root: Option<OwnedFd>, cgroup: Option<Cgroup>) -> Result<Outcome, String> {
        // What is left half-started outlives this worker, and must not hold the next launcher up. It is no session's.
        if let Some(lock) = &self.lock {
            sys::close_inherited(lock.as_fd());
        }
        let runtime = self.setup.oci_runtime.as_deref();
        stage::set_apart(&self.stage, root, prepare, runtime.is_some())?;
        if let Some(cgroup) = cgroup {
            cgroup.enter()?;
        }
        let state = &self.setup.state;
        let process = match runtime {
            // It makes the user namespace itself: where root lacks CAP_SYS_RESOURCE, only the maker may limit what is in it.
            Some(runtime) => {
                let process = external::start(runtime, state, prepare)?;
                view::enter(process.pid)?;
                view::show_cgroups(&self.hierarchies)?;
                process
            }
            None => {
                let namespace = userns::create(&prepare.users)?;
                container::start(state, prepare, namespace.as_fd(), &self.filter, &self.hierarchies)?
            }
        };
        Ok(Outcome::Prepared(process))
    }

    fn delete(&self, container: &str) -> Result<Outcome, String> {
        if let Some(runtime) = &self.setup.oci_runtime {
            external::delete(runtime, &self.setup.state, container)?;
        }
        Ok(Outcome::Deleted)
    }
}
