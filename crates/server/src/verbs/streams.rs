//! Terminals, and commands whose streams are attached: how they begin, how clients get to them, how their end is recorded.

use std::collections::BTreeMap;
use std::time::Duration;

use raworc_api::problem::{Code, Problem};
use raworc_api::terminal::OpenTerminal;
use raworc_api::workspace::{Exec, ExecCommand};
use raworc_core::events::{StreamError, StreamStart};
use raworc_core::ids::{ContainerId, SessionId};
use raworc_core::limits::DETACHED_MAX;
use raworc_core::link::{Attach, Interactive, Size};
use raworc_core::permissions::Actor;
use raworc_core::session::Event;
use raworc_store::sessions::SessionRow;
use raworc_store::streams::{self, Kind, StreamRow};
use raworc_store::{Sound, audit};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::check::Checks;
use super::exec;
use super::find::{self, Purpose};
use crate::app::Shared;
use crate::change::{Change, unseen};
use crate::error::Failure;
use crate::link::attachments::Way;
use crate::policy::lease::Lease;
use crate::record::streams::{finish, record};

/// How long a host may take to dial.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// The size of a terminal whose client says nothing about it.
const SIZE_DEFAULT: Size = Size { columns: 80, rows: 24 };
/// Most columns and rows of a terminal.
pub const SIZE_MAX: u16 = 4096;
/// `TERM` where the client says nothing about it.
const TERM_DEFAULT: &str = "xterm-256color";
/// Longest `TERM`, in bytes.
const TERM_BYTES_MAX: usize = 64;

/// A client's way to a stream.
pub struct Attached {
    /// The stream.
    pub id: Uuid,
    /// Its session.
    pub session: SessionId,
    /// Its container.
    pub container: ContainerId,
    /// The connection to its host.
    pub way: Way,
}

/// What a client wants to run.
struct Wanted {
    kind: Kind,
    command: Option<ExecCommand>,
    env: BTreeMap<String, String>,
    directory: Option<String>,
    timeout_seconds: Option<u64>,
    size: Option<Size>,
}

/// Opens a terminal, or attaches to one. Wakes a session that rests.
///
/// # Errors
/// 409 where the session's state forbids it, 404 where there is no such terminal, 422 where the query is wrong.
pub async fn terminal(
    app: &Shared,
    lease: &Lease,
    id_or_name: String,
    query: OpenTerminal,
) -> Result<Attached, Failure> {
    let size = check_terminal(&query)?;
    if let Some(terminal) = &query.terminal {
        let watch = query.watch.unwrap_or(false);
        return Box::pin(attach(app, lease.actor(), id_or_name, terminal, watch, size)).await;
    }
    let command = query.command.map(|text| match serde_json::from_str(&text) {
        Ok(words) => ExecCommand::Words(words),
        Err(_) => ExecCommand::Script(text),
    });
    let mut env = query.env.as_deref().map(variables).transpose()?.unwrap_or_default();
    env.insert("TERM".to_owned(), query.term.unwrap_or_else(|| TERM_DEFAULT.to_owned()));
    let checked = command.clone().unwrap_or_else(|| ExecCommand::Script("shell".to_owned()));
    exec::check(&Exec { command: checked, env: env.clone(), directory: query.directory.clone(), ..Exec::default() })?;
    let (kind, size) = (Kind::Terminal, Some(size.unwrap_or(SIZE_DEFAULT)));
    let wanted = Wanted { kind, command, env, directory: query.directory, timeout_seconds: None, size };
    open(app, lease, id_or_name, wanted).await
}

