//! Carries one turn on, from where its log ends.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, BodyStream, Limited};
use raworc_api::message::{MessageError, MessageUsage};
use raworc_core::conversation::standing;
use raworc_core::events::{AgentStepDiscarded, LogEvent, MessageDelta, Outcome, ToolCalled};
use raworc_core::limits::PAGE_BYTES_MAX;
use raworc_core::link::{OutputStream, TURN_KEY_PREFIX};
use raworc_core::turn::{Next, Progress, STEPS_DEFAULT, ToolUse};
use raworc_gateway::dialect::Observed;
use raworc_store::agents::AgentRow;
use raworc_store::messages::{self, MessageRow};
use raworc_store::sessions::{self, SessionRow};
use raworc_store::{Read, StoreError, events};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant as TokioInstant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::answer::AnswerReader;
use super::context::{Context, HISTORY_BYTES_MAX};
use super::drivers::Turn;
use super::tools::{self, Bench, ToolResult};
use crate::app::Shared;
use crate::change::cancelled;
use crate::error::Failure;
use crate::record::turn_end::{self, TurnEnd};
use crate::record::{take_message, turns};

/// How often a step is asked for that is cut off each time.
const ASK_ATTEMPTS_MAX: u32 = 3;
/// The pause before it is asked for again; longer each time.
const ASK_PAUSE: Duration = Duration::from_millis(500);
/// What the model writes is committed after so long, or so many bytes.
const COMMIT_INTERVAL: Duration = Duration::from_millis(50);
const COMMIT_BYTES: usize = 4 * 1024;
/// Longest text of one answer, in bytes. A model that goes on is not listened to any more.
const TEXT_BYTES_MAX: usize = 256 * 1024;
/// The pause before a turn is looked at again that could not be.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// Bytes of a provider's error that are read.
const ERROR_BYTES_MAX: usize = 64 * 1024;
/// Events that are read of a log at a time.
const EVENTS_BATCH: u32 = 500;

/// Why a turn is not carried on any more.
enum Stop {
    /// The turn is over, or the server stops: whoever reads its log next goes on, if anyone has to.
    Left,
    /// It ends like this.
    Ended(Outcome, Option<MessageError>),
}

/// What came of one step.
enum Step {
    /// The model asked for tools.
    Called,
    /// The model has answered.
    Answered { events: Vec<LogEvent>, text: String },
    /// It goes no further.
    Stopped(Stop),
}

struct Driver<'a> {
    app: &'a Shared,
    turn: Turn,
    session: SessionRow,
    context: Context,
    progress: Progress,
    began: Instant,
    deadline: Option<TokioInstant>,
}

/// What there is of a turn.
enum Loaded<'a> {
    /// It is over.
    Over,
    /// It cannot be carried on; why not, for people.
    Impossible(String),
    /// It goes on.
    Ready(Box<Driver<'a>>),
}

/// Carries a turn on until it is over, or the server stops.
///
/// # Errors
/// Where the store fails. It is to be tried again then.
pub async fn drive(app: &Shared, turn: Turn) -> Result<(), Failure> {
    let mut changes = app.hub.subscribe(turn.container.session);
    let mut driver = match Driver::load(app, turn).await? {
        Loaded::Over => return Ok(()),
        Loaded::Ready(driver) => driver,
        Loaded::Impossible(why) => {
            let error = MessageError { code: "not_started".to_owned(), message: why };
            let end = (Outcome::Failed, Some(error));
            return finish(app, turn, Duration::ZERO, (Vec::new(), end, String::new())).await;
        }
    };
    match driver.carry_on(&mut changes).await? {
        Stop::Left => Ok(()),
        Stop::Ended(outcome, error) => {
            // A tool that changes the workspace does so to its end, also where nobody waits for it.
            drop(app.session_locks.lock(turn.container.session).await);
            let said = driver.progress.unfinished_text().to_owned();
            driver.finish(Vec::new(), (outcome, error), said).await
        }
    }
}

