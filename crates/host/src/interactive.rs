//! One interactive work: its process, and the terminal or the pipes that lead to it.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use raworc_core::limits::CANCEL_GRACE;
use raworc_core::link::{AGENT_UID, Ending, Interactive, Work, WorkId};
use rustix::process::Signal;
use uuid::Uuid;

use crate::piped::Piped;
use crate::processes::{self, Known};
use crate::signals::Status;
use crate::spawn::{self, ScriptFile};
use crate::terminal::Terminal;

/// How often work that was killed is killed again: what forked meanwhile lives on.
const KILL_INTERVAL: Duration = Duration::from_millis(100);
/// What has lost its terminal is about to end, or else is ended after so long.
const LOST_PATIENCE: Duration = Duration::from_secs(1);
/// Work that was killed counts as ended after so long, whatever is left of it.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// What leads to a program.
pub enum Way {
    /// A terminal, until it is hung up.
    Terminal(Option<Terminal>),
    /// Pipes.
    Piped(Piped),
}

/// That work is to end.
struct End {
    why: Ending,
    /// When it is killed, the first time or again.
    kill_at: Instant,
    /// Once it has been killed: when it counts as ended.
    give_up_at: Option<Instant>,
    known: Known,
}

/// Work that runs.
pub struct Running {
    /// Its first process.
    pub process: i32,
    /// What leads to it.
    pub way: Way,
    /// When it began.
    pub begun: Instant,
    timeout: Option<Instant>,
    /// How long it goes on without a client.
    linger: Duration,
    /// Since when there has been no client.
    alone_since: Option<Instant>,
    /// Its terminal has been hung up from inside; it is ended then.
    lost_at: Option<Instant>,
    status: Option<Status>,
    end: Option<End>,
    /// Held for as long as the work runs.
    _script: Option<ScriptFile>,
}

impl Running {
    /// Starts it; a sentence where it cannot be.
    pub fn start(id: Uuid, start: Interactive, now: Instant) -> Result<Self, String> {
        let is_terminal = start.terminal.is_some();
        let (mut command, script) =
            command(id, &start).map_err(|error| format!("it could not be prepared: {error}"))?;
        command.envs(&start.env);
        let (process, way) = if let Some(size) = start.terminal {
            let terminal = Terminal::open(size).map_err(|error| format!("there is no terminal: {error}"))?;
            let child = terminal.start(&command, &start.directory).map_err(|error| not_started(&command, &error))?;
            (child.id(), Way::Terminal(Some(terminal)))
        } else {
            let mut child = spawn(&mut command, &start.directory)?;
            (child.id(), Way::Piped(Piped::of(&mut child)))
        };
        Ok(Self {
            process: i32::try_from(process).unwrap_or(i32::MAX),
            way,
            begun: now,
            timeout: start.timeout_seconds.and_then(|seconds| now.checked_add(Duration::from_secs(seconds))),
            linger: if is_terminal { Duration::from_secs(start.linger_seconds) } else { Duration::ZERO },
            alone_since: None,
            lost_at: None,
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
    pub fn end(&mut self, why: Ending, kill_at: Instant) {
        if self.end.is_some() {
            return;
        }
        let mut end = End { why, kill_at, give_up_at: None, known: Known::new() };
        match &mut self.way {
            // The kernel sends SIGHUP to whom it controls. What was left running with nohup goes on.
            Way::Terminal(terminal) => *terminal = None,
            Way::Piped(piped) => {
                if why == Ending::Cancelled {
                    piped.give_up();
                }
                processes::signal_work(self.process, Signal::TERM, &mut end.known);
            }
        }
        self.end = Some(end);
    }

    /// Whether clients are there.
    pub fn has_clients(&mut self, has: bool, now: Instant) {
        self.alone_since = if has { None } else { self.alone_since.or(Some(now)) };
    }

    /// No side of the terminal but ours is left. Most likely the news that the program has ended is on its way.
    pub fn lost_terminal(&mut self, now: Instant) {
        self.lost_at = self.lost_at.or(Some(now + LOST_PATIENCE));
    }

    /// Whether the terminal may be read from.
    pub fn has_terminal(&self) -> bool {
        self.lost_at.is_none()
    }

    /// When [`Running::on_time`] has something to do.
    pub fn next_wake(&self) -> Option<Instant> {
        let kill = self.end.as_ref().map(|end| end.kill_at);
        let lost = self.lost_at.filter(|_| self.end.is_none());
        [kill, lost, self.lonely_at(), self.timeout].into_iter().flatten().min()
    }

    fn lonely_at(&self) -> Option<Instant> {
        self.alone_since.filter(|_| self.end.is_none()).map(|since| since + self.linger)
    }

    /// Ends what is too slow or has no client, and kills what does not end.
    pub fn on_time(&mut self, now: Instant) {
        if self.timeout.take_if(|at| *at <= now).is_some() {
            self.end(Ending::TimedOut, now + CANCEL_GRACE);
        }
        let is_lost = self.lost_at.is_some_and(|at| at <= now);
        if is_lost || self.lonely_at().is_some_and(|at| at <= now) {
            self.end(Ending::Cancelled, now + CANCEL_GRACE);
        }
        if let Some(end) = &mut self.end
            && end.kill_at <= now
        {
            end.kill_at = now + KILL_INTERVAL;
            end.give_up_at.get_or_insert(now + KILL_PATIENCE);
            processes::signal_work(self.process, Signal::KILL, &mut end.known);
        }
    }

    /// Its first process has ended, and where it was to end, whatever else belongs to it. Output may still be left.
    pub fn is_over(&self, now: Instant) -> bool {
        let is_given_up = |end: &End| end.give_up_at.is_some_and(|at| at <= now);
        let is_ended = |end: &End| is_given_up(end) || processes::are_gone(self.process, &end.known);
        let all_ended = self.end.as_ref().is_none_or(is_ended);
        let has_output = match &self.way {
            Way::Terminal(_) => false,
            Way::Piped(piped) => piped.unfinished().next().is_some(),
        };
        self.status.is_some() && all_ended && !has_output
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

fn command(id: Uuid, start: &Interactive) -> std::io::Result<(Command, Option<ScriptFile>)> {
    let Some(program) = &start.program else {
        let mut command = spawn::plain_shell()?;
        // Not a login shell: `/etc/profile` would put Debian's PATH in the place of the image's.
        let shell = command.get_program().to_owned();
        command.env("SHELL", shell);
        return Ok((command, None));
    };
    spawn::command(&Work {
        id: WorkId::Exec(id),
        program: program.clone(),
        env: Default::default(),
        directory: start.directory.clone(),
        timeout_seconds: None,
        output_bytes_max: 0,
    })
}

fn spawn(command: &mut Command, directory: &str) -> Result<std::process::Child, String> {
    command.current_dir(directory).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if rustix::process::geteuid().is_root() {
        // The standard library drops supplementary groups too when it changes the user as root.
        command.uid(AGENT_UID).gid(AGENT_UID);
    }
    command.spawn().map_err(|error| match std::fs::metadata(directory) {
        Err(_) => format!("the directory {directory} cannot be used"),
        Ok(_) => not_started(command, &error),
    })
}

fn not_started(command: &Command, error: &std::io::Error) -> String {
    format!("{} could not be started: {error}", command.get_program().to_string_lossy())
}
