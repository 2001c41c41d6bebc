//! Follows one message until it ends, and shows its output.

use futures::StreamExt as _;
use raworc_api::client::{Client, ClientError};
use raworc_api::event::Event;
use raworc_api::message::{MessageWithReply, Status, WaitQuery};
use raworc_api::session::Session;
use raworc_core::ids::{MessageId, SessionId};
use raworc_core::session::State;
use tokio::time::{Duration, Instant, sleep_until};

use crate::context::Context;
use crate::event_text::{text_of, tool_call};
use crate::failure::{
    EXIT_CANCELLED, EXIT_FAILED, EXIT_NOT_EXECUTABLE, EXIT_SIGNALLED, EXIT_TIMED_OUT, Failure, Result,
};
use crate::output::{Style, Ui};
use crate::progress::Progress;
use crate::signals::Signals;
use crate::text::{bytes, clean_lines, span};

/// How long to wait until a cancelled message has ended.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);

/// The message to follow.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    /// Its session.
    pub session: SessionId,
    /// Its id; `None` for the first that is queued.
    pub message: Option<MessageId>,
    /// Events up to this number are ignored.
    pub after: u64,
    /// When to stop waiting.
    pub deadline: Option<Instant>,
}

/// Why following stopped.
#[derive(Debug)]
pub enum Ended {
    /// The message has ended.
    Message(Box<MessageWithReply>),
    /// The deadline has passed.
    Late,
    /// A signal was received; the exit status for it. A running message was cancelled.
    Interrupted(u8),
}

/// The message of an event.
pub fn message_of(event: &Event) -> Option<MessageId> {
    text_of(event, "message_id").parse().ok()
}

