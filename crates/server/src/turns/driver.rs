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
use raworc_store::agents::{self, AgentRow};
use raworc_store::messages::{self, MessageRow};
use raworc_store::sessions::{self, SessionRow};
use raworc_store::{Read, StoreError, events};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant as TokioInstant;
use uuid::Uuid;

use super::answer::AnswerReader;
use super::context::{Context, HISTORY_BYTES_MAX};
use super::drivers::Turn;
use super::tools::{self, Bench, ToolResult};
use crate::app::Shared;
use crate::change::cancelled;
use crate::error::Failure;
use crate::record::turn_end::{self, TurnEnd};
use crate::record::turns;

/// How often a step is asked for that is cut off each time.
const ASK_ATTEMPTS_MAX: u32 = 3;
/// What the model writes is committed after so long, or so many bytes.
const COMMIT_INTERVAL: Duration = Duration::from_millis(50);
const COMMIT_BYTES: usize = 4 * 1024;
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

/// Carries a turn on until it is over, or the server stops.
///
/// # Errors
/// Where the store fails. It is to be tried again then.
pub async fn drive(app: &Shared, turn: Turn) -> Result<(), Failure> {
    let mut changes = app.hub.subscribe(turn.container.session);
    let Some(mut driver) = Driver::load(app, turn).await? else { return Ok(()) };
    let stop = driver.carry_on(&mut changes).await?;
    match stop {
        Stop::Left => Ok(()),
        Stop::Ended(outcome, error) => {
            let ended = driver.progress.open().iter().map(|call| ToolResult::lost().event(&turn, call, None).into());
            driver.finish(ended.collect(), (outcome, error), None).await
        }
    }
}

impl<'a> Driver<'a> {
    /// Reads everything that there is of a turn; none where it is over.
    async fn load(app: &'a Shared, turn: Turn) -> Result<Option<Self>, Failure> {
        let mut connection = app.store.read().await?;
        let Some(session) = sessions::find(&mut connection, turn.container.session).await? else { return Ok(None) };
        let machine = &session.machine;
        if machine.running != Some(turn.running) || machine.generation != turn.container.generation {
            return Ok(None);
        }
        let Some(message) = messages::find(&mut connection, session.id, turn.running.message).await? else {
            return Ok(None);
        };
        let log = read_log(&mut connection, &message).await?;
        let began = log.iter().rev().find_map(|(at, event)| match event {
            LogEvent::MessageStarted(started) if started.turn_id == Some(turn.running.turn) => {
                Some((*at, started.agent.clone()))
            }
            _ => None,
        });
        let Some((began_at, agent)) = began else { return Ok(None) };
        let agent = match agent {
            Some(name) => agents::find(&mut connection, &name).await?,
            None => None,
        };
        let Some(agent) = agent else { return Ok(None) };
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
        Ok(Some(Self { app, turn, session, context, progress, began, deadline }))
    }

    async fn carry_on(&mut self, changes: &mut watch::Receiver<()>) -> Result<Stop, Failure> {
        let (app, turn, deadline) = (self.app, self.turn, self.deadline);
        let mut stopped = Box::pin(stopped(app, turn, deadline, changes));
        let steps_max = self.agent().definition.config.max_steps.unwrap_or(STEPS_DEFAULT);
        loop {
            let step = match self.progress.next(steps_max) {
                Next::Lost(call) => self.end_call(&call, ToolResult::lost(), None).await?,
                Next::Use(call) => tokio::select! {
                    biased;
                    stop = &mut stopped => return stop,
                    step = self.use_tool(&call) => step?,
                },
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
                    self.finish(events, (Outcome::Done, None), Some(text)).await?;
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

    async fn use_tool(&mut self, call: &ToolUse) -> Result<Step, Failure> {
        let began = Instant::now();
        let definition = &self.context.agent.definition;
        let bench = Bench {
            app: self.app,
            turn: self.turn,
            session: &self.session,
            wanted: definition.tools.as_deref(),
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
                Err(_) if attempt < ASK_ATTEMPTS_MAX => {}
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
            // The gateway has tried again where that was worth it.
            return Ok(Ok(Step::Stopped(failed(
                "model_failed",
                told(&body).unwrap_or_else(|| format!("the answer has status {status}")),
            ))));
        }
        let mut chunks = BodyStream::new(response.into_body());
        let mut reader = AnswerReader::new();
        let (mut text, mut pending, mut committed_at) = (String::new(), String::new(), Instant::now());
        while let Some(frame) = chunks.next().await {
            let Ok(Ok(data)) = frame.map(http_body::Frame::into_data) else { continue };
            let written = reader.push(&data);
            text.push_str(&written);
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
        content: Option<String>,
    ) -> Result<(), Failure> {
        let took = self.began.elapsed();
        let usage = MessageUsage { duration_seconds: took.as_secs_f64(), ..MessageUsage::default() };
        let duration_micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let end = TurnEnd { outcome, duration_micros, usage, content };
        let (container, running) = (self.turn.container, self.turn.running);
        let finished = |has_changed| turns::finish(self.app, container, running, (events, end, has_changed));
        turn_end::then_save(self.app, container.session, finished).await
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
        {
            let mut connection = app.store.read().await?;
            let session = sessions::find(&mut connection, turn.container.session).await?;
            if session.is_none_or(|session| session.machine.running != Some(turn.running)) {
                return Ok(Stop::Left);
            }
            let message = messages::find(&mut connection, turn.container.session, turn.running.message).await?;
            if message.is_none_or(|message| message.cancel_wanted) {
                return Ok(Stop::Ended(Outcome::Cancelled, Some(cancelled())));
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

fn failed(code: &str, message: String) -> Stop {
    Stop::Ended(Outcome::Failed, Some(MessageError { code: code.to_owned(), message }))
}

/// What an error body of chat completions says.
fn told(body: &[u8]) -> Option<String> {
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
