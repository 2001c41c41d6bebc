//! One work whose streams are attached: its processes, and the terminal or the pipes that lead to them.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use raworc_core::limits::CANCEL_GRACE;
use raworc_core::link::{Ending, Interactive, Program, Work, WorkId};
use uuid::Uuid;

use crate::piped::Piped;
use crate::processes::{self, Known, Owner};
use crate::script::{self, Script};
use crate::signals::Status;
use crate::spawn::{Attached, NotStarted, Spawner};
use crate::terminal::Terminal;

/// How often work that was killed is killed again: what forked meanwhile lives on.
const KILL_INTERVAL: Duration = Duration::from_millis(100);
/// Work that was killed counts as ended after so long, whatever is left of it.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// What leads to a program.
pub enum Way {
    /// A terminal, until it is hung up.
    Terminal(Option<Box<Terminal>>),
    /// Pipes.
    Piped(Piped),
}

/// That work is to end.
struct End {
    why: Ending,
    /// Whose processes end: after a terminal is hung up, only those that belong to it still.
    owner: Owner,
    /// When it is killed, the first time or again.
    kill_at: Instant,
    /// Once it has been killed: when it counts as ended.
    give_up_at: Option<Instant>,
    known: Known,
}

/// Work that runs.
pub struct Running {
    /// How its processes are found.
    pub owner: Owner,
    /// What leads to it.
    pub way: Way,
    /// When it began.
    pub begun: Instant,
    timeout: Option<Instant>,
    /// How long it goes on without a client.
    linger: Duration,
    /// Since when there has been no client.
    alone_since: Option<Instant>,
    status: Option<Status>,
    end: Option<End>,
    /// Held for as long as the work runs.
    _script: Option<Script>,
}

impl Running {
    /// Starts it.
    ///
    /// # Errors
    /// Why it could not be started.
    pub fn start(id: Uuid, start: Interactive, spawner: &mut Spawner, now: Instant) -> Result<Self, NotStarted> {
        let timeout = start.timeout_seconds.and_then(|seconds| now.checked_add(Duration::from_secs(seconds)));
        let (size, linger) = (start.terminal, Duration::from_secs(start.linger_seconds));
        let work = work(id, start)?;
        let (started, way) = if let Some(size) = size {
            let opened = Terminal::open(size);
            let terminal = opened.map_err(|error| NotStarted::here(format!("there is no terminal: {error}")))?;
            (spawner.start_on(&terminal, &work)?, Way::Terminal(Some(Box::new(terminal))))
        } else {
            let mut started = spawner.start_piped(&work)?;
            let pipes = Piped::of(&mut started.child);
            (started, Way::Piped(pipes))
        };
        let Attached { owner, script, .. } = started;
        Ok(Self {
            owner,
            way,
            begun: now,
            timeout,
            linger: if size.is_some() { linger } else { Duration::ZERO },
            alone_since: None,
            status: None,
            end: None,
            _script: script,
        })
    }

    /// Its first process has ended.
    pub fn exited(&mut self, status: Status) {
        self.status = Some(status);
    }

    /// Whether its first process lives.
    pub fn is_alive(&self) -> bool {
        self.status.is_none()
    }

    /// Ends it: a terminal is hung up, other work gets SIGTERM; SIGKILL comes at `kill_at`.
    pub fn end(&mut self, why: Ending, mut kill_at: Instant) {
        if self.end.is_some() {
            return;
        }
        let (mut owner, mut known) = (self.owner, Known::new());
        match &mut self.way {
            // The kernel sends SIGHUP to those whom it controls. What left it (nohup, tmux) goes on in the background.
            Way::Terminal(terminal) => {
                let begun = Instant::now();
                *terminal = None;
                // The kernel may take its time; programs get theirs after that.
                kill_at += begun.elapsed();
                owner.tag = None;
            }
            Way::Piped(piped) => {
                if why == Ending::Cancelled {
                    piped.give_up();
                }
                processes::ask_to_end(owner, &mut known);
            }
        }
        self.end = Some(End { why, owner, kill_at, give_up_at: None, known });
    }

    /// Whether clients are there.
    pub fn has_clients(&mut self, has: bool, now: Instant) {
        self.alone_since = if has { None } else { self.alone_since.or(Some(now)) };
    }

    /// When [`Running::on_time`] has something to do.
    pub fn next_wake(&self) -> Option<Instant> {
        let kill = self.end.as_ref().map(|end| end.kill_at);
        [kill, self.lonely_at(), self.timeout].into_iter().flatten().min()
    }

    fn lonely_at(&self) -> Option<Instant> {
        self.alone_since.filter(|_| self.end.is_none()).map(|since| since + self.linger)
    }

    /// Ends what is too slow or has no client, and kills what does not end.
    pub fn on_time(&mut self, now: Instant) {
        if self.timeout.take_if(|at| *at <= now).is_some() {
            self.end(Ending::TimedOut, now + CANCEL_GRACE);
        }
        if self.lonely_at().is_some_and(|at| at <= now) {
            self.end(Ending::Cancelled, now + CANCEL_GRACE);
        }
        if let Some(end) = &mut self.end
            && end.kill_at <= now
        {
            end.kill_at = now + KILL_INTERVAL;
            end.give_up_at.get_or_insert(now + KILL_PATIENCE);
            processes::kill(end.owner, &mut end.known);
        }
    }

    /// Its first process has ended, and where it was to end, whatever else belongs to it; its output is passed on.
    pub fn is_over(&mut self, now: Instant) -> bool {
        let is_given_up = |end: &End| end.give_up_at.is_some_and(|at| at <= now);
        let is_ended = |end: &mut End| is_given_up(end) || processes::are_gone(end.owner, &mut end.known);
        let has_output = match &self.way {
            Way::Terminal(_) => false,
            Way::Piped(piped) => piped.unfinished().next().is_some(),
        };
        self.status.is_some() && !has_output && self.end.as_mut().is_none_or(is_ended)
    }

    /// How it ended.
    pub fn ending(&self) -> Ending {
        match (&self.end, self.status) {
            (Some(end), _) => end.why,
            (None, Some(Status::Exited(code))) => Ending::Exited(code),
            (None, Some(Status::Signalled(signal))) => Ending::Signalled(signal),
            (None, None) => Ending::NotStarted,
        }
    }

    /// The outputs that processes which were left running may still write to.
    pub fn into_pipes(self) -> Vec<OwnedFd> {
        match self.way {
            Way::Terminal(_) => Vec::new(),
            Way::Piped(piped) => piped.into_pipes().collect(),
        }
    }
}

/// As any work. Not a login shell: `/etc/profile` would put Debian's PATH in the place of the image's.
fn work(id: Uuid, start: Interactive) -> Result<Work, NotStarted> {
    let program = match start.program {
        Some(program) => program,
        None => {
            let argv = script::shell().map_err(|error| NotStarted::here(error.to_string()))?;
            Program::Command { argv, stdin: String::new() }
        }
    };
    let (env, directory) = (start.env, start.directory);
    Ok(Work { id: WorkId::Exec(id), program, env, directory, timeout_seconds: None, output_bytes_max: 0 })
}
