//! Run a command in a session, beside its conversation.

use std::collections::BTreeMap;
use std::time::Duration;

use raworc_api::problem::Code;
use raworc_api::workspace::{Exec, ExecCommand, ExecResult};
use raworc_core::events::{StreamEnd, StreamError, StreamStart};
use raworc_core::ids::{ContainerId, SessionId};
use raworc_core::limits::{EXEC_OUTPUT_BYTES_MAX, EXEC_TIMEOUT_MAX, MESSAGE_BYTES_MAX, START_TIMEOUT};
use raworc_core::link::{Ending, OutputStream, Program, Report, WORKSPACE_PATH, Work, WorkId};
use raworc_core::permissions::Actor;
use raworc_core::session::{Container, Event, Refused, State};
use raworc_core::time::Time;
use raworc_store::audit;
use raworc_store::sessions::{self, SessionRow};
use raworc_store::streams::{self, Kind, StreamRow};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::check::Checks;
use super::find::{self, Purpose};
use crate::app::Shared;
use crate::change::{Change, unseen};
use crate::error::Failure;
use crate::link::hosts::ExecRejection;

/// Ends an exec that names no timeout.
const TIMEOUT_SECONDS_DEFAULT: u64 = 60;
/// Beyond its timeout, what a host gets to report the end.
const REPORT_GRACE: Duration = Duration::from_secs(10);
/// Longest list of words, in bytes: what Linux allows one program (`MAX_ARG_STRLEN`).
const WORDS_BYTES_MAX: usize = 128 * 1024 - 1;

/// Longest directory that a command starts in, in bytes; with the workspace before it, Linux takes it (`PATH_MAX`).
const DIRECTORY_BYTES_MAX: usize = 4095 - WORKSPACE_PATH.len() - 1;

/// What a command begins with that is waited for.
const NOT_ATTACHED: StreamStart = StreamStart { attached: None, columns: None, rows: None };

/// Runs a command and answers when it has ended. Wakes a session that rests.
///
/// # Errors
/// 409 where the session's state forbids it, 422 where the body is wrong.
pub async fn exec(app: &Shared, actor: &Actor, id_or_name: String, body: Exec) -> Result<ExecResult, Failure> {
    check(&body)?;
    let id = Uuid::now_v7();
    // Before anything is recorded: the client may go away at any moment.
    let mut guard =
        ExecGuard { app, id, container: None, is_finished: false, end: Some(unseen(StreamError::Abandoned)) };
    let beginning = app.hosts.beginning(id);
    let begun = begin(app, actor, id_or_name, id, shown(&body.command)).await;
    if begun.is_err() {
        guard.end = None;
    }
    let (session, begun) = begun?;
    let row = match begun {
        Some(row) => row,
        None => {
            let up = when_ready(app, session.id, |up| app.hosts.is_connected(up).map(|()| up)).await?;
            let row = stream(up, id, shown(&body.command), actor, app.now());
            crate::record::streams::record(app, row.clone(), NOT_ATTACHED).await?;
            row
        }
    };
    guard.end = Some(unseen(StreamError::NotStarted));
    let timeout = body.timeout_seconds.unwrap_or(TIMEOUT_SECONDS_DEFAULT);
    let work = work(&session, id, body, timeout);
    let container = ContainerId { session: session.id, generation: row.generation };
    guard.container = Some(container);
    let reports = when_ready(app, session.id, |current| match current == container {
        true => app.hosts.run_exec(container, id, work.clone()),
        false => Err(ExecRejection::Replaced),
    })
    .await?;
    drop(beginning);
    guard.end = Some(unseen(StreamError::Abandoned));
    let outcome = tokio::time::timeout(Duration::from_secs(timeout) + REPORT_GRACE, collect(reports)).await;
    let Ok(Some(result)) = outcome else {
        guard.end = Some(unseen(StreamError::Lost));
        let detail = "the session's container ended while the command ran; see the session's events";
        return Err(Failure::new(Code::InvalidState, detail));
    };
    let (exit_code, duration_seconds) = (result.exit_code, Some(result.duration_seconds));
    let seen = StreamEnd { exit_code, duration_seconds, signal: None, error: None };
    (guard.is_finished, guard.end) = (true, Some(seen.clone()));
    end(app, id, seen).await?;
    guard.end = None;
    Ok(result)
}

/// An exec that has begun. Dropped before its end is recorded, it ends the exec where that still runs, and records the end.
struct ExecGuard<'a> {
    app: &'a Shared,
    id: Uuid,
    container: Option<ContainerId>,
    is_finished: bool,
    /// What is still to be recorded of its end.
    end: Option<StreamEnd>,
}