impl<'a> Driver<'a> {
    /// Reads everything that there is of a turn.
    async fn load(app: &'a Shared, turn: Turn) -> Result<Loaded<'a>, Failure> {
        let mut connection = app.store.read().await?;
        let session = sessions::find(&mut connection, turn.container.session).await?;
        let Some(session) = session.filter(|session| turn.is_current(&session.machine)) else {
            return Ok(Loaded::Over);
        };
        let Some(message) = messages::find(&mut connection, session.id, turn.running.message).await? else {
            return Ok(Loaded::Impossible("the record of the message is gone".to_owned()));
        };
        let Some(started) = take_message::beginning(&mut connection, &message).await? else {
            return Ok(Loaded::Impossible("the log does not have the beginning of the turn".to_owned()));
        };
        let Some(agent) = take_message::agent_of(&mut connection, &started).await? else {
            let why = "the agent is no longer registered; send the message again, to another one".to_owned();
            return Ok(Loaded::Impossible(why));
        };
        let log = read_log(&mut connection, &message).await?;
        let is_beginning = |event: &LogEvent| matches!(event, LogEvent::MessageStarted(started) if started.turn_id == Some(turn.running.turn));
        let began_at = log.iter().find_map(|(at, event)| is_beginning(event).then_some(*at)).unwrap_or(app.now());
        let ranges = standing(message.seq.saturating_sub(1), &session.rewinds);
        let (history, left_out) =
            messages::newest_ended_in(&mut connection, session.id, &ranges, HISTORY_BYTES_MAX).await?;
        drop(connection);
        let passed = app.now().since(began_at);
        let limit = agent.definition.config.timeout_seconds.map(Duration::from_secs);
        let deadline = limit.map(|limit| TokioInstant::now() + limit.saturating_sub(passed));
        let progress = Progress::read(log.into_iter().map(|(_, event)| event));
        let model = agent.definition.model.clone().unwrap_or_default();
        let context = Context { agent, model, history, left_out, message };
        let began = Instant::now().checked_sub(passed).unwrap_or_else(Instant::now);
        Ok(Loaded::Ready(Box::new(Self { app, turn, session, context, progress, began, deadline })))
    }

    async fn carry_on(&mut self, changes: &mut watch::Receiver<()>) -> Result<Stop, Failure> {
        let (app, turn, deadline) = (self.app, self.turn, self.deadline);
        let mut stopped = Box::pin(stopped(app, turn, deadline, changes));
        let steps_max = self.agent().definition.config.max_steps.unwrap_or(STEPS_DEFAULT);
        loop {
            let step = match self.progress.next(steps_max) {
                Next::Lost(call) => self.end_call(&call, ToolResult::lost(), None).await?,
                Next::Use(call) => {
                    let cancelled = CancellationToken::new();
                    let mut using = Box::pin(self.use_tool(&call, &cancelled));
                    tokio::select! {
                        biased;
                        stop = &mut stopped => {
                            let stop = stop?;
                            if matches!(stop, Stop::Ended(..)) {
                                // What runs is ended, and has written all that it will, before the turn ends.
                                cancelled.cancel();
                                using.await?;
                            }
                            return Ok(stop);
                        }
                        step = &mut using => step?,
                    }
                }
                Next::Ask { step } => tokio::select! {
                    biased;
                    stop = &mut stopped => return stop,
                    step = self.ask(step) => step?,
                },
                Next::GiveUp => {
                    let message = format!(
                        "the model took {steps_max} steps without coming to an end; the agent's max_steps bounds them"
                    );
                    return Ok(failed("step_limit", message));
                }
            };
            match step {
                Step::Called => {}
                Step::Answered { events, text } => {
                    self.finish(events, (Outcome::Done, None), text).await?;
                    return Ok(Stop::Left);
                }
                Step::Stopped(stop) => return Ok(stop),
            }
        }
    }

    fn agent(&self) -> &AgentRow {
        &self.context.agent
    }

    /// Adds to the log, and goes on from there; false where the turn is over.
    async fn log(&mut self, events: Vec<LogEvent>) -> Result<bool, Failure> {
        let added = events.clone();
        let is_current = turns::log(self.app, self.turn.container, self.turn.running, events).await?;
        if is_current {
            added.into_iter().for_each(|event| self.progress.apply(event));
        }
        Ok(is_current)
    }

    // --- tools ------------------------------------------------------------------------------------------------------

    async fn use_tool(&mut self, call: &ToolUse, cancelled: &CancellationToken) -> Result<Step, Failure> {
        let began = Instant::now();
        let definition = &self.context.agent.definition;
        let bench = Bench {
            app: self.app,
            turn: self.turn,
            session: &self.session,
            wanted: definition.tools.as_deref(),
            cancelled,
            env: &definition.config.env,
        };
        let result = tools::run(&bench, call).await?;
        self.end_call(call, result, Some(began)).await
    }

    async fn end_call(&mut self, call: &ToolUse, result: ToolResult, began: Option<Instant>) -> Result<Step, Failure> {
        let event = result.event(&self.turn, call, began);
        let is_current = self.log(vec![event.into()]).await?;
        Ok(if is_current { Step::Called } else { Step::Stopped(Stop::Left) })
    }

    // --- the model --------------------------------------------------------------------------------------------------

    async fn ask(&mut self, step: u32) -> Result<Step, Failure> {
        for attempt in 1.. {
            if self.progress.has_unfinished_text() {
                let reason = "the model's answer was cut off".to_owned();
                let (message_id, turn_id) = (self.turn.running.message, self.turn.running.turn);
                if !self.log(vec![AgentStepDiscarded { message_id, turn_id, step, reason }.into()]).await? {
                    break;
                }
            }
            match self.ask_once(step).await? {
                Ok(step) => return Ok(step),
                Err(_) if attempt < ASK_ATTEMPTS_MAX => {
                    if !self.app.sleep(ASK_PAUSE * attempt).await {
                        break;
                    }
                }
                Err(why) => return Ok(Step::Stopped(failed("model_failed", why))),
            }
        }
        Ok(Step::Stopped(Stop::Left))
    }

    /// Asks the model once. Returns why, where its answer was cut off.
    async fn ask_once(&mut self, step: u32) -> Result<Result<Step, String>, Failure> {
        let body = Bytes::from(self.context.request(&self.progress).to_string());
        let key = format!("{TURN_KEY_PREFIX}{}", self.turn.running.turn);
        let response = self.app.gateway.call(self.turn.container, &key, body).await;
        let status = response.status();
        if !status.is_success() {
            let body = Limited::new(response.into_body(), ERROR_BYTES_MAX).collect().await;
            let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            let why = error_message(&body).unwrap_or_else(|| format!("the answer has status {status}"));
            // These may be the gateway's own, which has no room for another call at the moment.
            let is_passing = matches!(status.as_u16(), 429 | 503);
            return Ok(if is_passing { Err(why) } else { Ok(Step::Stopped(failed("model_failed", why))) });
        }
        let mut chunks = BodyStream::new(response.into_body());
        let mut reader = AnswerReader::new();
        let (mut text, mut pending, mut committed_at) = (String::new(), String::new(), Instant::now());
        while let Some(frame) = chunks.next().await {
            let Ok(Ok(data)) = frame.map(http_body::Frame::into_data) else { continue };
            let written = reader.push(&data);
            text.push_str(&written);
            if text.len() > TEXT_BYTES_MAX {
                self.log(self.deltas(&mut pending)).await?;
                let why = format!("its answer has more than {TEXT_BYTES_MAX} bytes of text");
                return Ok(Ok(Step::Stopped(failed("model_failed", why))));
            }
            pending.push_str(&written);
            if pending.len() >= COMMIT_BYTES || (!pending.is_empty() && committed_at.elapsed() >= COMMIT_INTERVAL) {
                if !self.log(self.deltas(&mut pending)).await? {
                    return Ok(Ok(Step::Stopped(Stop::Left)));
                }
                committed_at = Instant::now();
            }
        }
        let observed = reader.finish();
        if !observed.is_complete || observed.error.is_some() {
            self.log(self.deltas(&mut pending)).await?;
            return Ok(Err(observed.error.unwrap_or_else(|| "its answer was cut off".to_owned())));
        }
        self.end_step(step, observed, (text, pending)).await.map(Ok)
    }

    /// A step whose answer is complete: text alone ends the turn, and calls of tools are recorded together with the rest of the text.
    async fn end_step(
        &mut self,
        step: u32,
        observed: Observed,
        (text, mut pending): (String, String),
    ) -> Result<Step, Failure> {
        let mut events = self.deltas(&mut pending);
        if let Some(why) = incomplete(&observed) {
            self.log(events).await?;
            return Ok(Step::Stopped(failed("model_failed", why.to_owned())));
        }
        if observed.tool_calls.is_empty() {
            return Ok(match text.trim().is_empty() {
                true => Step::Stopped(failed("model_failed", "the model has answered nothing".to_owned())),
                false => Step::Answered { events, text },
            });
        }
        let agent = self.agent().definition.name.clone();
        events.extend(observed.tool_calls.into_iter().map(|call| {
            let input = match serde_json::from_str::<Value>(&call.arguments) {
                Ok(input @ Value::Object(_)) => input,
                Ok(_) | Err(_) if call.arguments.trim().is_empty() => Value::Object(serde_json::Map::new()),
                Ok(_) | Err(_) => Value::String(call.arguments),
            };
            let (message_id, turn_id) = (self.turn.running.message, self.turn.running.turn);
            let (call_id, agent, tool) = (Uuid::now_v7(), agent.clone(), call.name);
            ToolCalled { call_id, message_id, turn_id, agent, step, tool, input }.into()
        }));
        Ok(if self.log(events).await? { Step::Called } else { Step::Stopped(Stop::Left) })
    }

    /// What the model has written and nobody has recorded yet.
    fn deltas(&self, pending: &mut String) -> Vec<LogEvent> {
        if pending.is_empty() {
            return Vec::new();
        }
        let (message_id, turn_id) = (self.turn.running.message, Some(self.turn.running.turn));
        vec![MessageDelta { message_id, turn_id, stream: OutputStream::Stdout, text: std::mem::take(pending) }.into()]
    }

    // --- the end ----------------------------------------------------------------------------------------------------

    async fn finish(
        &self,
        events: Vec<LogEvent>,
        outcome: (Outcome, Option<MessageError>),
        content: String,
    ) -> Result<(), Failure> {
        finish(self.app, self.turn, self.began.elapsed(), (events, outcome, content)).await
    }
}

/// Ends a turn after `events`, with `content` as the agent's answer.
async fn finish(
    app: &Shared,
    turn: Turn,
    took: Duration,
    (events, outcome, content): (Vec<LogEvent>, (Outcome, Option<MessageError>), String),
) -> Result<(), Failure> {
    let usage = MessageUsage { duration_seconds: took.as_secs_f64(), ..MessageUsage::default() };
    let duration_micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let end = TurnEnd { outcome, duration_micros, usage, content: Some(content) };
    let finished = |has_changed| turns::finish(app, turn.container, turn.running, (events, end, has_changed));
    turn_end::then_save(app, turn.container.session, finished).await
}

/// Why an answer that has come to its end is not all that the model wanted to say.
fn incomplete(observed: &Observed) -> Option<&'static str> {
    match observed.stop.as_deref() {
        Some("length") => Some(
            "its answer was cut at the most tokens that it may write: the agent's max_output_tokens, or the model's own limit",
        ),
        Some("content_filter") => Some("the provider's filter stopped its answer"),
        _ => None,
    }
}

