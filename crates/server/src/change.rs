//! One change of one session, in one transaction: load, decide (in core), record.

use std::collections::BTreeMap;

use raworc_api::message::{MessageError, Status};
use raworc_api::problem::Code;
use raworc_core::events::{
    ExecFinished, ExecStarted, LogEvent, MessageFinished, MessageRequeued, Outcome, SessionDeleted, SessionFailed,
    SessionPaused, SessionRestarted, SessionRestored, SessionResumed, SessionStartWaiting, SessionStateChanged,
    SessionTerminated, StreamEnd, StreamError, StreamStart, TerminalClosed, TerminalOpened, ToolCalled, ToolFinished,
    TurnResult,
};
use raworc_core::ids::{LayerId, MessageId, SessionId, TurnId};
use raworc_core::limits::{EXECS_MAX, TERMINALS_MAX};
use raworc_core::session::{self, Container, Effect, Event, Note, Running};
use raworc_core::time::Time;
use raworc_core::turn::LOST_RESULT;
use raworc_store::conversation::{Segment, SegmentRow};
use raworc_store::events::EventRow;
use raworc_store::messages::{self, MessageRow};
use raworc_store::sessions::{self, SessionRow};
use raworc_store::streams::{self, StreamRow};
use raworc_store::{StoreError, Tx, events, layers};
use uuid::Uuid;

use crate::error::Failure;

/// Who is written into the log where nobody in particular did it.
pub const SYSTEM: &str = "system";

/// A session within a transaction.
pub struct Change<'t> {
    tx: &'t mut Tx,
    /// The session; what is changed here is stored by [`Change::save`].
    pub row: SessionRow,
    /// The time of everything in this change.
    pub now: Time,
    actor: String,
}

impl<'t> Change<'t> {
    /// Loads a session to change it in the name of `actor`.
    ///
    /// # Errors
    /// 404 where there is none.
    pub async fn load(tx: &'t mut Tx, id: SessionId, now: Time, actor: impl Into<String>) -> Result<Self, Failure> {
        let row = sessions::find(tx, id).await?.ok_or_else(|| Failure::not_found("session", &id.to_string()))?;
        Ok(Self { tx, row, now, actor: actor.into() })
    }

    /// A session that is just being made.
    pub fn begin(tx: &'t mut Tx, row: SessionRow, now: Time, actor: impl Into<String>) -> Self {
        Self { tx, row, now, actor: actor.into() }
    }

    /// The transaction of this change.
    pub fn tx(&mut self) -> &mut Tx {
        self.tx
    }

    /// Has the state machine decide, and records what follows from it.
    ///
    /// # Errors
    /// [`Failure::Refused`]; then nothing happened.
    pub async fn step(&mut self, event: &Event) -> Result<(), Failure> {
        let (next, effects) = session::step(&self.row.machine, event, self.now)?;
        if next.generation != self.row.machine.generation {
            self.row.host_received = 0;
        }
        let before = std::mem::replace(&mut self.row.machine, next);
        for effect in effects {
            self.carry_out(&before, effect).await?;
        }
        let is_gone = before.container != Container::None && self.row.machine.container == Container::None;
        if is_gone || before.generation != self.row.machine.generation {
            self.end_streams(|_| true).await?;
            let session = self.row.id;
            streams::remove_all(self.tx(), session).await?;
        }
        Ok(())
    }

    /// Tells the beginning of a terminal or a command, in a container that is up. It is recorded for as long as it runs, so that its end is
    /// told whatever dies meanwhile.
    ///
    /// # Errors
    /// 409 where its container is no longer up, 429 where too many run.
    pub async fn begin_stream(&mut self, row: &StreamRow, start: StreamStart) -> Result<(), Failure> {
        let machine = &self.row.machine;
        if machine.generation != row.generation || machine.container != Container::Up {
            return Err(Failure::container_ended());
        }
        let others = streams::of_session(self.tx(), row.session_id).await?.rows;
        let count = others.iter().filter(|other| other.kind == row.kind).count();
        let (id, command) = (row.id, row.command.clone());
        let (most, event): (usize, LogEvent) = match row.kind {
            streams::Kind::Terminal => (TERMINALS_MAX, TerminalOpened { terminal_id: id, command, start }.into()),
            streams::Kind::Exec => (EXECS_MAX, ExecStarted { exec_id: id, command, start }.into()),
        };
        if count >= most {
            let detail = format!("{most} of these are open in this session already; wait for one to end, or close one");
            return Err(Failure::new(Code::Busy, detail));
        }
        streams::insert(self.tx(), row).await?;
        self.log_as(&row.actor, event).await?;
        Ok(())
    }

