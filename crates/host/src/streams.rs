//! Interactive work and the clients attached to it.
//!
//! A program waits for its fastest client, never for one that only watches. A terminal's client that falls behind the
//! scrollback is disconnected, and may attach again.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use raworc_core::limits::{ATTACHMENTS_MAX, CANCEL_GRACE, TERMINALS_MAX};
use raworc_core::link::{Attach, Ending, OutputStream, Report, WorkId};
use raworc_core::pieces::{Ended, Piece};
use rustix::event::PollFlags;
use uuid::Uuid;

use crate::attachment::{Attachment, ReadOutcome};
use crate::interactive::{ProgramIo, Running};
use crate::output::Buffer;
use crate::piped::Pipe;
use crate::processes::ProcessSelector;
use crate::reports::Reports;
use crate::signals::ExitStatus;
use crate::spawn::{Spawner, StartError};
use crate::terminal::Terminal;

/// Bytes that a client may be behind before the program on the terminal is held back.
const BEHIND_BYTES_MAX: u64 = 64 * 1024;
/// Interactive works at the same time.
const WORKS_MAX: usize = TERMINALS_MAX + raworc_core::limits::EXECS_MAX;

/// A source that poll reports as ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamSource {
    /// A client's connection.
    Attachment(Uuid),
    /// The terminal of a work.
    Terminal(Uuid),
    /// A pipe of a work.
    Pipe(Uuid, Pipe),
}

/// What a newly attached client is sent first.
struct AttachSnapshot {
    /// Earlier output of a terminal.
    replay: Vec<u8>,
    /// The offset from which on output is sent as it comes.
    offset: u64,
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
    /// No work yet. Clients' connections are made to `socket`.
    pub fn new(token: String, socket: PathBuf) -> Self {
        Self { token, socket, running: BTreeMap::new(), attachments: BTreeMap::new(), buffer: Buffer::default() }
    }

    /// Whether nothing runs.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// The ids of running work.
    pub fn ids(&self) -> impl Iterator<Item = WorkId> {
        self.running.keys().copied().map(WorkId::Exec)
    }

    /// The selectors of running work.
    pub fn selectors(&self) -> impl Iterator<Item = ProcessSelector> {
        self.running.values().map(|running| running.selector)
    }

    // --- clients ----------------------------------------------------------------------------------------------------

    /// Connects a client, and starts the work if it is new.
    pub fn attach(&mut self, attach: Attach, now: Instant, spawner: &mut Spawner, reports: &mut Reports) {
        let work = attach.work;
        let is_new = attach.start.is_some() && !self.running.contains_key(&work);
        let dialled = Attachment::dial(&attach, &self.socket, &self.token, 0, now);
        let joined = if self.attachments.len() >= ATTACHMENTS_MAX {
            Err(StartError::host_failure("too many clients are attached in this session"))
        } else if is_new && dialled.is_err() {
            Err(StartError::host_failure("the server could not be reached"))
        } else {
            self.join(&attach, spawner, now)
        };
        if is_new && let Err(StartError { ending, .. }) = &joined {
            report_end(work, *ending, Instant::now(), reports);
        }
        // Without a connection the server reports that the client could not be attached.
        let Ok(mut attachment) = dialled else { return };
        match joined {
            Ok(AttachSnapshot { offset, replay }) => {
                attachment.queue_output(OutputStream::Stdout, &replay);
                attachment.offset = offset;
            }
            Err(StartError { ending, reason }) => attachment.close_ended(Ended { ending, reason: Some(reason) }),
        }
        self.attachments.insert(attach.attachment, attachment);
    }

