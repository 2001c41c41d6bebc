//! The host's event loop: polls every descriptor and handles each event.

use std::io;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Instant;

use raworc_core::limits::{CANCEL_GRACE, HEARTBEAT_INTERVAL, SERVERLESS_MAX, STOP_GRACE};
use raworc_core::link::{Ending, FEATURE_ATTACH, HostFrame, PROTOCOLS, ServerFrame, Versions, Work, WorkId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, getpid, set_child_subreaper};

use crate::connection::Connection;
use crate::gateway::{Gateway, GatewaySource};
use crate::processes::{self, ProcessSelector};
use crate::reports::{Reports, line};
use crate::signals::Signals;
use crate::spawn::Spawner;
use crate::streams::{StreamSource, Streams};
use crate::works::{WorkSource, Works};

/// Exit status of a host that the server has rejected.
const REJECTED: u8 = 3;

/// A source that poll reports as ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ready {
    Children,
    Stop,
    Connection,
    Work(WorkSource),
    Stream(StreamSource),
    Gateway(GatewaySource),
}

/// A shutdown in progress.
struct Shutdown {
    status: u8,
    /// When all processes are killed; `None` after that.
    kill_at: Option<Instant>,
    /// When the host exits, even if processes are left.
    exit_at: Instant,
    /// Whether remaining reports are still to be delivered.
    delivers_reports: bool,
}

/// The host's files and directories.
pub struct Paths {
    /// The server's socket.
    pub socket: PathBuf,
    /// The directory for script files.
    pub scripts: PathBuf,
    /// The workspace.
    pub workspace: PathBuf,
    /// Where programs find the gateway.
    pub gateway: Option<SocketAddrV4>,
}

/// The host of one container.
pub struct Host {
    token: String,
    signals: Signals,
    connection: Connection,
    reports: Reports,
    spawner: Spawner,
    works: Works,
    streams: Streams,
    gateway: Gateway,
    /// The server knows that we are ready for a message.
    polled: bool,
    next_heartbeat: Instant,
    /// Since when there is no connection to a server.
    disconnected_since: Instant,
    shutdown: Option<Shutdown>,
}

impl Host {
    /// A host that has not connected yet.
    pub fn new(token: String, paths: Paths) -> io::Result<Self> {
        let now = Instant::now();
        // As the first process of a container we inherit orphans; this has the same effect outside of one.
        set_child_subreaper(Some(getpid()))?;
        let gateway = Gateway::listen(paths.gateway, &token, paths.socket.clone(), now);
        Ok(Self {
            streams: Streams::new(token.clone(), paths.socket.clone()),
            spawner: Spawner::new(paths.scripts, gateway.address()),
            gateway,
            token,
            signals: Signals::catch()?,
            connection: Connection::new(paths.socket, now),
            reports: Reports::default(),
            works: Works::new(paths.workspace),
            polled: false,
            next_heartbeat: now,
            disconnected_since: now,
            shutdown: None,
        })
    }

    /// Runs until it is told to stop or has been without a server for too long. Returns the exit status.
    pub fn run(mut self) -> u8 {
        loop {
            // In reverse: removing an abandoned pipe shifts the indices after it.
            for ready in self.wait().into_iter().rev() {
                self.handle(ready);
            }
            let now = Instant::now();
            self.handle_timers(now);
            self.send_pending(now);
            if let Some(status) = self.is_over(now) {
                return status;
            }
        }
    }