fn variables(text: &str) -> Result<BTreeMap<String, String>, Failure> {
    let wrong = |_| Problem::field("env", r#"must be a JSON object of texts, such as {"CI": "1"}"#).into();
    serde_json::from_str(text).map_err(wrong)
}

/// Runs a command whose streams are attached. Wakes a session that rests.
///
/// # Errors
/// 409 where the session's state forbids it, 422 where the body is wrong.
pub async fn command(app: &Shared, lease: &Lease, id_or_name: String, body: Exec) -> Result<Attached, Failure> {
    exec::check(&body)?;
    if !body.stdin.is_empty() {
        return Err(Problem::field("stdin", "must be empty: send it in binary frames").into());
    }
    let Exec { command, env, directory, timeout_seconds, .. } = body;
    let wanted = Wanted { kind: Kind::Exec, command: Some(command), env, directory, timeout_seconds, size: None };
    open(app, lease, id_or_name, wanted).await
}

/// Whether a command could be run: what is told before the WebSocket is opened.
///
/// # Errors
/// 404 where the session is not there, 409 where its state forbids it.
pub async fn may_run(app: &Shared, actor: &Actor, id_or_name: &str) -> Result<(), Failure> {
    let mut connection = app.store.read().await?;
    let row = find::session(&mut connection, actor, id_or_name, Purpose::Use).await?;
    raworc_core::session::step(&row.machine, &Event::Wake, app.now())?;
    Ok(())
}

/// The terminals that are open.
///
/// # Errors
/// 404 where the session is not there.
pub async fn list(app: &Shared, actor: &Actor, id_or_name: &str) -> Result<Sound<StreamRow>, Failure> {
    let mut connection = app.store.read().await?;
    let session = find::session(&mut connection, actor, id_or_name, Purpose::Read).await?;
    let mut found = streams::of_session(&mut connection, session.id).await?;
    found.rows.retain(|row| row.kind == Kind::Terminal);
    Ok(found)
}

/// Ends a terminal, for everyone who is attached.
///
/// # Errors
/// 404 where there is no such terminal, 503 where its host is away.
pub async fn close(app: &Shared, actor: &Actor, id_or_name: &str, terminal: &str) -> Result<(), Failure> {
    let row = find_terminal(app, actor, id_or_name, terminal).await?;
    note(app, actor, "session.terminal_close", row.session_id).await?;
    let container = ContainerId { session: row.session_id, generation: row.generation };
    if app.hosts.end_stream(container, row.id) {
        Ok(())
    } else {
        Err(Failure::new(Code::Unavailable, "the session's container does not answer; try again soon"))
    }
}

fn check_terminal(query: &OpenTerminal) -> Result<Option<Size>, Failure> {
    let mut checks = Checks::default();
    for (name, value) in [("columns", query.columns), ("rows", query.rows)] {
        if value.is_some_and(|value| !(1..=SIZE_MAX).contains(&value)) {
            checks.fault(name, format!("must be 1 to {SIZE_MAX}"));
        }
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || "+-._".contains(c);
    if query.term.as_ref().is_some_and(|t| t.is_empty() || t.len() > TERM_BYTES_MAX || !t.chars().all(is_name)) {
        checks.fault("term", "must be the name of a kind of terminal, such as xterm-256color");
    }
    let for_new = [&query.command, &query.env, &query.directory, &query.term].iter().any(|field| field.is_some());
    if query.terminal.is_some() && for_new {
        checks.fault("terminal", "is there already: command, env, directory and term are for a new one");
    }
    if query.watch.is_some() && query.terminal.is_none() {
        checks.fault("watch", "needs the terminal to watch: terminal=ID");
    }
    checks.done()?;
    let is_given = query.columns.is_some() || query.rows.is_some();
    let columns = query.columns.unwrap_or(SIZE_DEFAULT.columns);
    let rows = query.rows.unwrap_or(SIZE_DEFAULT.rows);
    Ok(is_given.then_some(Size { columns, rows }))
}

/// In a task of its own: what is begun is recorded to its end also where the client goes away meanwhile. It is ended then, as it is
/// when the lease ends, whoever is attached by that time.
async fn open(app: &Shared, lease: &Lease, id_or_name: String, wanted: Wanted) -> Result<Attached, Failure> {
    let (app_in_task, lease) = (app.clone(), lease.clone());
    let (sender, opened) = oneshot::channel();
    app.tasks.spawn(async move {
        let app = app_in_task;
        let is_awaited = || !sender.is_closed();
        let opened = Box::pin(open_now(&app, &lease, &is_awaited, id_or_name, wanted)).await;
        let begun = opened.as_ref().ok().map(|attached| (attached.container, attached.id));
        let is_gone = sender.send(opened).is_err();
        if let Some((container, id)) = begun {
            if is_gone {
                app.hosts.end_stream(container, id);
            } else {
                end_with(&app, &lease, container, id).await;
            }
        }
    });
    let panicked = |_| Err(Failure::new(Code::Internal, "the server could not do this; its log says why"));
    opened.await.unwrap_or_else(panicked)
}

/// Ends a stream when the lease of the client that opened it ends; returns when the stream has ended, or the server stops.
async fn end_with(app: &Shared, lease: &Lease, container: ContainerId, id: Uuid) {
    let mut changes = app.hub.subscribe(container.session);
    let ended = async { while app.hosts.has_stream(container, id) && changes.changed().await.is_ok() {} };
    tokio::select! {
        biased;
        () = app.stopping.cancelled() => {}
        () = ended => {}
        _ = lease.ended_on(container.session) => {
            app.hosts.end_stream(container, id);
        }
    }
}

async fn open_now(
    app: &Shared,
    lease: &Lease,
    is_awaited: &(dyn Fn() -> bool + Sync),
    id_or_name: String,
    wanted: Wanted,
) -> Result<Attached, Failure> {
    let (id, actor) = (Uuid::now_v7(), lease.actor());
    let session = wake(app, actor, id_or_name, wanted.kind).await?;
    let container =
        exec::when_ready(app, session.id, |container| app.hosts.can_attach(container).map(|()| container)).await?;
    // The session may have taken a while to wake: nothing begins for a client that has gone, or may not any more.
    lease.confirm().await?;
    if !is_awaited() {
        return Err(Failure::new(Code::Unavailable, "the client has gone"));
    }
    let command = wanted.command.as_ref().map_or_else(|| "shell".to_owned(), exec::shown);
    let row = StreamRow {
        id,
        session_id: session.id,
        generation: container.generation,
        kind: wanted.kind,
        command,
        actor: actor.name.clone(),
        opened_at: app.now(),
    };
    let _beginning = app.hosts.beginning(id);
    let (columns, rows) = wanted.size.map(|Size { columns, rows }| (columns, rows)).unzip();
    record(app, row, StreamStart { attached: Some(true), columns, rows }).await?;
    let start = Interactive {
        program: wanted.command.map(|command| exec::program(command, String::new())),
        env: exec::environment(&session, wanted.env),
        directory: exec::directory(wanted.directory),
        timeout_seconds: wanted.timeout_seconds,
        terminal: wanted.size,
        linger_seconds: DETACHED_MAX.as_secs(),
    };
    let attachment = Uuid::new_v4();
    let attach = Attach { attachment, work: id, start: Some(start), watch: false, size: wanted.size };
    match dial(app, container, attach).await {
        Ok(way) => Ok(Attached { id, session: session.id, container, way }),
        Err(failure) => {
            app.hosts.end_stream(container, id);
            finish(app, container, id, unseen(StreamError::NotStarted)).await?;
            Err(failure)
        }
    }
}

async fn wake(app: &Shared, actor: &Actor, id_or_name: String, kind: Kind) -> Result<SessionRow, Failure> {
    let (actor, now) = (actor.clone(), app.now());
    let action = match kind {
        Kind::Terminal => "session.terminal",
        Kind::Exec => "session.exec",
    };
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let row = find::session(tx, &actor, &id_or_name, Purpose::Use).await?;
                audit::append(tx, now, &actor, action, &row.id.to_string()).await?;
                let mut change = Change::begin(tx, row, now, actor.name.clone());
                change.step(&Event::Wake).await?;
                Ok(change.save().await?)
            })
        })
        .await
}

