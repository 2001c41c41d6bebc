//! Running messages and commands: starts, terminates and reports them.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use raworc_core::limits::{CANCEL_GRACE, EXECS_MAX};
use raworc_core::link::{Ending, OutputStream, Report, Work, WorkId};
use rustix::event::PollFlags;

use crate::output::{Buffer, Output, discard};
use crate::output_spill::OutputSpill;
use crate::processes::{self, KnownProcesses, ProcessSelector};
use crate::reports::Reports;
use crate::script::Script;
use crate::signals::ExitStatus;
use crate::spawn::{SpawnedProcess, Spawner, StartError, StdinWriter};

/// Output pipes of ended work that are still read, so that background processes do not get SIGPIPE. Above this number
/// the oldest is closed.
const LEFT_BEHIND_MAX: usize = 256;
/// How often killed work is killed again, because processes may fork meanwhile.
const KILL_INTERVAL: Duration = Duration::from_millis(100);
/// How long after the first SIGKILL work counts as ended, even if processes are left. Until then, they might use up
/// the process limit of the next message.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// A source that poll reports as ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkSource {
    /// An output of a work.
    Output(WorkId, OutputStream),
    /// The standard input of a work.
    Stdin(WorkId),
    /// An output of a background process.
    LeftBehind(usize),
}

struct Running {
    selector: ProcessSelector,
    begun: Instant,
    output: Output,
    stdin: Option<StdinWriter>,
    /// Keeps the script file while the work runs.
    _script: Option<Script>,
    /// When it is terminated for running too long.
    timeout: Option<Instant>,
    /// How its first process ended.
    status: Option<ExitStatus>,
    /// Set when it is being terminated.
    end: Option<Termination>,
}

struct Termination {
    why: Ending,
    /// When SIGKILL is sent next.
    kill_at: Instant,
    /// When the work counts as ended; set by the first SIGKILL.
    give_up_at: Option<Instant>,
    known: KnownProcesses,
}

impl Termination {
    fn new(why: Ending, kill_at: Instant) -> Self {
        Self { why, kill_at, give_up_at: None, known: KnownProcesses::new() }
    }
}

impl Running {
    /// Whether the work has ended: its first process has exited and, if it was terminated, all its processes are
    /// gone.
    fn is_over(&mut self, now: Instant) -> bool {
        let selector = self.selector;
        let is_given_up = |end: &Termination| end.give_up_at.is_some_and(|at| at <= now);
        let is_ended = |end: &mut Termination| is_given_up(end) || processes::are_gone(selector, &mut end.known);
        self.status.is_some() && self.end.as_mut().is_none_or(is_ended)
    }

    fn ending(&self) -> Ending {
        match (&self.end, self.status) {
            (Some(end), _) => end.why,
            (None, Some(ExitStatus::Exited(code))) => Ending::Exited(code),
            (None, Some(ExitStatus::Signalled(signal))) => Ending::Signalled(signal),
            (None, None) => Ending::NotStarted,
        }
    }
}

/// All running messages and commands.
pub struct Works {
    workspace: PathBuf,
    running: BTreeMap<WorkId, Running>,
    left_behind: VecDeque<OwnedFd>,
    buffer: Buffer,
}

impl Works {
    /// No work yet; `workspace` is the workspace's directory.
    pub fn new(workspace: PathBuf) -> Self {
        Self { workspace, running: BTreeMap::new(), left_behind: VecDeque::new(), buffer: Buffer::default() }
    }

    /// Whether nothing runs.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// The ids of running work.
    pub fn ids(&self) -> impl Iterator<Item = WorkId> {
        self.running.keys().copied()
    }

    /// Whether a turn is running.
    pub fn has_turn(&self) -> bool {
        self.ids().any(|id| matches!(id, WorkId::Turn(_)))
    }

    /// The selectors of running work.
    pub fn selectors(&self) -> impl Iterator<Item = ProcessSelector> {
        self.running.values().map(|running| running.selector)
    }

    /// The descriptors to poll. Outputs are left out while the report queue is full.
    pub fn sources(&self, reports: &Reports) -> Vec<(WorkSource, BorrowedFd<'_>, PollFlags)> {
        let mut sources = Vec::new();
        for (id, running) in &self.running {
            if !reports.is_full() {
                let output = |(stream, fd)| (WorkSource::Output(*id, stream), fd, PollFlags::IN);
                sources.extend(running.output.descriptors().map(output));
            }
            sources
                .extend(running.stdin.iter().map(|stdin| (WorkSource::Stdin(*id), stdin.descriptor(), PollFlags::OUT)));
        }
        let left = self.left_behind.iter().enumerate();
        sources.extend(left.map(|(at, fd)| (WorkSource::LeftBehind(at), fd.as_fd(), PollFlags::IN)));
        sources
    }

    /// Handles a ready descriptor. If several are ready, handle `LeftBehind` in descending order, because removing
    /// one shifts the indices after it.
    pub fn handle_ready(&mut self, source: WorkSource, now: Instant) {
        match source {
            WorkSource::Output(id, stream) => {
                if let Some(running) = self.running.get_mut(&id) {
                    running.output.read(stream, self.buffer.as_mut_slice(), now);
                }
            }
            WorkSource::Stdin(id) => {
                if let Some(running) = self.running.get_mut(&id)
                    && running.stdin.as_mut().is_some_and(|stdin| !stdin.write())
                {
                    running.stdin = None;
                }
            }
            WorkSource::LeftBehind(at) => {
                if self.left_behind.get(at).is_some_and(|pipe| !discard(pipe, self.buffer.as_mut_slice())) {
                    self.left_behind.remove(at);
                }
            }
        }
    }