impl Drop for ExecGuard<'_> {
    fn drop(&mut self) {
        if let Some(container) = self.container {
            self.app.hosts.end_exec(container, self.id, !self.is_finished);
        }
        if let Some(seen) = self.end.take() {
            let (app, id) = (self.app.clone(), self.id);
            self.app.tasks.spawn(async move {
                if let Err(error) = end(&app, id, seen).await {
                    tracing::error!(exec = %id, %error, "the end of an exec could not be recorded");
                }
            });
        }
    }
}

/// Whether it can be run at all.
///
/// # Errors
/// 422 where not.
pub fn check(body: &Exec) -> Result<(), Failure> {
    let mut checks = Checks::default();
    match &body.command {
        ExecCommand::Script(script) if script.is_empty() || script.len() > MESSAGE_BYTES_MAX => {
            checks.fault("command", format!("must have 1 to {MESSAGE_BYTES_MAX} bytes"));
        }
        ExecCommand::Words(words) if words.first().is_none_or(String::is_empty) => {
            checks.fault("command", "must name a program, such as [\"ls\", \"-l\"]");
        }
        ExecCommand::Words(words) if words.iter().map(String::len).sum::<usize>() > WORDS_BYTES_MAX => {
            checks.fault("command", format!("must have at most {WORDS_BYTES_MAX} bytes in all"));
        }
        ExecCommand::Script(_) | ExecCommand::Words(_) => {}
    }
    let has_nul = match &body.command {
        ExecCommand::Script(script) => script.contains('\0'),
        ExecCommand::Words(words) => words.iter().any(|word| word.contains('\0')),
    };
    if has_nul {
        checks.fault("command", "must not contain NUL characters");
    }
    if !body.stdin.is_empty() && matches!(body.command, ExecCommand::Script(_)) {
        checks.fault("stdin", "goes with a program, not with a script: use [\"bash\", \"-c\", SCRIPT]");
    }
    if body.stdin.len() > MESSAGE_BYTES_MAX {
        checks.fault("stdin", format!("must have at most {MESSAGE_BYTES_MAX} bytes"));
    }
    let is_path = |path: &String| (1..=DIRECTORY_BYTES_MAX).contains(&path.len()) && !path.contains('\0');
    if !body.directory.as_ref().is_none_or(is_path) {
        checks.fault("directory", format!("must be a path in the container, of 1 to {DIRECTORY_BYTES_MAX} bytes"));
    }
    checks.env("env", Some(&body.env));
    checks.range("timeout_seconds", body.timeout_seconds, &(1..=EXEC_TIMEOUT_MAX.as_secs()));
    checks.done()
}

/// A command as it is told.
pub fn shown(command: &ExecCommand) -> String {
    let text = match command {
        ExecCommand::Script(script) => script.clone(),
        ExecCommand::Words(words) => words.join(" "),
    };
    text.chars().take(1024).collect()
}

/// Wakes the session. Where its container is up already, the command is recorded as begun.
async fn begin(
    app: &Shared,
    actor: &Actor,
    id_or_name: String,
    id: Uuid,
    command: String,
) -> Result<(SessionRow, Option<StreamRow>), Failure> {
    let (actor, now) = (actor.clone(), app.now());
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let row = find::session(tx, &actor, &id_or_name, Purpose::Use).await?;
                audit::append(tx, now, &actor, "session.exec", &row.id.to_string()).await?;
                let mut change = Change::begin(tx, row, now, actor.name.clone());
                change.step(&Event::Wake).await?;
                let begun = match change.row.machine.container {
                    Container::Up => {
                        let container =
                            ContainerId { session: change.row.id, generation: change.row.machine.generation };
                        let row = stream(container, id, command, &actor, now);
                        change.begin_stream(&row, NOT_ATTACHED).await?;
                        Some(row)
                    }
                    Container::None | Container::Starting | Container::Stopping => None,
                };
                Ok((change.save().await?, begun))
            })
        })
        .await
}

/// A command, in this container.
fn stream(container: ContainerId, id: Uuid, command: String, actor: &Actor, now: Time) -> StreamRow {
    let ContainerId { session: session_id, generation } = container;
    StreamRow { id, session_id, generation, kind: Kind::Exec, command, actor: actor.name.clone(), opened_at: now }
}

fn work(session: &SessionRow, id: Uuid, body: Exec, timeout_seconds: u64) -> Work {
    Work {
        id: WorkId::Exec(id),
        env: environment(session, body.env),
        program: program(body.command, body.stdin),
        directory: directory(body.directory),
        timeout_seconds: Some(timeout_seconds),
        output_bytes_max: EXEC_OUTPUT_BYTES_MAX,
    }
}