    /// Starts the work, or joins it if it runs.
    fn join(&mut self, attach: &Attach, spawner: &mut Spawner, now: Instant) -> Result<AttachSnapshot, StartError> {
        let is_full = self.running.len() >= WORKS_MAX;
        match (self.running.get_mut(&attach.work), &attach.start) {
            (Some(Running { io: ProgramIo::Terminal(Some(terminal)), .. }), _) => {
                if let Some(size) = attach.size.filter(|_| !attach.watch) {
                    terminal.redraw(size);
                }
                Ok(AttachSnapshot { offset: terminal.scrollback.end(), replay: terminal.scrollback.replay() })
            }
            (Some(_), _) | (None, None) => Err(StartError::host_failure("it has ended")),
            (None, Some(_)) if is_full => Err(StartError::host_failure("too many commands run at the same time")),
            (None, Some(start)) => {
                self.running.insert(attach.work, Running::start(attach.work, start.clone(), spawner, now)?);
                Ok(AttachSnapshot { offset: 0, replay: Vec::new() })
            }
        }
    }

    fn client_of(&mut self, work: Uuid) -> Option<&mut Attachment> {
        self.attachments.values_mut().find(|attachment| attachment.work == work && attachment.is_open())
    }

    /// Whether to read the terminal: a client that is waited for has room, or there is none.
    fn terminal_is_read(&self, work: Uuid, end: u64) -> bool {
        let mut waited_for = self.attachments.values().filter(|a| a.work == work && a.is_open() && !a.is_watching);
        let has_room = |attachment: &Attachment| end.saturating_sub(attachment.offset) < BEHIND_BYTES_MAX;
        waited_for.clone().next().is_none() || waited_for.any(has_room)
    }

    fn takes_input(&self, work: Uuid) -> bool {
        match self.running.get(&work).map(|running| &running.io) {
            Some(ProgramIo::Terminal(Some(terminal))) => terminal.takes_input(),
            Some(ProgramIo::Piped(piped)) => piped.takes_input(),
            Some(ProgramIo::Terminal(None)) | None => true,
        }
    }

    // --- what comes -------------------------------------------------------------------------------------------------

    /// The descriptors to poll.
    pub fn sources(&self) -> Vec<(StreamSource, BorrowedFd<'_>, PollFlags)> {
        let mut sources = Vec::new();
        for (id, attachment) in &self.attachments {
            let (fd, flags) = attachment.source(self.takes_input(attachment.work));
            sources.push((StreamSource::Attachment(*id), fd, flags));
        }
        for (id, running) in &self.running {
            match &running.io {
                ProgramIo::Terminal(Some(terminal)) => {
                    let is_read = self.terminal_is_read(*id, terminal.scrollback.end());
                    sources
                        .extend(terminal.source(is_read).map(|(fd, flags)| (StreamSource::Terminal(*id), fd, flags)));
                }
                ProgramIo::Terminal(None) => {}
                ProgramIo::Piped(piped) => {
                    let client = self.attachments.values().find(|a| a.work == *id && a.is_open());
                    let has_room = client.is_none_or(|client| client.send_capacity() > 0);
                    let pipes = piped.sources(has_room);
                    sources.extend(pipes.map(|(pipe, fd, flags)| (StreamSource::Pipe(*id, pipe), fd, flags)));
                }
            }
        }
        sources
    }

    /// Handles a ready descriptor.
    pub fn handle_ready(&mut self, source: StreamSource) {
        match source {
            StreamSource::Attachment(id) => self.attachment_ready(id),
            StreamSource::Terminal(id) => self.terminal_ready(id),
            StreamSource::Pipe(id, Pipe::Stdin) => {
                if let Some(Running { io: ProgramIo::Piped(piped), .. }) = self.running.get_mut(&id) {
                    // Without queued input, the event means that the program has closed its standard input.
                    if piped.has_input() { piped.flush_input() } else { piped.close_input() }
                }
            }
            StreamSource::Pipe(id, Pipe::Output(stream)) => self.pass_on(id, stream),
        }
    }