/// Waits until a turn is not to be carried on any more.
async fn stopped(
    app: &Shared,
    turn: Turn,
    deadline: Option<TokioInstant>,
    changes: &mut watch::Receiver<()>,
) -> Result<Stop, Failure> {
    let late = async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(late);
    loop {
        match look(app, turn).await {
            Ok(None) => {}
            Ok(Some(stop)) => return Ok(stop),
            // A tool is not ended because its turn could not be looked at.
            Err(error) => {
                tracing::warn!(%error, container = %turn.container, "a turn could not be looked at");
                if !app.sleep(LOOK_PAUSE).await {
                    return Ok(Stop::Left);
                }
                continue;
            }
        }
        tokio::select! {
            biased;
            () = app.stopping.cancelled() => return Ok(Stop::Left),
            () = &mut late => return Ok(failed("timeout", "it took longer than the agent's timeout_seconds".to_owned())),
            changed = changes.changed() => if changed.is_err() { return Ok(Stop::Left) },
        }
    }
}

/// Why a turn is not to be carried on, as its records are now.
async fn look(app: &Shared, turn: Turn) -> Result<Option<Stop>, Failure> {
    let mut connection = app.store.read().await?;
    let session = sessions::find(&mut connection, turn.container.session).await?;
    if !session.is_some_and(|session| turn.is_current(&session.machine)) {
        return Ok(Some(Stop::Left));
    }
    let message = messages::find(&mut connection, turn.container.session, turn.running.message).await?;
    let is_cancelled = message.is_none_or(|message| message.cancel_wanted);
    Ok(is_cancelled.then(|| Stop::Ended(Outcome::Cancelled, Some(cancelled()))))
}