/// Has the host dial for a client, and waits for it.
async fn dial(app: &Shared, container: ContainerId, attach: Attach) -> Result<Way, Failure> {
    let mut expected = app.attachments.expect(container, attach.attachment);
    let unavailable = || Failure::new(Code::Unavailable, "the session's container does not answer; try again soon");
    app.hosts.attach(container, attach).map_err(|_| unavailable())?;
    match tokio::time::timeout(DIAL_TIMEOUT, expected.way()).await {
        Ok(Some(way)) => Ok(way),
        Ok(None) | Err(_) => Err(unavailable()),
    }
}

async fn attach(
    app: &Shared,
    actor: &Actor,
    id_or_name: String,
    terminal: &str,
    watch: bool,
    size: Option<Size>,
) -> Result<Attached, Failure> {
    let row = find_terminal(app, actor, &id_or_name, terminal).await?;
    let action = if watch { "session.terminal_watch" } else { "session.terminal_attach" };
    note(app, actor, action, row.session_id).await?;
    // After a restart of the server, the host may still have to come back.
    let container =
        exec::when_ready(app, row.session_id, |container| app.hosts.can_attach(container).map(|()| container)).await?;
    if container.generation != row.generation {
        return Err(Failure::not_found("terminal", terminal));
    }
    let attach = Attach { attachment: Uuid::new_v4(), work: row.id, start: None, watch, size };
    let way = dial(app, container, attach).await?;
    Ok(Attached { id: row.id, session: row.session_id, container, way })
}

/// Notes in the audit trail what is done with a terminal.
async fn note(app: &Shared, actor: &Actor, action: &'static str, session: SessionId) -> Result<(), Failure> {
    let (actor, now) = (actor.clone(), app.now());
    app.store
        .write(move |tx| {
            Box::pin(async move { Ok(audit::append(tx, now, &actor, action, &session.to_string()).await?) })
        })
        .await
}

async fn find_terminal(app: &Shared, actor: &Actor, id_or_name: &str, terminal: &str) -> Result<StreamRow, Failure> {
    let mut connection = app.store.read().await?;
    let session = find::session(&mut connection, actor, id_or_name, Purpose::Use).await?;
    let rows = streams::of_session(&mut connection, session.id).await?.rows;
    let id = terminal.parse::<Uuid>().ok();
    let is_it = |row: &StreamRow| Some(row.id) == id && row.kind == Kind::Terminal;
    rows.into_iter().find(is_it).ok_or_else(|| Failure::not_found("terminal", terminal))
}
