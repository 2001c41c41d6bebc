//! One work with attached streams: its processes, and its terminal or pipes.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use raworc_core::limits::CANCEL_GRACE;
use raworc_core::link::{Ending, Interactive, Program, Work, WorkId};
use uuid::Uuid;

use crate::piped::PipedIo;
use crate::processes::{self, KnownProcesses, ProcessSelector};
use crate::script::{self, Script};
use crate::signals::ExitStatus;
use crate::spawn::{AttachedProcess, Spawner, StartError};
use crate::terminal::Terminal;

/// How often killed work is killed again, because processes may fork meanwhile.
const KILL_INTERVAL: Duration = Duration::from_millis(100);
/// How long after the first SIGKILL work counts as ended, even if processes are left.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// How a program's standard streams are connected.
pub enum ProgramIo {
    /// A terminal; `None` after it was hung up.
    Terminal(Option<Box<Terminal>>),
    /// Pipes.
    Piped(PipedIo),
}

/// The termination of work that is still running.
struct Termination {
    why: Ending,
    /// The processes to kill: after a terminal was hung up, only those still attached to it.
    selector: ProcessSelector,
    /// When SIGKILL is sent next.
    kill_at: Instant,
    /// When the work counts as ended; set by the first SIGKILL.
    give_up_at: Option<Instant>,
    known: KnownProcesses,
}

/// Interactive work that runs.
pub struct Running {
    /// Selects its processes.
    pub selector: ProcessSelector,
    /// Its standard streams.
    pub io: ProgramIo,
    /// When it started.
    pub begun: Instant,
    timeout: Option<Instant>,
    /// How long it keeps running without a client.
    linger: Duration,
    /// Since when it has no client.
    detached_since: Option<Instant>,
    status: Option<ExitStatus>,
    end: Option<Termination>,
    /// Keeps the script file while the work runs.
    _script: Option<Script>,
}

impl Running {
    /// Starts the work.
    ///
    /// # Errors
    /// The reason and the status to report if it cannot be started.
    pub fn start(id: Uuid, start: Interactive, spawner: &mut Spawner, now: Instant) -> Result<Self, StartError> {
        let timeout = start.timeout_seconds.and_then(|seconds| now.checked_add(Duration::from_secs(seconds)));
        let (size, linger) = (start.terminal, Duration::from_secs(start.linger_seconds));
        let work = work(id, start)?;
        let (started, io) = if let Some(size) = size {
            let opened = Terminal::open(size);
            let terminal =
                opened.map_err(|error| StartError::host_failure(format!("there is no terminal: {error}")))?;
            (spawner.start_on(&terminal, &work)?, ProgramIo::Terminal(Some(Box::new(terminal))))
        } else {
            let mut started = spawner.start_piped(&work)?;
            let pipes = PipedIo::of(&mut started.child);
            (started, ProgramIo::Piped(pipes))
        };
        let AttachedProcess { selector, script, .. } = started;
        Ok(Self {
            selector,
            io,
            begun: now,
            timeout,
            linger: if size.is_some() { linger } else { Duration::ZERO },
            detached_since: None,
            status: None,
            end: None,
            _script: script,
        })
    }

    /// Records the exit of its first process.
    pub fn exited(&mut self, status: ExitStatus) {
        self.status = Some(status);
    }

    /// Whether its first process is running.
    pub fn is_alive(&self) -> bool {
        self.status.is_none()
    }

    /// Terminates it: a terminal is hung up, other work gets SIGTERM. SIGKILL follows at `kill_at`.
    pub fn end(&mut self, why: Ending, mut kill_at: Instant) {
        if self.end.is_some() {
            return;
        }
        let (mut selector, mut known) = (self.selector, KnownProcesses::new());
        match &mut self.io {
            // The kernel sends SIGHUP to the terminal's session. Processes that left it (nohup, tmux) keep running.
            ProgramIo::Terminal(terminal) => {
                let begun = Instant::now();
                *terminal = None;
                // Hanging up may block for a while; programs get their grace period after it.
                kill_at += begun.elapsed();
                selector.work_gid = None;
            }
            ProgramIo::Piped(piped) => {
                if why == Ending::Cancelled {
                    piped.abandon_outputs();
                }
                processes::terminate(selector, &mut known);
            }
        }
        self.end = Some(Termination { why, selector, kill_at, give_up_at: None, known });
    }

    /// Records whether clients are attached.
    pub fn has_clients(&mut self, has: bool, now: Instant) {
        self.detached_since = if has { None } else { self.detached_since.or(Some(now)) };
    }

    /// When [`Running::handle_timers`] has to be called next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let kill = self.end.as_ref().map(|end| end.kill_at);
        [kill, self.linger_deadline(), self.timeout].into_iter().flatten().min()
    }

    fn linger_deadline(&self) -> Option<Instant> {
        self.detached_since.filter(|_| self.end.is_none()).map(|since| since + self.linger)
    }

    /// Terminates work that has timed out or has no client, and kills what does not end.
    pub fn handle_timers(&mut self, now: Instant) {
        if self.timeout.take_if(|at| *at <= now).is_some() {
            self.end(Ending::TimedOut, now + CANCEL_GRACE);
        }
        if self.linger_deadline().is_some_and(|at| at <= now) {
            self.end(Ending::Cancelled, now + CANCEL_GRACE);
        }
        if let Some(end) = &mut self.end
            && end.kill_at <= now
        {
            end.kill_at = now + KILL_INTERVAL;
            end.give_up_at.get_or_insert(now + KILL_TIMEOUT);
            processes::kill(end.selector, &mut end.known);
        }
    }

    /// Whether the work has ended: its first process has exited, its output is sent and, if it was terminated, all
    /// its processes are gone.
    pub fn is_over(&mut self, now: Instant) -> bool {
        let is_given_up = |end: &Termination| end.give_up_at.is_some_and(|at| at <= now);
        let is_ended = |end: &mut Termination| is_given_up(end) || processes::are_gone(end.selector, &mut end.known);
        let has_output = match &self.io {
            ProgramIo::Terminal(_) => false,
            ProgramIo::Piped(piped) => piped.unfinished().next().is_some(),
        };
        self.status.is_some() && !has_output && self.end.as_mut().is_none_or(is_ended)
    }

    /// How it ended.
    pub fn ending(&self) -> Ending {
        match (&self.end, self.status) {
            (Some(end), _) => end.why,
            (None, Some(ExitStatus::Exited(code))) => Ending::Exited(code),
            (None, Some(ExitStatus::Signalled(signal))) => Ending::Signalled(signal),
            (None, None) => Ending::NotStarted,
        }
    }

    /// The output pipes that background processes may still write to.
    pub fn into_pipes(self) -> Vec<OwnedFd> {
        match self.io {
            ProgramIo::Terminal(_) => Vec::new(),
            ProgramIo::Piped(piped) => piped.into_pipes().collect(),
        }
    }
}

/// Turns it into work with a program. A shell is no login shell: `/etc/profile` would replace the image's PATH with
/// Debian's.
fn work(id: Uuid, start: Interactive) -> Result<Work, StartError> {
    let program = match start.program {
        Some(program) => program,
        None => {
            let argv = script::shell().map_err(|error| StartError::host_failure(error.to_string()))?;
            Program::Command { argv, stdin: String::new() }
        }
    };
    let (env, directory) = (start.env, start.directory);
    Ok(Work { id: WorkId::Exec(id), program, env, directory, timeout_seconds: None, output_bytes_max: 0 })
}