fn failed(code: &str, message: String) -> Stop {
    Stop::Ended(Outcome::Failed, Some(MessageError { code: code.to_owned(), message }))
}

/// What an error body of chat completions says.
fn error_message(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    body["error"]["message"].as_str().map(str::to_owned)
}

/// The events of the work on a message, of all its turns, with their times.
async fn read_log(
    connection: &mut Read,
    message: &MessageRow,
) -> Result<Vec<(raworc_core::time::Time, LogEvent)>, StoreError> {
    let (mut after, mut log) = (message.seq, Vec::new());
    loop {
        let batch = events::batch(connection, message.session_id, after, (EVENTS_BATCH, PAGE_BYTES_MAX)).await?;
        let Some(last) = batch.rows.last() else { return Ok(log) };
        after = last.seq;
        let of_it = batch.rows.iter().filter_map(|row| Some((row.at, LogEvent::read(&row.kind, &row.data)?)));
        log.extend(of_it.filter(|(_, event)| message_of(event) == Some(message.id)));
        if !batch.has_more {
            return Ok(log);
        }
    }
}

fn message_of(event: &LogEvent) -> Option<raworc_core::ids::MessageId> {
    match event {
        LogEvent::MessageStarted(event) => Some(event.message_id),
        LogEvent::MessageDelta(event) => Some(event.message_id),
        LogEvent::AgentStepDiscarded(event) => Some(event.message_id),
        LogEvent::ToolCalled(event) => Some(event.message_id),
        LogEvent::ToolFinished(event) => Some(event.message_id),
        _ => None,
    }
}
