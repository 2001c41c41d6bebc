//! The loop that waits for everything, and what is decided when something comes.

use std::io;
use std::path::PathBuf;
use std::time::Instant;

use raworc_core::limits::{CANCEL_GRACE, HEARTBEAT_INTERVAL, SERVERLESS_MAX, STOP_GRACE};
use raworc_core::link::{Ending, FEATURE_ATTACH, HostFrame, PROTOCOLS, ServerFrame, Versions, Work, WorkId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, getpid, set_child_subreaper};

use crate::connection::Connection;
use crate::processes::{self, Owner};
use crate::reports::{Reports, line};
use crate::signals::Signals;
use crate::spawn::Spawner;
use crate::streams::{self, Streams};
use crate::works::{Source, Works};

/// Exit status of a host that the server refused.
const REFUSED: u8 = 3;

/// What can come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ready {
    Children,
    Stop,
    Connection,
    Work(Source),
    Stream(streams::Source),
}

/// How a host ends.
struct Stopping {
    status: u8,
    /// When everything is killed; none once it has been.
    kill_at: Option<Instant>,
    /// When it exits, whatever is left.
    exit_at: Instant,
    /// Whether reports should still reach the server.
    delivers: bool,
}

/// Where things are.
pub struct Paths {
    /// The server's socket.
    pub socket: PathBuf,
    /// The directory of scripts.
    pub scripts: PathBuf,
    /// The workspace.
    pub workspace: PathBuf,
}

/// The host.
pub struct Host {
    token: String,
    signals: Signals,
    connection: Connection,
    reports: Reports,
    spawner: Spawner,
    works: Works,
    streams: Streams,
    /// The server knows that we wait for a message.
    polled: bool,
    next_heartbeat: Instant,
    /// Since when there has been no server.
    alone_since: Instant,
    stopping: Option<Stopping>,
}

impl Host {
    /// A host that has not met its server yet.
    pub fn new(token: String, paths: Paths) -> io::Result<Self> {
        let now = Instant::now();
        // The first process of a container inherits orphans anyway; elsewhere, this makes us as responsible.
        set_child_subreaper(Some(getpid()))?;
        Ok(Self {
            streams: Streams::new(token.clone(), paths.socket.clone()),
            spawner: Spawner::new(paths.scripts),
            token,
            signals: Signals::catch()?,
            connection: Connection::new(paths.socket, now),
            reports: Reports::default(),
            works: Works::new(paths.workspace),
            polled: false,
            next_heartbeat: now,
            alone_since: now,
            stopping: None,
        })
    }

    /// Works until it is told to end, or has been without a server for too long; the exit status.
    pub fn run(mut self) -> u8 {
        loop {
            // Last ones first: what is left behind changes places when one of it ends.
            for ready in self.wait().into_iter().rev() {
                self.handle(ready);
            }
            let now = Instant::now();
            self.on_time(now);
            self.speak(now);
            if let Some(status) = self.is_over(now) {
                return status;
            }
        }
    }