    /// Tells the end of terminals and commands that run no more although nobody saw them end.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn end_streams(&mut self, is_lost: impl Fn(&StreamRow) -> bool) -> Result<(), StoreError> {
        let session = self.row.id;
        for row in streams::of_session(self.tx(), session).await?.rows.into_iter().filter(is_lost) {
            self.end_stream(&row, unseen(StreamError::Lost)).await?;
        }
        Ok(())
    }

    /// Tells the end of a terminal or a command.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn end_stream(&mut self, row: &StreamRow, end: StreamEnd) -> Result<(), StoreError> {
        if !streams::remove(self.tx(), row.id).await? {
            return Ok(());
        }
        let event: LogEvent = match row.kind {
            streams::Kind::Terminal => TerminalClosed { terminal_id: row.id, end }.into(),
            streams::Kind::Exec => ExecFinished { exec_id: row.id, end }.into(),
        };
        self.log_as(&row.actor, event).await.map(|_| ())
    }

    /// Adds to the log; the new entry's `seq`.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn log(&mut self, event: impl Into<LogEvent>) -> Result<u64, StoreError> {
        let actor = self.actor.clone();
        self.log_as(&actor, event).await
    }

    /// Adds to the log in someone else's name.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn log_as(&mut self, actor: &str, event: impl Into<LogEvent>) -> Result<u64, StoreError> {
        let event = event.into();
        self.row.last_seq += 1;
        let row = EventRow {
            session_id: self.row.id,
            seq: self.row.last_seq,
            kind: event.kind().to_owned(),
            at: self.now,
            actor: actor.to_owned(),
            generation: self.row.machine.generation,
            data: event.data()?,
        };
        events::insert(self.tx, &row).await?;
        Ok(self.row.last_seq)
    }

    /// A part of another session's conversation, as this one shares it from the place `seq` on.
    pub fn segment(&self, seq: u64, segment: Segment) -> SegmentRow {
        let generation = self.row.machine.generation;
        SegmentRow { session_id: self.row.id, seq, segment, generation, actor: self.actor.clone(), at: self.now }
    }

    /// Has these layers looked at after the commit: their directories are removed if nothing needs them.
    pub fn wasted(&mut self, layers: impl IntoIterator<Item = LayerId>) {
        self.tx.wasted(layers);
    }

    /// Has it made known after the commit that these layers are of no checkpoint of the session any more.
    pub fn given_up(&mut self, layers: Vec<LayerId>) {
        self.tx.given_up(self.row.id, layers);
    }

    /// See [`layers::release`].
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn release(&mut self, layer: Option<LayerId>) -> Result<Vec<LayerId>, StoreError> {
        layers::release(self.tx, layer).await
    }

    /// Stores the session and has it made known after the commit.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn save(mut self) -> Result<SessionRow, StoreError> {
        self.row.updated_at = self.now;
        sessions::update(self.tx, &mut self.row).await?;
        self.tx.changed(self.row.id);
        Ok(self.row)
    }

    /// Stores what only the log and the reports of the host have changed; after the commit, readers are told, and no loop.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn save_log(mut self) -> Result<SessionRow, StoreError> {
        self.row.updated_at = self.now;
        sessions::update_log(self.tx, &mut self.row).await?;
        self.tx.logged(self.row.id);
        Ok(self.row)
    }

    /// Stores what people configure of the session, which [`Change::save`] leaves as it is.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn configure(&mut self) -> Result<(), StoreError> {
        sessions::configure(self.tx, &mut self.row).await
    }

    /// As [`Change::save`], where something is to follow in the same transaction.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn save_first(mut self) -> Result<&'t mut Tx, StoreError> {
        self.row.updated_at = self.now;
        sessions::update(self.tx, &mut self.row).await?;
        self.tx.changed(self.row.id);
        Ok(self.tx)
    }

    /// Brings a user message to its end, and with it the turn that was going on.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn finish_message(
        &mut self,
        message: &mut MessageRow,
        (status, error): (Outcome, Option<MessageError>),
        turn: Option<TurnId>,
        result: Option<TurnResult>,
    ) -> Result<(), StoreError> {
        self.end_calls(message).await?;
        message.status = status.into();
        message.error = error.clone();
        message.finished_at = Some(self.now);
        self.row.messages_ended += 1;
        let error = error.map(Into::into);
        let event = MessageFinished { message_id: message.id, turn_id: turn, status, error, result };
        message.finished_seq = Some(self.log(event).await?);
        messages::update(self.tx, message).await
    }

    /// Tells the end of tool calls that were begun for a message and that nobody has seen end.
    async fn end_calls(&mut self, message: &MessageRow) -> Result<(), StoreError> {
        let (session, since) = (self.row.id, message.seq);
        if message.started_seq.is_none() {
            return Ok(());
        }
        let mut events = events::data_of_kind(self.tx, session, ToolCalled::KIND, since).await?;
        if events.is_empty() {
            return Ok(());
        }
        events.extend(events::data_of_kind(self.tx, session, ToolFinished::KIND, since).await?);
        let mut open: BTreeMap<Uuid, TurnId> = BTreeMap::new();
        for data in events {
            if let Some(LogEvent::ToolCalled(called)) = LogEvent::read(ToolCalled::KIND, &data)
                && called.message_id == message.id
            {
                open.insert(called.call_id, called.turn_id);
            } else if let Some(LogEvent::ToolFinished(finished)) = LogEvent::read(ToolFinished::KIND, &data) {
                open.remove(&finished.call_id);
            }
        }
        for (call_id, turn_id) in open {
            let (message_id, output) = (message.id, LOST_RESULT.to_owned());
            let (is_error, duration_seconds) = (true, None);
            self.log(ToolFinished { call_id, message_id, turn_id, output, is_error, duration_seconds }).await?;
        }
        Ok(())
    }

    /// Brings a turn and its message to their end before the host has reported one. Where the record of the message is damaged or gone,
    /// the turn has its end in the log all the same.
    async fn end_turn(&mut self, running: Running, status: Outcome, error: MessageError) -> Result<(), StoreError> {
        match self.message(running.message).await? {
            Some(mut message) => {
                self.finish_message(&mut message, (status, Some(error)), Some(running.turn), None).await
            }
            None => self.tell_end(running, status, error).await,
        }
    }

    /// Tells the end of a turn whose message cannot be changed.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn tell_end(
        &mut self,
        Running { turn, message, .. }: Running,
        status: Outcome,
        error: MessageError,
    ) -> Result<(), StoreError> {
        let error = Some(error.into());
        let event = MessageFinished { message_id: message, turn_id: Some(turn), status, error, result: None };
        self.log(event).await.map(|_| ())
    }

    /// A turn has ended, and its message waits again; one that was to be cancelled has ended instead.
    async fn requeue(&mut self, running: Running, is_lost: bool) -> Result<(), Failure> {
        let Running { turn, message: id, .. } = running;
        let Some(mut message) = self.message(id).await? else {
            // It cannot be begun again.
            self.tell_end(running, Outcome::Failed, message_damaged()).await?;
            return self.withdraw();
        };
        if message.cancel_wanted {
            // It would have ended; it is not begun again.
            let end = (Outcome::Cancelled, Some(cancelled()));
            self.finish_message(&mut message, end, Some(turn), None).await?;
            return self.withdraw();
        }
        message.losses += u32::from(is_lost);
        message.status = Status::Queued;
        let attempts = message.attempts;
        messages::update(self.tx(), &message).await?;
        self.log(MessageRequeued { message_id: id, turn_id: Some(turn), attempts }).await?;
        Ok(())
    }

    /// A message that was to wait again does not.
    fn withdraw(&mut self) -> Result<(), Failure> {
        let (next, _) = session::step(&self.row.machine, &Event::MessageWithdrawn, self.now)?;
        self.row.machine = next;
        Ok(())
    }

    async fn carry_out(&mut self, before: &session::Session, effect: Effect) -> Result<(), Failure> {
        match effect {
            Effect::StateChanged { from, to, reason } => {
                self.log(SessionStateChanged { from, to, reason }).await?;
            }
            Effect::Noted(note) => self.note(note).await?,
            Effect::Failed(fault) => {
                let restarts_at = self.row.machine.due_at.map(|at| at.to_timestamp());
                self.log(SessionFailed { code: fault.code, message: fault.message, restarts_at }).await?;
            }
            Effect::Requeue { running, is_lost } => self.requeue(running, is_lost).await?,
            Effect::GiveUp(running) => {
                let message = self.message(running.message).await?;
                let (status, error) = match message.is_some_and(|message| message.cancel_wanted) {
                    true => (Outcome::Cancelled, cancelled()),
                    false => (Outcome::Failed, self.gave_up(running)),
                };
                self.end_turn(running, status, error).await?;
            }
            Effect::FailRunning(running) => self.end_turn(running, Outcome::Failed, over_quota()).await?,
            Effect::CancelRunning(running) => self.end_turn(running, Outcome::Cancelled, session_ended()).await?,
            Effect::CancelQueued => {
                let session = self.row.id;
                for mut message in messages::queued(self.tx(), session, before.queued).await? {
                    let end = (Outcome::Cancelled, Some(session_ended()));
                    self.finish_message(&mut message, end, None, None).await?;
                }
            }
            Effect::TellCancel(running) => {
                let Some(mut message) = self.message(running.message).await? else { return Ok(()) };
                if message.status == Status::Processing {
                    message.cancel_wanted = true;
                    messages::update(self.tx(), &message).await?;
                }
            }
        }
        Ok(())
    }

    async fn note(&mut self, note: Note) -> Result<(), StoreError> {
        let event: LogEvent = match note {
            Note::Paused => SessionPaused {}.into(),
            Note::Resumed => SessionResumed {}.into(),
            Note::Terminated(reason) => SessionTerminated { reason }.into(),
            Note::Deleted => SessionDeleted {}.into(),
            Note::Restored => SessionRestored {}.into(),
            Note::Restarted => SessionRestarted {}.into(),
            Note::StartWaits => SessionStartWaiting {}.into(),
        };
        self.log(event).await.map(|_| ())
    }

    /// A message that the machine speaks of. None where its record is damaged or gone: the session goes on without it.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn message(&mut self, id: MessageId) -> Result<Option<MessageRow>, StoreError> {
        let session = self.row.id;
        let found = match messages::find(self.tx(), session, id).await {
            Err(StoreError::Damaged(_)) => None,
            found => found?,
        };
        if found.is_none() {
            tracing::error!(%session, message = %id, "the record of a message is damaged or gone; its session goes on without it");
        }
        Ok(found)
    }

    fn gave_up(&self, running: Running) -> MessageError {
        let fault = self.row.machine.error.as_ref();
        let code = match fault.map(|fault| fault.code) {
            Some(session::FaultCode::OutOfMemory) => "out_of_memory",
            _ => "host_died",
        };
        let why = fault.map_or("the container was lost", |fault| fault.message.as_str());
        MessageError {
            code: code.into(),
            message: format!("the container died {} times while working on it; the last time: {why}", running.attempt),
        }
    }
}

/// The end of a command or a terminal that was not seen, and why.
pub fn unseen(why: StreamError) -> StreamEnd {
    StreamEnd { exit_code: None, duration_seconds: None, signal: None, error: Some(why) }
}

fn over_quota() -> MessageError {
    MessageError {
        code: "disk_quota_exceeded".into(),
        message: "the session took more of the disk than its resources.disk allows, and what ran in it was ended"
            .into(),
    }
}

/// Someone asked for it.
pub fn cancelled() -> MessageError {
    MessageError { code: "cancelled".into(), message: "it was cancelled".into() }
}

/// Why a turn ended whose message's record is damaged.
pub fn message_damaged() -> MessageError {
    let message = "the record of the message is damaged; what the agent wrote is in the session's events".into();
    MessageError { code: "record_damaged".into(), message }
}

fn session_ended() -> MessageError {
    MessageError { code: "session_ended".into(), message: "the session was terminated or deleted".into() }
}