/// Where a command starts; a relative path begins in the workspace.
pub fn directory(wanted: Option<String>) -> String {
    match wanted {
        None => WORKSPACE_PATH.to_owned(),
        Some(path) if path.starts_with('/') => path,
        Some(path) => format!("{WORKSPACE_PATH}/{path}"),
    }
}

/// The variables of a command, on top of the container's own.
pub fn environment(session: &SessionRow, own: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut env = session.settings.env.clone();
    env.extend(own);
    env.insert("RAWORC_SESSION_ID".into(), session.id.to_string());
    env.insert("RAWORC_SESSION_NAME".into(), session.name.clone());
    env
}

/// What a host runs.
pub fn program(command: ExecCommand, stdin: String) -> Program {
    match command {
        ExecCommand::Script(script) => Program::Shell { script },
        ExecCommand::Words(argv) => Program::Command { argv, stdin },
    }
}

/// Waits until the session's host can be given something.
///
/// # Errors
/// 409 where the session's state forbids it, 503 where it takes too long.
pub async fn when_ready<T>(
    app: &Shared,
    session: SessionId,
    mut give: impl FnMut(ContainerId) -> Result<T, ExecRejection>,
) -> Result<T, Failure> {
    let mut changes = app.hub.subscribe(session);
    let mut connections = app.hosts.connections();
    let deadline = tokio::time::Instant::now() + START_TIMEOUT;
    loop {
        let row = {
            let mut connection = app.store.read().await?;
            sessions::find(&mut connection, session).await?
        };
        let row = row.ok_or_else(|| Failure::not_found("session", &session.to_string()))?;
        // Someone may have ended or paused it meanwhile; then it does not become ready.
        if row.machine.deleted_at.is_some() {
            return Err(Refused::Deleted.into());
        }
        if row.machine.terminated.is_some() {
            return Err(Refused::Terminated.into());
        }
        if row.machine.paused_at.is_some() {
            return Err(Refused::Paused.into());
        }
        let container = ContainerId { session: row.id, generation: row.machine.generation };
        match row.machine.state {
            State::Ready | State::Busy => match give(container) {
                Ok(given) => return Ok(given),
                Err(ExecRejection::Outdated) => {
                    let detail = "the session's container was started by an older version, which cannot do this; \
                                  restart the session first";
                    return Err(Failure::new(Code::InvalidState, detail));
                }
                Err(ExecRejection::Replaced) => return Err(Failure::container_ended()),
                Err(ExecRejection::NoHost) => {}
            },
            State::Error if row.machine.due_at.is_none() => {
                return Err(Refused::GivenUp.into());
            }
            State::Init | State::Idle | State::Error => {}
        }
        tokio::select! {
            _ = changes.changed() => {}
            _ = connections.changed() => {}
            () = tokio::time::sleep_until(deadline) => {
                let detail = "the session's container did not become ready in time; see the session's state and error";
                return Err(Failure::new(Code::Unavailable, detail));
            }
        }
    }
}

async fn collect(mut reports: mpsc::Receiver<Report>) -> Option<ExecResult> {
    let (mut stdout, mut stderr) = (String::new(), String::new());
    while let Some(report) = reports.recv().await {
        match report {
            Report::Output { stream: OutputStream::Stdout, text, .. } => stdout.push_str(&text),
            Report::Output { stream: OutputStream::Stderr, text, .. } => stderr.push_str(&text),
            // Nobody cancels an exec that is waited for; its container does when it is told to end.
            Report::Finished { ending: Ending::Cancelled, .. } => return None,
            Report::Finished { ending, duration_micros, dropped_bytes, output_file, .. } => {
                return Some(ExecResult {
                    exit_code: exit_code(ending),
                    signal: if let Ending::Signalled(signal) = ending { Some(signal) } else { None },
                    timed_out: ending == Ending::TimedOut,
                    stdout,
                    stderr,
                    duration_seconds: duration_micros as f64 / 1e6,
                    output_bytes_dropped: dropped_bytes,
                    output_file,
                });
            }
        }
    }
    None
}

fn exit_code(ending: Ending) -> Option<i32> {
    match ending {
        Ending::Exited(code) => Some(code),
        // As a shell says of what it found and could not run; why is in stderr.
        Ending::NotStarted => Some(126),
        Ending::Signalled(_) | Ending::Cancelled | Ending::TimedOut => None,
    }
}

/// Records that an exec has ended, where it is recorded that it began.
async fn end(app: &Shared, id: Uuid, seen: StreamEnd) -> Result<(), Failure> {
    let now = app.now();
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let Some(row) = streams::find(tx, id).await? else { return Ok(()) };
                let mut change = Change::load(tx, row.session_id, now, row.actor.clone()).await?;
                change.step(&Event::Used).await?;
                change.end_stream(&row, seen).await?;
                change.save().await?;
                Ok(())
            })
        })
        .await
}
