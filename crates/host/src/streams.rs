//! Interactive work and its clients: what goes on between them.
//!
//! A program waits for the fastest of its clients, and a client that only watches is never waited for. A terminal's client
//! that falls behind what is kept loses its connection, and may come back for the rest.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use raworc_core::limits::{ATTACHMENTS_MAX, CANCEL_GRACE, TERMINALS_MAX};
use raworc_core::link::{Attach, Ending, Report, Stream, WorkId};
use raworc_core::pieces::{Ended, Piece};
use rustix::event::PollFlags;
use uuid::Uuid;

use crate::attachment::{Arrived, Attachment};
use crate::interactive::{Running, Way};
use crate::output::Buffer;
use crate::piped::Pipe;
use crate::processes::Owner;
use crate::reports::Reports;
use crate::signals::Status;
use crate::spawn::{NotStarted, Spawner};
use crate::terminal::Terminal;

/// How far a client may be behind before its terminal's program waits for it, in bytes.
const BEHIND_BYTES_MAX: u64 = 64 * 1024;
/// Interactive works at the same time.
const WORKS_MAX: usize = TERMINALS_MAX + raworc_core::limits::EXECS_MAX;

/// What can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A client's connection.
    Attachment(Uuid),
    /// A work's terminal.
    Terminal(Uuid),
    /// One of a work's pipes.
    Pipe(Uuid, Pipe),
}

/// What a client that attaches is sent first.
struct Joined {
    /// A terminal's output from before.
    replay: Vec<u8>,
    /// The place in the output from which on it is sent as it comes.
    place: u64,
}

/// All interactive work.
pub struct Streams {
    token: String,
    socket: PathBuf,
    running: BTreeMap<Uuid, Running>,
    attachments: BTreeMap<Uuid, Attachment>,
    buffer: Buffer,
}

impl Streams {
    /// None yet. Clients' connections go to `socket`.
    pub fn new(token: String, socket: PathBuf) -> Self {
        Self { token, socket, running: BTreeMap::new(), attachments: BTreeMap::new(), buffer: Buffer::default() }
    }

    /// Whether nothing runs.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// What runs.
    pub fn ids(&self) -> impl Iterator<Item = WorkId> {
        self.running.keys().copied().map(WorkId::Exec)
    }

    /// How the processes of each are found.
    pub fn owners(&self) -> impl Iterator<Item = Owner> {
        self.running.values().map(|running| running.owner)
    }

    // --- clients ----------------------------------------------------------------------------------------------------

    /// Dials for a client, and starts what is new.
    pub fn attach(&mut self, attach: Attach, now: Instant, spawner: &mut Spawner, reports: &mut Reports) {
        let work = attach.work;
        let is_new = attach.start.is_some() && !self.running.contains_key(&work);
        let dialled = Attachment::dial(&attach, &self.socket, &self.token, 0, now);
        let joined = if self.attachments.len() >= ATTACHMENTS_MAX {
            Err(NotStarted::here("too many clients are attached in this session"))
        } else if is_new && dialled.is_err() {
            Err(NotStarted::here("the server could not be reached"))
        } else {
            self.join(&attach, spawner, now)
        };
        if is_new && let Err(NotStarted { ending, .. }) = &joined {
            report_end(work, *ending, Instant::now(), reports);
        }
        // Without a connection the server hears that nobody came.
        let Ok(mut attachment) = dialled else { return };
        match joined {
            Ok(Joined { place, replay }) => {
                attachment.output(Stream::Stdout, &replay);
                attachment.place = place;
            }
            Err(NotStarted { ending, reason }) => attachment.end(Ended { ending, reason: Some(reason) }),
        }
        self.attachments.insert(attach.attachment, attachment);
    }

    /// Starts the work, or finds it running.
    fn join(&mut self, attach: &Attach, spawner: &mut Spawner, now: Instant) -> Result<Joined, NotStarted> {
        let is_full = self.running.len() >= WORKS_MAX;
        match (self.running.get_mut(&attach.work), &attach.start) {
            (Some(Running { way: Way::Terminal(Some(terminal)), .. }), _) => {
                if let Some(size) = attach.size.filter(|_| !attach.watch) {
                    terminal.redraw(size);
                }
                Ok(Joined { place: terminal.replay.end(), replay: terminal.replay.again() })
            }
            (Some(_), _) | (None, None) => Err(NotStarted::here("it has ended")),
            (None, Some(_)) if is_full => Err(NotStarted::here("too many commands run at the same time")),
            (None, Some(start)) => {
                self.running.insert(attach.work, Running::start(attach.work, start.clone(), spawner, now)?);
                Ok(Joined { place: 0, replay: Vec::new() })
            }
        }
    }

    fn client_of(&mut self, work: Uuid) -> Option<&mut Attachment> {
        self.attachments.values_mut().find(|attachment| attachment.work == work && attachment.is_open())
    }

    /// Whether somebody who is waited for has room for a terminal's output, or nobody is waited for.
    fn terminal_is_read(&self, work: Uuid, end: u64) -> bool {
        let mut waited_for = self.attachments.values().filter(|a| a.work == work && a.is_open() && !a.is_watching);
        let has_room = |attachment: &Attachment| end.saturating_sub(attachment.place) < BEHIND_BYTES_MAX;
        waited_for.clone().next().is_none() || waited_for.any(has_room)
    }

