//! Formats sessions for people.

use jiff::Timestamp;
use raworc_api::session::{AssignedAgent, Session};
use raworc_core::session::State;
use serde_json::Value;

use crate::output::{Style, Ui, fields, table};
use crate::text::{ago, at_and_ago, bytes, clean, clean_lines, span};

/// The colour of a state.
pub fn style(state: State) -> Style {
    match state {
        State::Init => Style::Warning,
        State::Ready => Style::Good,
        State::Idle => Style::Faint,
        State::Busy => Style::Name,
        State::Error => Style::Bad,
    }
}

/// The session's status in one or a few words.
pub fn standing(session: &Session) -> String {
    let mut words = vec![session.state.as_str().to_owned()];
    if session.deleted_at.is_some() {
        words.push("deleted".into());
    } else if session.terminated_at.is_some() {
        words.push("terminated".into());
    } else if session.paused_at.is_some() {
        words.push("paused".into());
    }
    words.join(", ")
}

/// A sentence about a changed session.
pub fn sentence(session: &Session) -> String {
    format!("Session {} is {}", clean(&session.name), standing(session))
}

/// A table of sessions.
pub fn rows(sessions: &[Session]) -> String {
    let now = Timestamp::now();
    let row = |session: &Session| {
        vec![
            clean(&session.name),
            standing(session),
            names(&session.agents),
            session.queued_messages.to_string(),
            ago(session.last_activity_at, now),
            session.id.to_string(),
        ]
    };
    table(&["NAME", "STATE", "AGENTS", "QUEUED", "ACTIVE", "ID"], sessions.iter().map(row).collect())
}

fn names(agents: &[AssignedAgent]) -> String {
    let names: Vec<String> = agents.iter().map(|agent| clean(&agent.name)).collect();
    names.join(", ")
}

/// All details of a session.
pub fn details(ui: Ui, session: &Session) -> String {
    let env: Vec<String> = session.env.iter().map(|(name, value)| clean(&format!("{name}={value}"))).collect();
    let metadata = &session.metadata;
    fields(&[
        ("name", clean(&session.name)),
        ("id", session.id.to_string()),
        ("state", ui.paint(style(session.state), &standing(session))),
        ("error", error(session)),
        ("agents", names(&session.agents)),
        ("prompt", clean_lines(&session.starting_prompt).replace('\n', "\n        ")),
        ("queued", session.queued_messages.to_string()),
        ("work done", work(session)),
        ("limits", limits(session)),
        ("image", session.image.as_ref().map(|image| clean(&image.name)).unwrap_or_default()),
        ("from", session.from.as_ref().map(|from| clean(&from.name)).unwrap_or_default()),
        ("checkpoints", plan(session)),
        ("backup", backup(session)),
        ("env", env.join(" ")),
        ("metadata", if metadata.is_empty() { String::new() } else { Value::Object(metadata.clone()).to_string() }),
        ("rests after", rest(session)),
        ("container", format!("number {}", session.generation)),
        ("created", format!("{} by {}", at_and_ago(session.created_at), clean(&session.created_by))),
        ("started", session.started_at.map(at_and_ago).unwrap_or_default()),
        ("active", at_and_ago(session.last_activity_at)),
        ("expires", session.expires_at.map(at_and_ago).unwrap_or_default()),
        ("paused", session.paused_at.map(at_and_ago).unwrap_or_default()),
        ("terminated", terminated(session)),
        ("deleted", session.deleted_at.map(at_and_ago).unwrap_or_default()),
        ("files gone", session.purged_at.map(at_and_ago).unwrap_or_default()),
    ])
}

fn error(session: &Session) -> String {
    let Some(error) = &session.error else { return String::new() };
    let next = match error.restarts_at {
        Some(at) => format!("restarts {}", ago(at, Timestamp::now())),
        None => "waits for `raworc session restart`".to_owned(),
    };
    format!("{} ({}); {next}", clean_lines(&error.message), error.code.as_str())
}

fn work(session: &Session) -> String {
    match session.usage.messages {
        0 => String::new(),
        1 => format!("1 message in {}", span(session.usage.busy_seconds)),
        many => format!("{many} messages in {}", span(session.usage.busy_seconds)),
    }
}

fn limits(session: &Session) -> String {
    let limits = &session.resources;
    let disk = limits.disk.map(|disk| format!(", {} disk", bytes(disk.0))).unwrap_or_default();
    format!("{} cpu, {} memory, {} processes{disk}", limits.cpu, bytes(limits.memory.0), limits.pids)
}

/// When checkpoints are taken and how many are kept.
fn plan(session: &Session) -> String {
    let plan = &session.checkpoints;
    let policy = serde_json::to_value(plan.policy).ok();
    let policy = policy.as_ref().and_then(|policy| policy.as_str()).unwrap_or_default();
    let every = plan.every_seconds.map(|seconds| format!(" {seconds} s")).unwrap_or_default();
    format!("{policy}{every}, the newest {} are kept", plan.keep_last)
}

fn backup(session: &Session) -> String {
    let Some(backup) = &session.backup else { return String::new() };
    let newest = match backup.checkpoint {
        Some(n) => format!("checkpoint {n} is there"),
        None => "nothing is there yet".to_owned(),
    };
    let error = backup.error.as_deref().map(|error| format!("; {}", clean_lines(error))).unwrap_or_default();
    format!("{}, {newest}{error}", clean(&backup.registry))
}

fn rest(session: &Session) -> String {
    let timeout = span(session.waiting_timeout_seconds as f64);
    if session.background_activity { timeout } else { format!("{timeout}, whatever runs in the background") }
}

fn terminated(session: &Session) -> String {
    let Some(at) = session.terminated_at else { return String::new() };
    let reason = session.termination_reason.and_then(|reason| serde_json::to_value(reason).ok());
    let reason = reason.as_ref().and_then(Value::as_str).unwrap_or("unknown");
    format!("{} ({reason})", at_and_ago(at))
}