    fn attachment_ready(&mut self, id: Uuid) {
        let Some(work) = self.attachments.get(&id).map(|attachment| attachment.work) else { return };
        let takes_input = self.takes_input(work);
        let Some(attachment) = self.attachments.get_mut(&id) else { return };
        let arrived = if attachment.wants_read(takes_input) {
            attachment.read(self.buffer.as_mut_slice())
        } else if attachment.is_hung_up() {
            ReadOutcome::Closed
        } else {
            ReadOutcome::Pieces(Vec::new())
        };
        match arrived {
            ReadOutcome::Closed => drop(self.attachments.remove(&id)),
            ReadOutcome::Pieces(_) if attachment.is_watching => {}
            ReadOutcome::Pieces(pieces) => pieces.into_iter().for_each(|piece| self.handle_input(work, piece)),
        }
    }

    fn handle_input(&mut self, work: Uuid, piece: Piece) {
        let Some(running) = self.running.get_mut(&work) else { return };
        match (&mut running.io, piece) {
            (ProgramIo::Terminal(Some(terminal)), Piece::Input(bytes)) => terminal.queue_input(&bytes),
            (ProgramIo::Terminal(Some(terminal)), Piece::Resize(size)) if size != terminal.size() => {
                terminal.resize(size)
            }
            (ProgramIo::Piped(piped), Piece::Input(bytes)) => piped.queue_input(&bytes),
            (ProgramIo::Piped(piped), Piece::InputEnd) => piped.end_input(),
            _ => {}
        }
    }

    fn terminal_ready(&mut self, id: Uuid) {
        let end = match self.running.get(&id) {
            Some(Running { io: ProgramIo::Terminal(Some(terminal)), .. }) => terminal.scrollback.end(),
            _ => return,
        };
        let has_readers = self.terminal_is_read(id, end);
        let Self { running, buffer, .. } = self;
        let Some(running) = running.get_mut(&id) else { return };
        if let ProgramIo::Terminal(Some(terminal)) = &mut running.io {
            terminal.flush_input();
            // The event may be for input only.
            if has_readers && !terminal.read(buffer.as_mut_slice()) {
                running.end(Ending::Cancelled, Instant::now() + CANCEL_GRACE);
            }
        }
    }

    /// Reads a command's output once and passes it on.
    fn pass_on(&mut self, id: Uuid, stream: OutputStream) {
        let Self { running, attachments, buffer, .. } = self;
        let Some(Running { io: ProgramIo::Piped(piped), .. }) = running.get_mut(&id) else { return };
        let count = piped.read(stream, buffer.as_mut_slice(), false);
        if let Some(client) = attachments.values_mut().find(|a| a.work == id && a.is_open()) {
            client.queue_output(stream, &buffer.as_mut_slice()[..count]);
        }
    }

    // --- the end ----------------------------------------------------------------------------------------------------

    /// Records the exit of a process. It may be any child, also an orphan.
    pub fn handle_exit(&mut self, process: i32, status: ExitStatus) {
        let is_it = |running: &&mut Running| running.selector.leader == process && running.is_alive();
        if let Some(running) = self.running.values_mut().find(is_it) {
            running.exited(status);
        }
    }

    /// Terminates work.
    pub fn end(&mut self, work: WorkId, why: Ending, now: Instant) {
        if let WorkId::Exec(id) = work {
            self.end_at(id, why, now + CANCEL_GRACE);
        }
    }

    fn end_at(&mut self, id: Uuid, why: Ending, kill_at: Instant) {
        self.flush_terminal(id);
        if let Some(running) = self.running.get_mut(&id) {
            running.end(why, kill_at);
        }
    }

    /// Sends a terminal's clients all output written until now.
    fn flush_terminal(&mut self, id: Uuid) {
        let Self { running, attachments, buffer, .. } = self;
        let Some(Running { io: ProgramIo::Terminal(Some(terminal)), .. }) = running.get_mut(&id) else { return };
        terminal.drain(buffer.as_mut_slice());
        for attachment in attachments.values_mut().filter(|attachment| attachment.work == id) {
            catch_up(attachment, terminal, usize::MAX);
        }
    }

