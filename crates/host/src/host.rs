//! The one thread that decides: it holds all state, and hears of everything as an [`Event`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use raworc_core::limits::{CANCEL_GRACE, HEARTBEAT_INTERVAL, SERVERLESS_MAX, STOP_GRACE};
use raworc_core::link::{Ending, HostFrame, PROTOCOL, Report, ServerFrame, Stream, Work, WorkId};

use crate::gate::Gate;
use crate::processes;
use crate::signals::{Reaping, Status};
use crate::work::{self, Started};

/// Exit status of a host that the server refused.
const REFUSED: u8 = 3;

/// Everything that can happen to a host.
pub enum Event {
    /// The server is there; frames go into this stream.
    Connected(UnixStream),
    /// The server said something.
    Frame(ServerFrame),
    /// The server is gone.
    Disconnected,
    /// A process ended; any child, also one we never started.
    Ended(i32, Status),
    /// Work wrote something.
    Output {
        /// Which.
        work: WorkId,
        /// Where.
        stream: Stream,
        /// What.
        text: String,
    },
    /// All that ended work wrote has been passed on.
    Drained {
        /// Which.
        work: WorkId,
        /// Bytes of text that were dropped.
        dropped_bytes: u64,
    },
    /// We are asked to end.
    Stop,
}

struct Running {
    pid: i32,
    begun: Instant,
    /// Dropped when the process has ended: the reader sees that.
    done: Option<OwnedFd>,
    script: Option<PathBuf>,
    /// How its process ended.
    status: Option<Status>,
    /// Why it is being ended, if it is.
    wanted: Option<Ending>,
    /// When it counts as too slow.
    timeout: Option<Instant>,
    /// When it is killed.
    kill: Option<Instant>,
}

struct Unacked {
    n: u64,
    line: String,
    /// What it holds back at the gate.
    bytes: usize,
    /// Set on the last report of its work.
    finished: Option<WorkId>,
}

/// The host.
pub struct Host {
    token: String,
    events: Sender<Event>,
    reaping: Reaping,
    gate: Arc<Gate>,
    stream: Option<UnixStream>,
    welcomed: bool,
    works: BTreeMap<WorkId, Running>,
    unacked: VecDeque<Unacked>,
    reported: u64,
    next_heartbeat: Instant,
    last_seen: Instant,
    /// When everything is killed, and the status to end with.
    stopping: Option<(Instant, u8)>,
}

impl Host {
    /// A host that has not met its server yet.
    pub fn new(token: String, events: Sender<Event>, reaping: Reaping) -> Self {
        let now = Instant::now();
        Self {
            token,
            events,
            reaping,
            gate: Arc::default(),
            stream: None,
            welcomed: false,
            works: BTreeMap::new(),
            unacked: VecDeque::new(),
            reported: 0,
            next_heartbeat: now,
            last_seen: now,
            stopping: None,
        }
    }