    fn takes_input(&self, work: Uuid) -> bool {
        match self.running.get(&work).map(|running| &running.way) {
            Some(Way::Terminal(Some(terminal))) => terminal.takes_input(),
            Some(Way::Piped(piped)) => piped.takes_input(),
            Some(Way::Terminal(None)) | None => true,
        }
    }

    // --- what comes -------------------------------------------------------------------------------------------------

    /// What to wait for.
    pub fn sources(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let mut sources = Vec::new();
        for (id, attachment) in &self.attachments {
            let (fd, flags) = attachment.source(self.takes_input(attachment.work));
            sources.push((Source::Attachment(*id), fd, flags));
        }
        for (id, running) in &self.running {
            match &running.way {
                Way::Terminal(Some(terminal)) => {
                    let is_read = self.terminal_is_read(*id, terminal.replay.end());
                    sources.extend(terminal.source(is_read).map(|(fd, flags)| (Source::Terminal(*id), fd, flags)));
                }
                Way::Terminal(None) => {}
                Way::Piped(piped) => {
                    let client = self.attachments.values().find(|a| a.work == *id && a.is_open());
                    let has_room = client.is_none_or(|client| client.room() > 0);
                    let pipes = piped.sources(has_room);
                    sources.extend(pipes.map(|(pipe, fd, flags)| (Source::Pipe(*id, pipe), fd, flags)));
                }
            }
        }
        sources
    }

    /// Something came.
    pub fn ready(&mut self, source: Source) {
        match source {
            Source::Attachment(id) => self.attachment_ready(id),
            Source::Terminal(id) => self.terminal_ready(id),
            Source::Pipe(id, Pipe::Stdin) => {
                if let Some(Running { way: Way::Piped(piped), .. }) = self.running.get_mut(&id) {
                    // Where nothing was to be written, this is the news that nobody reads any more.
                    if piped.has_input() { piped.write() } else { piped.close_input() }
                }
            }
            Source::Pipe(id, Pipe::Output(stream)) => self.pass_on(id, stream),
        }
    }

    fn attachment_ready(&mut self, id: Uuid) {
        let Some(work) = self.attachments.get(&id).map(|attachment| attachment.work) else { return };
        let takes_input = self.takes_input(work);
        let Some(attachment) = self.attachments.get_mut(&id) else { return };
        let arrived = if attachment.reads(takes_input) {
            attachment.read(self.buffer.room())
        } else if attachment.is_hung_up() {
            Arrived::Lost
        } else {
            Arrived::Pieces(Vec::new())
        };
        match arrived {
            Arrived::Lost => drop(self.attachments.remove(&id)),
            Arrived::Pieces(_) if attachment.is_watching => {}
            Arrived::Pieces(pieces) => pieces.into_iter().for_each(|piece| self.input(work, piece)),
        }
    }

    fn input(&mut self, work: Uuid, piece: Piece) {
        let Some(running) = self.running.get_mut(&work) else { return };
        match (&mut running.way, piece) {
            (Way::Terminal(Some(terminal)), Piece::Input(bytes)) => terminal.put(&bytes),
            (Way::Terminal(Some(terminal)), Piece::Resize(size)) if size != terminal.size() => terminal.resize(size),
            (Way::Piped(piped), Piece::Input(bytes)) => piped.put(&bytes),
            (Way::Piped(piped), Piece::InputEnd) => piped.end_input(),
            _ => {}
        }
    }

    fn terminal_ready(&mut self, id: Uuid) {
        let end = match self.running.get(&id) {
            Some(Running { way: Way::Terminal(Some(terminal)), .. }) => terminal.replay.end(),
            _ => return,
        };
        let has_readers = self.terminal_is_read(id, end);
        let Self { running, buffer, .. } = self;
        let Some(running) = running.get_mut(&id) else { return };
        if let Way::Terminal(Some(terminal)) = &mut running.way {
            terminal.write();
            // It may be for its input alone that we were woken.
            if has_readers && !terminal.read(buffer.room()) {
                running.end(Ending::Cancelled, Instant::now() + CANCEL_GRACE);
            }
        }
    }

    /// Reads an output of a command once.
    fn pass_on(&mut self, id: Uuid, stream: Stream) {
        let Self { running, attachments, buffer, .. } = self;
        let Some(Running { way: Way::Piped(piped), .. }) = running.get_mut(&id) else { return };
        let count = piped.read(stream, buffer.room(), false);
        if let Some(client) = attachments.values_mut().find(|a| a.work == id && a.is_open()) {
            client.output(stream, &buffer.room()[..count]);
        }
    }

    // --- the end ----------------------------------------------------------------------------------------------------

    /// A process ended; any child, also one that was never started here.
    pub fn ended(&mut self, process: i32, status: Status) {
        let is_it = |running: &&mut Running| running.owner.leader == process && running.is_alive();
        if let Some(running) = self.running.values_mut().find(is_it) {
            running.exited(status);
        }
    }