    /// Terminates all work and kills it at `kill_at`.
    pub fn end_all(&mut self, kill_at: Instant) {
        for id in self.running.keys().copied().collect::<Vec<_>>() {
            self.end_at(id, Ending::Cancelled, kill_at);
        }
    }

    /// When [`Streams::handle_timers`] has to be called next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let works = self.running.values().filter_map(Running::next_deadline);
        works.chain(self.attachments.values().filter_map(Attachment::give_up_at)).min()
    }

    /// Advances all work and finishes what has ended. Returns output pipes that background processes may still write
    /// to.
    pub fn handle_timers(&mut self, now: Instant, reports: &mut Reports) -> Vec<OwnedFd> {
        self.send(now);
        for id in self.running.keys().copied().collect::<Vec<_>>() {
            let has_clients = self.client_of(id).is_some();
            let Some(running) = self.running.get_mut(&id) else { continue };
            running.has_clients(has_clients, now);
            if running.next_deadline().is_some_and(|at| at <= now) {
                self.handle_deadline(id, now);
            }
            self.drain(id);
        }
        let over = self.running.iter_mut().filter_map(|(id, running)| running.is_over(now).then_some(*id));
        let over: Vec<Uuid> = over.collect();
        let pipes = over.into_iter().flat_map(|id| self.finish(id, reports)).collect();
        self.send(now);
        pipes
    }

    /// Handles a deadline of this work.
    fn handle_deadline(&mut self, id: Uuid, now: Instant) {
        self.flush_terminal(id);
        if let Some(running) = self.running.get_mut(&id) {
            running.handle_timers(now);
        }
    }

    /// Passes on a command's remaining output, as far as its client has room.
    fn drain(&mut self, id: Uuid) {
        let Self { running, attachments, buffer, .. } = self;
        let Some(running) = running.get_mut(&id).filter(|running| !running.is_alive()) else { return };
        let ProgramIo::Piped(piped) = &mut running.io else { return };
        let mut client = attachments.values_mut().find(|a| a.work == id && a.is_open());
        for stream in piped.unfinished().collect::<Vec<_>>() {
            while client.as_ref().is_none_or(|client| client.send_capacity() > 0) {
                let count = piped.read(stream, buffer.as_mut_slice(), true);
                if count == 0 {
                    break;
                }
                if let Some(client) = &mut client {
                    client.queue_output(stream, &buffer.as_mut_slice()[..count]);
                }
            }
        }
    }

    fn finish(&mut self, id: Uuid, reports: &mut Reports) -> Vec<OwnedFd> {
        self.flush_terminal(id);
        let Some(running) = self.running.remove(&id) else { return Vec::new() };
        let ending = running.ending();
        for attachment in self.attachments.values_mut().filter(|attachment| attachment.work == id) {
            attachment.close_ended(Ended { ending, reason: None });
        }
        report_end(id, ending, running.begun, reports);
        running.into_pipes()
    }

    /// Sends every client as much as it has room for, and removes closed and finished connections.
    fn send(&mut self, now: Instant) {
        let Self { running, attachments, .. } = self;
        attachments.retain(|_, attachment| {
            if let Some(Running { io: ProgramIo::Terminal(Some(terminal)), .. }) = running.get_mut(&attachment.work) {
                catch_up(attachment, terminal, attachment.send_capacity());
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

/// Queues up to `max` bytes of terminal output that the client has not seen.
fn catch_up(attachment: &mut Attachment, terminal: &Terminal, max: usize) {
    let mut left = max;
    while attachment.is_open() {
        match terminal.scrollback.read_from(attachment.offset, left) {
            Some([]) => return,
            Some(bytes) => {
                attachment.queue_output(OutputStream::Stdout, bytes);
                attachment.offset += bytes.len() as u64;
                left -= bytes.len();
            }
            None => attachment.close_lagged(),
        }
    }
}