    /// Blocks until a descriptor is ready or a deadline has come.
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
        for (source, fd, flags) in self.gateway.sources() {
            ready.push(Ready::Gateway(source));
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        let time = self.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = time.and_then(|time| Timespec::try_from(time).ok());
        if poll(&mut fds, timeout.as_ref()).is_err() {
            // A signal interrupted poll; its descriptor is ready at the next call.
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
                    self.works.handle_exit(process, status);
                    self.streams.handle_exit(process, status);
                }
            }
            Ready::Stop => {
                self.signals.clear_stop();
                self.stop(0, true);
            }
            Ready::Connection => {
                let was_welcomed = self.connection.is_welcomed();
                for frame in self.connection.receive(now) {
                    self.handle_frame(frame, now);
                }
                self.after_connection(was_welcomed, now);
            }
            Ready::Work(source) => self.works.handle_ready(source, now),
            Ready::Stream(source) => self.streams.handle_ready(source),
            Ready::Gateway(source) => self.gateway.handle_ready(source, now),
        }
    }

    // --- the server -------------------------------------------------------------------------------------------------

    fn handle_frame(&mut self, frame: ServerFrame, now: Instant) {
        match frame {
            ServerFrame::Welcome { received, protocol } if PROTOCOLS.contains(&protocol) => self.welcome(received),
            ServerFrame::Welcome { .. } | ServerFrame::Refused { .. } => self.stop(REJECTED, false),
            ServerFrame::Ack { n } => self.reports.acknowledge(n),
            ServerFrame::Run(work) => self.start(&work, now),
            ServerFrame::Cancel(work) => {
                self.works.end(work, Ending::Cancelled, now);
                self.streams.end(work, Ending::Cancelled, now);
            }
            ServerFrame::Attach(attach) => {
                if self.shutdown.is_none() {
                    self.streams.attach(attach, now, &mut self.spawner, &mut self.reports);
                }
            }
            ServerFrame::Stop => self.stop(0, true),
        }
    }

    fn send_hello(&mut self) {
        let works = self.works.ids().chain(self.streams.ids()).chain(self.reports.finished()).collect();
        let features = vec![FEATURE_ATTACH.to_owned()];
        self.send(&HostFrame::Hello { versions: Versions::OURS, token: self.token.clone(), works, features });
    }

    fn welcome(&mut self, received: u64) {
        self.connection.welcome();
        self.reports.acknowledge(received);
        self.reports.mark_unsent();
        self.polled = false;
        self.next_heartbeat = Instant::now();
    }

    /// Starts counting the time without a server when a connection that was accepted ends.
    fn after_connection(&mut self, was_welcomed: bool, now: Instant) {
        if was_welcomed && !self.connection.is_welcomed() {
            self.disconnected_since = now;
        }
    }

    fn start(&mut self, work: &Work, now: Instant) {
        let is_known = self.works.ids().chain(self.reports.finished()).any(|id| id == work.id);
        if is_known || self.shutdown.is_some() {
            return;
        }
        if matches!(work.id, WorkId::Turn(_)) {
            self.polled = false;
        }
        self.works.start(work, now, &mut self.spawner, &mut self.reports);
    }

    /// Sends everything that is pending.
    fn send_pending(&mut self, now: Instant) {
        if self.connection.is_welcomed() {
            let Self { reports, connection, .. } = self;
            reports.send(|line| connection.send(line));
            if !self.polled && !self.works.has_turn() && self.shutdown.is_none() {
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

    fn next_deadline(&self) -> Option<Instant> {
        let of_server =
            if self.connection.is_welcomed() { self.next_heartbeat } else { self.disconnected_since + SERVERLESS_MAX };
        let of_stop = self.shutdown.as_ref().map(|shutdown| shutdown.kill_at.unwrap_or(shutdown.exit_at));
        let others = [
            self.connection.next_deadline(),
            self.works.next_deadline(&self.reports),
            self.streams.next_deadline(),
            self.gateway.next_deadline(),
            of_stop,
        ];
        others.into_iter().flatten().chain([of_server]).min()
    }

    fn handle_timers(&mut self, now: Instant) {
        let was_welcomed = self.connection.is_welcomed();
        if self.connection.handle_timers(now) {
            self.send_hello();
        }
        self.after_connection(was_welcomed, now);
        if !self.connection.is_welcomed() && self.disconnected_since + SERVERLESS_MAX <= now {
            self.stop(0, false);
        }
        if let Some(shutdown) = &mut self.shutdown
            && shutdown.kill_at.is_some_and(|at| at <= now)
        {
            shutdown.kill_at = None;
            processes::signal_others(Signal::KILL);
        }
        self.gateway.handle_timers(now, self.connection.is_welcomed());
        self.works.handle_timers(now, &mut self.reports);
        self.works.leave_behind(self.streams.handle_timers(now, &mut self.reports));
        if self.connection.is_welcomed() && self.next_heartbeat <= now {
            self.next_heartbeat = now + HEARTBEAT_INTERVAL;
            let selectors: Vec<ProcessSelector> = self.works.selectors().chain(self.streams.selectors()).collect();
            let background_processes = processes::count_background(&selectors);
            self.send(&HostFrame::Heartbeat { background_processes });
        }
    }

    // --- the end ----------------------------------------------------------------------------------------------------

    /// Leaves enough of the container's grace period to kill what does not end on SIGTERM, and to report that.
    fn stop(&mut self, status: u8, delivers_reports: bool) {
        if let Some(shutdown) = &mut self.shutdown {
            shutdown.delivers_reports &= delivers_reports;
            return;
        }
        let now = Instant::now();
        let kill_at = now + CANCEL_GRACE;
        self.shutdown =
            Some(Shutdown { status, kill_at: Some(kill_at), exit_at: now + STOP_GRACE * 9 / 10, delivers_reports });
        self.works.end_all(kill_at);
        self.streams.end_all(kill_at);
        processes::signal_others(Signal::TERM);
    }

    fn is_over(&self, now: Instant) -> Option<u8> {
        let shutdown = self.shutdown.as_ref()?;
        let is_quiet = self.works.is_empty() && self.streams.is_empty();
        let is_done = is_quiet && (self.reports.is_empty() || !shutdown.delivers_reports) && processes::is_alone();
        (is_done || shutdown.exit_at <= now).then_some(shutdown.status)
    }
}