    /// Ends work.
    pub fn end(&mut self, work: WorkId, why: Ending, now: Instant) {
        if let WorkId::Exec(id) = work {
            self.end_at(id, why, now + CANCEL_GRACE);
        }
    }

    fn end_at(&mut self, id: Uuid, why: Ending, kill_at: Instant) {
        self.show_rest(id);
        if let Some(running) = self.running.get_mut(&id) {
            running.end(why, kill_at);
        }
    }

    /// Has the clients of a terminal see all that was written to it until now.
    fn show_rest(&mut self, id: Uuid) {
        let Self { running, attachments, buffer, .. } = self;
        let Some(Running { way: Way::Terminal(Some(terminal)), .. }) = running.get_mut(&id) else { return };
        terminal.drain(buffer.room());
        for attachment in attachments.values_mut().filter(|attachment| attachment.work == id) {
            catch_up(attachment, terminal, usize::MAX);
        }
    }

    /// Everything is to end, and is killed at `kill_at`.
    pub fn end_all(&mut self, kill_at: Instant) {
        for id in self.running.keys().copied().collect::<Vec<_>>() {
            self.end_at(id, Ending::Cancelled, kill_at);
        }
    }

    /// When [`Streams::on_time`] has something to do.
    pub fn next_wake(&self) -> Option<Instant> {
        let works = self.running.values().filter_map(Running::next_wake);
        works.chain(self.attachments.values().filter_map(Attachment::give_up_at)).min()
    }

    /// Moves on what can be, and finishes what has ended; outputs that others may still write to.
    pub fn on_time(&mut self, now: Instant, reports: &mut Reports) -> Vec<OwnedFd> {
        self.send(now);
        for id in self.running.keys().copied().collect::<Vec<_>>() {
            let has_clients = self.client_of(id).is_some();
            let Some(running) = self.running.get_mut(&id) else { continue };
            running.has_clients(has_clients, now);
            if running.next_wake().is_some_and(|at| at <= now) {
                self.wake(id, now);
            }
            self.drain(id);
        }
        let over = self.running.iter_mut().filter_map(|(id, running)| running.is_over(now).then_some(*id));
        let over: Vec<Uuid> = over.collect();
        let pipes = over.into_iter().flat_map(|id| self.finish(id, reports)).collect();
        self.send(now);
        pipes
    }

    /// A deadline of this work has come.
    fn wake(&mut self, id: Uuid, now: Instant) {
        self.show_rest(id);
        if let Some(running) = self.running.get_mut(&id) {
            running.on_time(now);
        }
    }

    /// Passes on what a command wrote before it ended, as far as its client has room.
    fn drain(&mut self, id: Uuid) {
        let Self { running, attachments, buffer, .. } = self;
        let Some(running) = running.get_mut(&id).filter(|running| !running.is_alive()) else { return };
        let Way::Piped(piped) = &mut running.way else { return };
        let mut client = attachments.values_mut().find(|a| a.work == id && a.is_open());
        for stream in piped.unfinished().collect::<Vec<_>>() {
            while client.as_ref().is_none_or(|client| client.room() > 0) {
                let count = piped.read(stream, buffer.room(), true);
                if count == 0 {
                    break;
                }
                if let Some(client) = &mut client {
                    client.output(stream, &buffer.room()[..count]);
                }
            }
        }
    }

    fn finish(&mut self, id: Uuid, reports: &mut Reports) -> Vec<OwnedFd> {
        self.show_rest(id);
        let Some(running) = self.running.remove(&id) else { return Vec::new() };
        let ending = running.ending();
        for attachment in self.attachments.values_mut().filter(|attachment| attachment.work == id) {
            attachment.end(Ended { ending, reason: None });
        }
        report_end(id, ending, running.begun, reports);
        running.into_pipes()
    }

    /// Has every client sent what it has room for; those that are done or lost are no more.
    fn send(&mut self, now: Instant) {
        let Self { running, attachments, .. } = self;
        attachments.retain(|_, attachment| {
            if let Some(Running { way: Way::Terminal(Some(terminal)), .. }) = running.get_mut(&attachment.work) {
                catch_up(attachment, terminal, attachment.room());
            }
            attachment.flush() && !attachment.is_done() && attachment.give_up_at().is_none_or(|at| at > now)
        });
    }
}

fn report_end(id: Uuid, ending: Ending, begun: Instant, reports: &mut Reports) {
    let duration_micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    let work = WorkId::Exec(id);
    reports.add(Report::Finished { work, ending, duration_micros, dropped_bytes: 0, output_file: None });
}

/// Puts up to `max` bytes that a terminal's client has not seen on their way to it.
fn catch_up(attachment: &mut Attachment, terminal: &Terminal, max: usize) {
    let mut left = max;
    while attachment.is_open() {
        match terminal.replay.from(attachment.place, left) {
            Some([]) => return,
            Some(bytes) => {
                attachment.output(Stream::Stdout, bytes);
                attachment.place += bytes.len() as u64;
                left -= bytes.len();
            }
            None => attachment.lag(),
        }
    }
}