    /// Starts work, or reports why it cannot be started.
    pub fn start(&mut self, work: &Work, now: Instant, spawner: &mut Spawner, reports: &mut Reports) {
        let is_turn = matches!(work.id, WorkId::Turn(_));
        let started = if is_turn && self.has_turn() {
            Err(StartError::host_failure("another message is being worked on"))
        } else if self.running.len() > EXECS_MAX {
            Err(StartError::host_failure("too many commands run at the same time"))
        } else {
            spawner.start(work)
        };
        match started {
            Ok(SpawnedProcess { selector, pipes, stdin, script }) => {
                let whole = OutputSpill::new(&self.workspace, work.id);
                let running = Running {
                    selector,
                    begun: now,
                    output: Output::new(pipes, work.output_bytes_max, whole, now),
                    stdin,
                    _script: script,
                    timeout: work.timeout_seconds.and_then(|seconds| now.checked_add(Duration::from_secs(seconds))),
                    status: None,
                    end: None,
                };
                self.running.insert(work.id, running);
            }
            Err(StartError { ending, reason }) => {
                let (work, text) = (work.id, reason + "\n");
                reports.add(Report::Output { work, stream: OutputStream::Stderr, text });
                let duration_micros = micros_since(now);
                reports.add(Report::Finished { work, ending, duration_micros, dropped_bytes: 0, output_file: None });
            }
        }
    }

    /// Terminates work: SIGTERM now, SIGKILL after the grace period.
    pub fn end(&mut self, work: WorkId, why: Ending, now: Instant) {
        if let Some(running) = self.running.get_mut(&work)
            && running.end.is_none()
        {
            let mut end = Termination::new(why, now + CANCEL_GRACE);
            processes::terminate(running.selector, &mut end.known);
            running.end = Some(end);
        }
    }

    /// Marks all work as terminated, after every process got SIGTERM; it is killed at `kill_at`.
    pub fn end_all(&mut self, kill_at: Instant) {
        for running in self.running.values_mut().filter(|running| running.end.is_none()) {
            running.end = Some(Termination::new(Ending::Cancelled, kill_at));
        }
    }

    /// Records the exit of a process. It may be any child, also an orphan.
    pub fn handle_exit(&mut self, process: i32, status: ExitStatus) {
        let is_it = |running: &&mut Running| running.selector.leader == process && running.status.is_none();
        if let Some(running) = self.running.values_mut().find(is_it) {
            running.status = Some(status);
        }
    }

    /// When [`Works::handle_timers`] has to be called next.
    pub fn next_deadline(&self, reports: &Reports) -> Option<Instant> {
        let wakes = |running: &Running| {
            let flush = running.output.next_flush().filter(|_| !reports.is_full());
            let kill = running.end.as_ref().map(|end| end.kill_at);
            [flush, kill, running.timeout]
        };
        self.running.values().flat_map(wakes).flatten().min()
    }

    /// Reports output that is due, terminates work that has timed out, and finishes what has ended.
    pub fn handle_timers(&mut self, now: Instant, reports: &mut Reports) {
        for (id, running) in &mut self.running {
            if running.output.next_flush().is_some_and(|at| at <= now) && !reports.is_full() {
                pass_on(*id, &mut running.output, now, reports);
            }
            if let Some(end) = &mut running.end
                && end.kill_at <= now
            {
                end.kill_at = now + KILL_INTERVAL;
                end.give_up_at.get_or_insert(now + KILL_TIMEOUT);
                processes::kill(running.selector, &mut end.known);
            }
        }
        for id in self.find(|running| running.timeout.is_some_and(|at| at <= now)) {
            self.end(id, Ending::TimedOut, now);
            if let Some(running) = self.running.get_mut(&id) {
                running.timeout = None;
            }
        }
        for id in self.find(|running| running.is_over(now)) {
            self.finish(id, now, reports);
        }
    }

    fn find(&mut self, wanted: impl Fn(&mut Running) -> bool) -> Vec<WorkId> {
        self.running.iter_mut().filter_map(|(id, running)| wanted(running).then_some(*id)).collect()
    }

    fn finish(&mut self, work: WorkId, now: Instant, reports: &mut Reports) {
        let Some(mut running) = self.running.remove(&work) else { return };
        running.output.drain(self.buffer.as_mut_slice());
        pass_on(work, &mut running.output, now, reports);
        let output = running.output.finish();
        for (stream, text) in output.pieces {
            reports.add(Report::Output { work, stream, text });
        }
        reports.add(Report::Finished {
            work,
            ending: running.ending(),
            duration_micros: micros_since(running.begun),
            dropped_bytes: output.dropped_bytes,
            output_file: output.file,
        });
        self.leave_behind(running.output.into_pipes());
    }

    /// Keeps reading the output pipes of ended work.
    pub fn leave_behind(&mut self, pipes: impl IntoIterator<Item = OwnedFd>) {
        self.left_behind.extend(pipes);
        while self.left_behind.len() > LEFT_BEHIND_MAX {
            self.left_behind.pop_front();
        }
    }
}

fn pass_on(work: WorkId, output: &mut Output, now: Instant, reports: &mut Reports) {
    for (stream, text) in output.take(now) {
        reports.add(Report::Output { work, stream, text });
    }
}

fn micros_since(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX)
}