    /// Works until it is told to end, or has been without a server for too long; the exit status.
    pub fn run(mut self, inbox: &Receiver<Event>) -> u8 {
        loop {
            match inbox.recv_timeout(self.next_wake().saturating_duration_since(Instant::now())) {
                Ok(event) => self.handle(event),
                Err(RecvTimeoutError::Timeout) => {}
                // Every thread that could tell us something is gone; that cannot be while this one holds a sender.
                Err(RecvTimeoutError::Disconnected) => return 1,
            }
            self.on_time();
            if let Some((_, status)) = self.stopping
                && self.is_alone()
            {
                return status;
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Connected(stream) => self.connected(stream),
            Event::Frame(frame) => self.frame(frame),
            Event::Disconnected => self.disconnect(),
            Event::Ended(pid, status) => self.ended(pid, status),
            Event::Output { work, stream, text } => {
                let bytes = text.len();
                self.report(Report::Output { work, stream, text }, bytes);
            }
            Event::Drained { work, dropped_bytes } => self.drained(work, dropped_bytes),
            Event::Stop => self.stop(0),
        }
    }

    // --- the server -------------------------------------------------------------------------------------------------

    fn connected(&mut self, stream: UnixStream) {
        self.stream = Some(stream);
        self.welcomed = false;
        let unstored = self.unacked.iter().filter_map(|report| report.finished);
        let works = self.works.keys().copied().chain(unstored).collect();
        self.send(&HostFrame::Hello { protocol: PROTOCOL, token: self.token.clone(), works });
    }

    fn frame(&mut self, frame: ServerFrame) {
        self.last_seen = Instant::now();
        match frame {
            ServerFrame::Welcome { received } => self.welcome(received),
            ServerFrame::Refused { .. } => self.stop(REFUSED),
            ServerFrame::Ack { n } => self.acked(n),
            ServerFrame::Run(work) => self.start(work),
            ServerFrame::Cancel(work) => self.end(work, Ending::Cancelled),
            ServerFrame::Stop => self.stop(0),
        }
    }

    fn welcome(&mut self, received: u64) {
        self.welcomed = true;
        self.acked(received);
        let again: String = self.unacked.iter().map(|report| report.line.as_str()).collect();
        self.write(again.as_bytes());
        self.heartbeat();
        if !self.works.keys().any(|work| matches!(work, WorkId::Message(_))) {
            self.send(&HostFrame::Poll);
        }
    }

    fn acked(&mut self, n: u64) {
        while let Some(report) = self.unacked.pop_front_if(|report| report.n <= n) {
            self.gate.leave(report.bytes);
        }
    }

    fn disconnect(&mut self) {
        self.stream = None;
        self.welcomed = false;
    }

    fn report(&mut self, report: Report, bytes: usize) {
        let finished = if let Report::Finished { work, .. } = &report { Some(*work) } else { None };
        self.reported += 1;
        let n = self.reported;
        let Some(line) = line(&HostFrame::Report { n, report }) else {
            return;
        };
        if self.welcomed {
            self.write(line.as_bytes());
        }
        self.unacked.push_back(Unacked { n, line, bytes, finished });
    }

    fn heartbeat(&mut self) {
        self.next_heartbeat = Instant::now() + HEARTBEAT_INTERVAL;
        if self.welcomed {
            let background_processes = processes::count_background(&self.leaders());
            self.send(&HostFrame::Heartbeat { background_processes });
        }
    }

    fn send(&mut self, frame: &HostFrame) {
        if let Some(line) = line(frame) {
            self.write(line.as_bytes());
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(stream) = &mut self.stream
            && stream.write_all(bytes).is_err()
        {
            // Half a frame may have gone out. The thread that reads notices the end and dials again.
            let _ = stream.shutdown(std::net::Shutdown::Both);
            self.disconnect();
        }
    }

    // --- work -------------------------------------------------------------------------------------------------------

    fn start(&mut self, work: Work) {
        let known = self.works.contains_key(&work.id) || self.unacked.iter().any(|r| r.finished == Some(work.id));
        if known || self.stopping.is_some() {
            return;
        }
        let begun = Instant::now();
        match work::start(&work, &self.events, &self.gate, &self.reaping) {
            Ok(Started { pid, done, script }) => {
                let timeout = work.timeout_seconds.and_then(|seconds| begun.checked_add(Duration::from_secs(seconds)));
                let running =
                    Running { pid, begun, done: Some(done), script, status: None, wanted: None, timeout, kill: None };
                self.works.insert(work.id, running);
            }
            Err(reason) => {
                let text = format!("{reason}\n");
                self.report(Report::Output { work: work.id, stream: Stream::Stderr, text }, 0);
                self.finish(work.id, Ending::NotStarted, begun, 0);
            }
        }
    }

    /// Asks work to end; [`Host::on_time`] sees to it that it does.
    fn end(&mut self, work: WorkId, why: Ending) {
        if let Some(running) = self.works.get_mut(&work)
            && running.wanted.is_none()
        {
            running.wanted = Some(why);
            running.kill = Some(Instant::now() + CANCEL_GRACE);
            signal_work(running.pid, Signal::SIGTERM);
        }
    }

    fn ended(&mut self, pid: i32, status: Status) {
        if let Some(running) = self.works.values_mut().find(|running| running.pid == pid && running.status.is_none()) {
            running.status = Some(status);
            running.done = None;
            if running.wanted.is_some() {
                // It was to end with all that it had started.
                signal_work(pid, Signal::SIGKILL);
            }
        }
    }

    fn drained(&mut self, work: WorkId, dropped_bytes: u64) {
        let Some(running) = self.works.remove(&work) else {
            return;
        };
        work::remove(running.script.as_deref());
        let own = match running.status {
            Some(Status::Exited(code)) => Ending::Exited(code),
            Some(Status::Signalled(signal)) => Ending::Signalled(signal),
            None => Ending::NotStarted,
        };
        self.finish(work, running.wanted.unwrap_or(own), running.begun, dropped_bytes);
    }

    fn finish(&mut self, work: WorkId, ending: Ending, begun: Instant, dropped_bytes: u64) {
        let duration_micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.report(Report::Finished { work, ending, duration_micros, dropped_bytes }, 0);
        if self.welcomed && matches!(work, WorkId::Message(_)) {
            self.send(&HostFrame::Poll);
        }
    }

    fn leaders(&self) -> BTreeSet<i32> {
        self.works.values().map(|running| running.pid).collect()
    }

    // --- time -------------------------------------------------------------------------------------------------------

    fn next_wake(&self) -> Instant {
        let of_works = self.works.values().flat_map(|running| [running.timeout, running.kill]).flatten();
        let stop = self.stopping.map(|(at, _)| at);
        of_works.chain(stop).min().map_or(self.next_heartbeat, |at| at.min(self.next_heartbeat))
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        let late: Vec<WorkId> =
            self.works.iter().filter(|(_, r)| r.timeout.is_some_and(|at| at <= now)).map(|(id, _)| *id).collect();
        for work in late {
            if let Some(running) = self.works.get_mut(&work) {
                running.timeout = None;
            }
            self.end(work, Ending::TimedOut);
        }
        for running in self.works.values_mut().filter(|running| running.kill.is_some_and(|at| at <= now)) {
            running.kill = None;
            signal_work(running.pid, Signal::SIGKILL);
        }
        if let Some((at, status)) = self.stopping
            && at <= now
        {
            self.signal_all(Signal::SIGKILL);
            // What is killed ends soon; look again shortly should something be slow to.
            self.stopping = Some((now + STOP_GRACE, status));
        }
        if self.next_heartbeat <= now {
            self.heartbeat();
        }
        if self.stream.is_none() && self.last_seen + SERVERLESS_MAX <= now {
            self.stop(0);
        }
    }

    // --- the end ----------------------------------------------------------------------------------------------------

    fn stop(&mut self, status: u8) {
        if self.stopping.is_none() {
            self.stopping = Some((Instant::now() + STOP_GRACE / 2, status));
            self.signal_all(Signal::SIGTERM);
        }
    }

    fn signal_all(&self, signal: Signal) {
        if is_first_process() {
            // Every process of the container but this one.
            let _ = kill(Pid::from_raw(-1), signal);
        } else {
            self.leaders().into_iter().for_each(|pid| signal_work(pid, signal));
        }
    }

    fn is_alone(&self) -> bool {
        if is_first_process() { processes::all().keys().all(|id| *id == 1) } else { self.works.is_empty() }
    }
}

fn is_first_process() -> bool {
    std::process::id() == 1
}

fn line(frame: &HostFrame) -> Option<String> {
    // These frames hold nothing that JSON cannot.
    serde_json::to_string(frame).ok().map(|text| text + "\n")
}

/// Signals a work's process group, and those that left it but descend from it.
fn signal_work(leader: i32, signal: Signal) {
    let descendants = processes::belonging_to(&processes::all(), &BTreeSet::from([leader]));
    // What has ended meanwhile needs no signal.
    let _ = killpg(Pid::from_raw(leader), signal);
    for id in descendants {
        let _ = kill(Pid::from_raw(id), signal);
    }
}
