//! The work that runs: how it begins, and the ways in which it ends.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use raworc_core::limits::{CANCEL_GRACE, EXECS_MAX};
use raworc_core::link::{Ending, Report, Stream, Work, WorkId};
use rustix::event::PollFlags;

use crate::output::{Buffer, Output, discard};
use crate::output_spill::OutputSpill;
use crate::processes::{self, Known, Owner};
use crate::reports::Reports;
use crate::script::Script;
use crate::signals::Status;
use crate::spawn::{Feed, NotStarted, Spawner, Started};

/// Outputs of ended work that are still read, so that processes left running do not die of writing. Of more than so many
/// the oldest is closed: descriptors are limited.
const LEFT_BEHIND_MAX: usize = 256;
/// How often work that was killed is killed again: what forked meanwhile lives on.
const KILL_INTERVAL: Duration = Duration::from_millis(100);
/// Work that was killed counts as ended after so long, whatever is left of it. Until then the next message would find the
/// container's processes used up.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// What can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Work wrote something.
    Output(WorkId, Stream),
    /// Work takes more of its standard input.
    Feed(WorkId),
    /// A process left running wrote something.
    LeftBehind(usize),
}

struct Running {
    owner: Owner,
    begun: Instant,
    output: Output,
    feed: Option<Feed>,
    /// Held for as long as the work runs.
    _script: Option<Script>,
    /// When it counts as too slow.
    timeout: Option<Instant>,
    /// How its first process ended.
    status: Option<Status>,
    /// That it is to end, if it is.
    end: Option<End>,
}

struct End {
    why: Ending,
    /// When it is killed, the first time or again.
    kill_at: Instant,
    /// Once it has been killed: when it counts as ended.
    give_up_at: Option<Instant>,
    known: Known,
}

impl End {
    fn new(why: Ending, kill_at: Instant) -> Self {
        Self { why, kill_at, give_up_at: None, known: Known::new() }
    }
}

impl Running {
    /// Its first process has ended, and where the work was to end, whatever else belongs to it.
    fn is_over(&mut self, now: Instant) -> bool {
        let owner = self.owner;
        let is_given_up = |end: &End| end.give_up_at.is_some_and(|at| at <= now);
        let is_ended = |end: &mut End| is_given_up(end) || processes::are_gone(owner, &mut end.known);
        self.status.is_some() && self.end.as_mut().is_none_or(is_ended)
    }

    fn ending(&self) -> Ending {
        match (&self.end, self.status) {
            (Some(end), _) => end.why,
            (None, Some(Status::Exited(code))) => Ending::Exited(code),
            (None, Some(Status::Signalled(signal))) => Ending::Signalled(signal),
            (None, None) => Ending::NotStarted,
        }
    }
}

/// All work that runs.
pub struct Works {
    workspace: PathBuf,
    running: BTreeMap<WorkId, Running>,
    left_behind: VecDeque<OwnedFd>,
    buffer: Buffer,
}

impl Works {
    /// None yet; the workspace is in this directory.
    pub fn new(workspace: PathBuf) -> Self {
        Self { workspace, running: BTreeMap::new(), left_behind: VecDeque::new(), buffer: Buffer::default() }
    }

    /// Whether nothing runs.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// What runs.
    pub fn ids(&self) -> impl Iterator<Item = WorkId> {
        self.running.keys().copied()
    }

    /// Whether a message is being worked on.
    pub fn has_message(&self) -> bool {
        self.ids().any(|id| matches!(id, WorkId::Message(_)))
    }

    /// How the processes of each are found.
    pub fn owners(&self) -> impl Iterator<Item = Owner> {
        self.running.values().map(|running| running.owner)
    }