    /// Waits until something comes, or it is time for something.
    fn wait(&self) -> Vec<Ready> {
        let mut ready = vec![Ready::Children, Ready::Stop];
        let signals = [self.signals.children(), self.signals.stop()];
        let mut fds: Vec<PollFd<'_>> = signals.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).into();
        if let Some((fd, writes)) = self.connection.descriptor() {
            ready.push(Ready::Connection);
            let flags = if writes { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        for (source, fd, flags) in self.works.sources(&self.reports) {
            ready.push(Ready::Work(source));
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        for (source, fd, flags) in self.streams.sources() {
            ready.push(Ready::Stream(source));
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        let time = self.next_wake().map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = time.and_then(|time| Timespec::try_from(time).ok());
        if poll(&mut fds, timeout.as_ref()).is_err() {
            // A signal came; it is seen next time.
            return Vec::new();
        }
        let came = |(ready, fd): (Ready, PollFd<'_>)| (!fd.revents().is_empty()).then_some(ready);
        ready.into_iter().zip(fds).filter_map(came).collect()
    }

    fn handle(&mut self, ready: Ready) {
        let now = Instant::now();
        match ready {
            Ready::Children => {
                for (process, status) in self.signals.reap() {
                    self.works.ended(process, status);
                    self.streams.ended(process, status);
                }
            }
            Ready::Stop => {
                self.signals.stop_heard();
                self.stop(0, true);
            }
            Ready::Connection => {
                let was_welcomed = self.connection.is_welcomed();
                for frame in self.connection.receive(now) {
                    self.frame(frame, now);
                }
                self.after_connection(was_welcomed, now);
            }
            Ready::Work(source) => self.works.ready(source, now),
            Ready::Stream(source) => self.streams.ready(source),
        }
    }

    // --- the server -------------------------------------------------------------------------------------------------

    fn frame(&mut self, frame: ServerFrame, now: Instant) {
        match frame {
            ServerFrame::Welcome { received, protocol } if PROTOCOLS.contains(&protocol) => self.welcome(received),
            ServerFrame::Welcome { .. } | ServerFrame::Refused { .. } => self.stop(REFUSED, false),
            ServerFrame::Ack { n } => self.reports.acked(n),
            ServerFrame::Run(work) => self.start(&work, now),
            ServerFrame::Cancel(work) => {
                self.works.end(work, Ending::Cancelled, now);
                self.streams.end(work, Ending::Cancelled, now);
            }
            ServerFrame::Attach(attach) => {
                if self.stopping.is_none() {
                    self.streams.attach(attach, now, &mut self.spawner, &mut self.reports);
                }
            }
            ServerFrame::Stop => self.stop(0, true),
        }
    }

    fn hello(&mut self) {
        let works = self.works.ids().chain(self.streams.ids()).chain(self.reports.finished()).collect();
        let features = vec![FEATURE_ATTACH.to_owned()];
        self.send(&HostFrame::Hello { versions: Versions::OURS, token: self.token.clone(), works, features });
    }

    fn welcome(&mut self, received: u64) {
        self.connection.welcome();
        self.reports.acked(received);
        self.reports.rewind();
        self.polled = false;
        self.next_heartbeat = Instant::now();
    }

    /// From the end of a connection that was of use, we count how long we are alone.
    fn after_connection(&mut self, was_welcomed: bool, now: Instant) {
        if was_welcomed && !self.connection.is_welcomed() {
            self.alone_since = now;
        }
    }

    fn start(&mut self, work: &Work, now: Instant) {
        let is_known = self.works.ids().chain(self.reports.finished()).any(|id| id == work.id);
        if is_known || self.stopping.is_some() {
            return;
        }
        if matches!(work.id, WorkId::Turn(_)) {
            self.polled = false;
        }
        self.works.start(work, now, &mut self.spawner, &mut self.reports);
    }

    /// Says what there is to say, in one go.
    fn speak(&mut self, now: Instant) {
        if self.connection.is_welcomed() {
            let Self { reports, connection, .. } = self;
            reports.send(|line| connection.send(line));
            if !self.polled && !self.works.has_turn() && self.stopping.is_none() {
                self.polled = true;
                self.send(&HostFrame::Poll);
            }
        }
        let was_welcomed = self.connection.is_welcomed();
        self.connection.flush(now);
        self.after_connection(was_welcomed, now);
    }

    fn send(&mut self, frame: &HostFrame) {
        if let Some(line) = line(frame) {
            self.connection.send(&line);
        }
    }

    // --- time -------------------------------------------------------------------------------------------------------

    fn next_wake(&self) -> Option<Instant> {
        let of_server =
            if self.connection.is_welcomed() { self.next_heartbeat } else { self.alone_since + SERVERLESS_MAX };
        let of_stop = self.stopping.as_ref().map(|stopping| stopping.kill_at.unwrap_or(stopping.exit_at));
        let others =
            [self.connection.next_wake(), self.works.next_wake(&self.reports), self.streams.next_wake(), of_stop];
        others.into_iter().flatten().chain([of_server]).min()
    }

    fn on_time(&mut self, now: Instant) {
        let was_welcomed = self.connection.is_welcomed();
        if self.connection.on_time(now) {
            self.hello();
        }
        self.after_connection(was_welcomed, now);
        if !self.connection.is_welcomed() && self.alone_since + SERVERLESS_MAX <= now {
            self.stop(0, false);
        }
        if let Some(stopping) = &mut self.stopping
            && stopping.kill_at.is_some_and(|at| at <= now)
        {
            stopping.kill_at = None;
            processes::signal_others(Signal::KILL);
        }
        self.works.on_time(now, &mut self.reports);
        self.works.leave_behind(self.streams.on_time(now, &mut self.reports));
        if self.connection.is_welcomed() && self.next_heartbeat <= now {
            self.next_heartbeat = now + HEARTBEAT_INTERVAL;
            let owners: Vec<Owner> = self.works.owners().chain(self.streams.owners()).collect();
            let background_processes = processes::count_background(&owners);
            self.send(&HostFrame::Heartbeat { background_processes });
        }
    }

    // --- the end ----------------------------------------------------------------------------------------------------

    /// What is left of the time that the container has is enough to kill those that do not end by themselves, and to say so.
    fn stop(&mut self, status: u8, delivers: bool) {
        if let Some(stopping) = &mut self.stopping {
            stopping.delivers &= delivers;
            return;
        }
        let now = Instant::now();
        let kill_at = now + CANCEL_GRACE;
        self.stopping = Some(Stopping { status, kill_at: Some(kill_at), exit_at: now + STOP_GRACE * 9 / 10, delivers });
        self.works.end_all(kill_at);
        self.streams.end_all(kill_at);
        processes::signal_others(Signal::TERM);
    }

    fn is_over(&self, now: Instant) -> Option<u8> {
        let stopping = self.stopping.as_ref()?;
        let is_quiet = self.works.is_empty() && self.streams.is_empty();
        let is_done = is_quiet && (self.reports.is_empty() || !stopping.delivers) && processes::is_alone();
        (is_done || stopping.exit_at <= now).then_some(stopping.status)
    }
}