/// Follows the message to its end and shows its output (as JSON, only the result at the end).
pub async fn watch(context: &Context, client: &Client, watched: Watched, signals: &mut Signals) -> Result<Ended> {
    let id = watched.session.to_string();
    let mut events = client.follow(&id, watched.after);
    let mut screen = Screen::new(context.ui);
    let mut message = watched.message;
    let (mut is_running, mut interrupted, mut deadline) = (false, None, watched.deadline);
    loop {
        let event = tokio::select! {
            biased;
            status = signals.next() => {
                screen.pause();
                if interrupted.is_none() && !is_running && watched.message.is_some() {
                    context.ui.note("the message stays in the queue");
                }
                if interrupted.is_some() || !is_running {
                    return Ok(Ended::Interrupted(status));
                }
                interrupted = Some(status);
                deadline = Some(Instant::now() + CANCEL_TIMEOUT);
                cancel(context, client, &id).await?;
                continue;
            }
            () = until(deadline) => {
                screen.pause();
                return Ok(interrupted.map_or(Ended::Late, Ended::Interrupted));
            }
            event = events.next() => event,
        };
        let Some(event) = event.transpose()? else {
            return Err(Failure::from(ClientError::Protocol("the log of the session ended".into())));
        };
        if event.kind == "message.queued" && text_of(&event, "role") == "user" {
            message = message.or_else(|| message_of(&event));
        }
        if event.kind.starts_with("session.") {
            screen.session(&event);
            give_up_if_stuck(client, &id, &event).await?;
        }
        let Some(ours) = message.filter(|ours| message_of(&event) == Some(*ours)) else { continue };
        match event.kind.as_str() {
            "message.started" => is_running = true,
            "message.requeued" => is_running = false,
            _ => {}
        }
        screen.message(&event)?;
        if event.kind == "message.finished" {
            screen.pause();
            let ended = client.get_message(&id, ours, WaitQuery::default()).await?;
            return Ok(interrupted.map_or_else(|| Ended::Message(Box::new(ended)), Ended::Interrupted));
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn cancel(context: &Context, client: &Client, session: &str) -> Result<()> {
    context.ui.note("cancelling; Ctrl-C again to leave at once");
    match client.cancel_session(session).await {
        // A rejection means that nothing runs any more, as the log will show.
        Ok(_) | Err(ClientError::Problem(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Fails if the session needs a person before its messages can run.
async fn give_up_if_stuck(client: &Client, session: &str, event: &Event) -> Result<()> {
    if event.kind != "session.failed" {
        return Ok(());
    }
    match stuck(&client.get_session(session).await?) {
        Some(why) => Err(why),
        None => Ok(()),
    }
}

/// Why the session needs a person, if it does.
pub fn stuck(session: &Session) -> Option<Failure> {
    let error = session.error.as_ref().filter(|error| session.state == State::Error && error.restarts_at.is_none())?;
    let name = clean_lines(&session.name);
    let message = format!("session {name} is in ERROR: {} ({})", error.message, error.code.as_str());
    let help = format!("Try `raworc session restart {name}`; `raworc doctor` checks this machine.");
    Some(Failure::failed(message).help(help))
}

/// The exit status for the end of a message.
pub fn exit_status(ended: &MessageWithReply) -> u8 {
    let usage = ended.reply.as_ref().and_then(|reply| reply.usage.as_ref());
    let code = match (ended.message.status, ended.message.error.as_ref().map(|error| error.code.as_str())) {
        (Status::Done, _) => return 0,
        (Status::Cancelled, _) => return EXIT_CANCELLED,
        (_, Some("timeout")) => return EXIT_TIMED_OUT,
        (_, Some("not_started")) => return EXIT_NOT_EXECUTABLE,
        _ => usage.and_then(|usage| usage.exit_code.or(usage.signal.map(|signal| EXIT_SIGNALLED + signal))),
    };
    code.and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0).unwrap_or(EXIT_FAILED)
}

/// A note that output was omitted.
pub fn left_out(dropped: u64, file: Option<&str>) -> String {
    let file = file.map(|file| format!("; see {} in the workspace", clean_lines(file))).unwrap_or_default();
    format!("{} of output were left out{file}", bytes(dropped))
}

/// Shows how a message ended, and returns the command's result.
pub fn conclude(ui: Ui, ended: &MessageWithReply) -> Result<()> {
    if ui.is_json() {
        ui.json(ended)?;
    } else {
        show_outcome(ui, ended);
    }
    match exit_status(ended) {
        0 => Ok(()),
        status => Err(Failure::Status(status)),
    }
}

fn show_outcome(ui: Ui, ended: &MessageWithReply) {
    let usage = ended.reply.as_ref().and_then(|reply| reply.usage.as_ref());
    if let Some(dropped) = usage.map(|usage| usage.output_bytes_dropped).filter(|dropped| *dropped > 0) {
        ui.note(&left_out(dropped, usage.and_then(|usage| usage.output_file.as_deref())));
    }
    let took = usage.map(|usage| format!(" after {}", span(usage.duration_seconds))).unwrap_or_default();
    let why = ended.message.error.as_ref().map(|error| clean_lines(&error.message)).unwrap_or_default();
    match ended.message.status {
        Status::Done if ui.shows_progress() => ui.note(&format!("done{took}")),
        Status::Done | Status::Queued | Status::Processing => {}
        Status::Failed => ui.error(format!("{}\n", ui.paint_error(Style::Bad, &format!("failed{took}: {why}")))),
        Status::Cancelled => {
            ui.error(format!("{}\n", ui.paint_error(Style::Warning, &format!("cancelled{took}: {why}"))))
        }
    }
}

/// The display of a running message.
struct Screen {
    ui: Ui,
    progress: Option<Progress>,
    is_at_line_start: bool,
    /// A model writes: what it says are lines of their own, whether it ends them or not.
    is_prose: bool,
}

impl Screen {
    fn new(ui: Ui) -> Self {
        Self {
            ui,
            progress: Some(Progress::start(&ui, "waiting for the session")),
            is_at_line_start: true,
            is_prose: false,
        }
    }

    /// Removes the spinner before something else is printed.
    fn pause(&mut self) {
        self.progress = None;
        if !self.is_at_line_start && self.ui.shows_progress() {
            self.ui.error("\n");
        }
        self.is_at_line_start = true;
    }

    fn session(&mut self, event: &Event) {
        let note = match event.kind.as_str() {
            "session.failed" => {
                let (code, message) = (text_of(event, "code"), text_of(event, "message"));
                format!("the session failed: {message} ({code})")
            }
            "session.paused" => "the session is paused: its messages wait until it is resumed".to_owned(),
            "session.state_changed" => {
                if let Some(progress) = &self.progress {
                    progress.set_text(&format!("the session is {}", text_of(event, "to")));
                }
                return;
            }
            _ => return,
        };
        self.pause();
        self.ui.note(&clean_lines(&note));
    }

    fn message(&mut self, event: &Event) -> Result<()> {
        match event.kind.as_str() {
            "message.started" => {
                self.is_prose = text_of(event, "runtime") == "model";
                if let Some(progress) = &self.progress {
                    progress.set_text("working");
                }
            }
            "message.requeued" => {
                self.pause();
                self.ui.note("the container was lost while it worked; the message is tried again");
            }
            "message.delta" => self.output(text_of(event, "stream"), text_of(event, "text"))?,
            "tool.called" => self.tool(event)?,
            "message.finished" => self.end_line()?,
            "agent.step_discarded" => {
                self.end_line()?;
                self.pause();
                self.ui.note("the model's answer was cut off; it is asked again");
            }
            _ => {}
        }
        Ok(())
    }

    /// Shows a tool call. What a model says before and after it are lines of their own.
    fn tool(&mut self, event: &Event) -> Result<()> {
        self.end_line()?;
        self.progress = None;
        if self.ui.shows_progress() {
            self.ui.note(&tool_call(event));
        }
        Ok(())
    }

    /// Ends the line that a model has begun.
    fn end_line(&mut self) -> Result<()> {
        if self.is_prose && !self.is_at_line_start && !self.ui.is_json() {
            self.is_at_line_start = true;
            self.ui.out("\n")?;
        }
        Ok(())
    }

    fn output(&mut self, stream: &str, text: &str) -> Result<()> {
        if self.ui.is_json() || text.is_empty() {
            return Ok(());
        }
        self.progress = None;
        self.is_at_line_start = text.ends_with('\n');
        if stream == "stderr" {
            self.ui.error(text);
            return Ok(());
        }
        self.ui.out(text)
    }
}

#[cfg(test)]
#[path = "follow_message_tests.rs"]
mod tests;