    /// What to wait for. Agents that have to wait for the server are not read from.
    pub fn sources(&self, reports: &Reports) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let mut sources = Vec::new();
        for (id, running) in &self.running {
            if !reports.is_full() {
                let output = |(stream, fd)| (Source::Output(*id, stream), fd, PollFlags::IN);
                sources.extend(running.output.descriptors().map(output));
            }
            sources.extend(running.feed.iter().map(|feed| (Source::Feed(*id), feed.descriptor(), PollFlags::OUT)));
        }
        let left = self.left_behind.iter().enumerate();
        sources.extend(left.map(|(at, fd)| (Source::LeftBehind(at), fd.as_fd(), PollFlags::IN)));
        sources
    }

    /// Something came. Where several are ready, those left behind are to be told last one first: their places move.
    pub fn ready(&mut self, source: Source, now: Instant) {
        match source {
            Source::Output(id, stream) => {
                if let Some(running) = self.running.get_mut(&id) {
                    running.output.read(stream, self.buffer.room(), now);
                }
            }
            Source::Feed(id) => {
                if let Some(running) = self.running.get_mut(&id)
                    && running.feed.as_mut().is_some_and(|feed| !feed.write())
                {
                    running.feed = None;
                }
            }
            Source::LeftBehind(at) => {
                if self.left_behind.get(at).is_some_and(|pipe| !discard(pipe, self.buffer.room())) {
                    self.left_behind.remove(at);
                }
            }
        }
    }

    /// Starts work; says so where it cannot.
    pub fn start(&mut self, work: &Work, now: Instant, spawner: &mut Spawner, reports: &mut Reports) {
        let is_message = matches!(work.id, WorkId::Message(_));
        let started = if is_message && self.has_message() {
            Err(NotStarted::here("another message is being worked on"))
        } else if self.running.len() > EXECS_MAX {
            Err(NotStarted::here("too many commands run at the same time"))
        } else {
            spawner.start(work)
        };
        match started {
            Ok(Started { owner, pipes, feed, script }) => {
                let whole = OutputSpill::new(&self.workspace, work.id);
                let running = Running {
                    owner,
                    begun: now,
                    output: Output::new(pipes, work.output_bytes_max, whole, now),
                    feed,
                    _script: script,
                    timeout: work.timeout_seconds.and_then(|seconds| now.checked_add(Duration::from_secs(seconds))),
                    status: None,
                    end: None,
                };
                self.running.insert(work.id, running);
            }
            Err(NotStarted { ending, reason }) => {
                let (work, text) = (work.id, reason + "\n");
                reports.add(Report::Output { work, stream: Stream::Stderr, text });
                let duration_micros = micros_since(now);
                reports.add(Report::Finished { work, ending, duration_micros, dropped_bytes: 0, output_file: None });
            }
        }
    }

    /// Ends work: SIGTERM now, SIGKILL after a while.
    pub fn end(&mut self, work: WorkId, why: Ending, now: Instant) {
        if let Some(running) = self.running.get_mut(&work)
            && running.end.is_none()
        {
            let mut end = End::new(why, now + CANCEL_GRACE);
            processes::ask_to_end(running.owner, &mut end.known);
            running.end = Some(end);
        }
    }

    /// All processes have been told to end, and are killed at `kill_at`.
    pub fn end_all(&mut self, kill_at: Instant) {
        for running in self.running.values_mut().filter(|running| running.end.is_none()) {
            running.end = Some(End::new(Ending::Cancelled, kill_at));
        }
    }

    /// A process ended; any child, also one that was never started here.
    pub fn ended(&mut self, process: i32, status: Status) {
        let is_it = |running: &&mut Running| running.owner.leader == process && running.status.is_none();
        if let Some(running) = self.running.values_mut().find(is_it) {
            running.status = Some(status);
        }
    }

    /// When [`Works::on_time`] has something to do.
    pub fn next_wake(&self, reports: &Reports) -> Option<Instant> {
        let wakes = |running: &Running| {
            let flush = running.output.next_flush().filter(|_| !reports.is_full());
            let kill = running.end.as_ref().map(|end| end.kill_at);
            [flush, kill, running.timeout]
        };
        self.running.values().flat_map(wakes).flatten().min()
    }

    /// Passes on what is due, ends what is too slow, and finishes what has ended.
    pub fn on_time(&mut self, now: Instant, reports: &mut Reports) {
        for (id, running) in &mut self.running {
            if running.output.next_flush().is_some_and(|at| at <= now) && !reports.is_full() {
                pass_on(*id, &mut running.output, now, reports);
            }
            if let Some(end) = &mut running.end
                && end.kill_at <= now
            {
                end.kill_at = now + KILL_INTERVAL;
                end.give_up_at.get_or_insert(now + KILL_PATIENCE);
                processes::kill(running.owner, &mut end.known);
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
        running.output.drain(self.buffer.room());
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

    /// Goes on reading outputs of work that has ended.
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
