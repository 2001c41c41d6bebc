//! `raworc session follow`: shows a session live.

use clap::Args;
use futures::StreamExt as _;
use raworc_api::event::Event;
use serde_json::Value;

use super::show;
use crate::context::Context;
use crate::event_text::{text_of, tool_call};
use crate::failure::Result;
use crate::output::{Style, Ui};
use crate::text::{brief, bytes, clean, clean_lines, clock, span};

/// Characters of a message that are shown.
const PROMPT_CHARACTERS_MAX: usize = 72;

/// Options of `raworc session follow`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  raworc session follow demo
  raworc session follow demo --from-start
  raworc session follow demo --after 120 --output json     one event a line

Goes on until Ctrl-C, or until the session is terminated or deleted. A broken connection is taken up again where \
it broke.")]
pub struct Follow {
    /// The session's id or name.
    session: String,
    /// Start with all earlier events.
    #[arg(long, conflicts_with = "after")]
    from_start: bool,
    /// Start after the event with this number.
    #[arg(long, value_name = "SEQ")]
    after: Option<u64>,
}

/// Follows a session.
pub async fn run(context: &Context, args: Follow) -> Result<()> {
    let client = context.client()?;
    let session = client.get_session(&args.session).await?;
    let after = if args.from_start { 0 } else { args.after.unwrap_or(session.last_seq) };
    let mut has_ended = session.terminated_at.is_some() || session.deleted_at.is_some();
    if context.ui.shows_progress() {
        let what_next = if has_ended { "nothing more will come" } else { "Ctrl-C ends this" };
        context.ui.note(&format!("{}; {what_next}", show::sentence(&session)));
    }
    let mut events = client.follow(&session.id.to_string(), after);
    let mut printer = EventPrinter { ui: context.ui, is_at_line_start: true };
    let mut seen = after;
    // A session that has ended has no further events after its last.
    while !(has_ended && seen >= session.last_seq) {
        let Some(event) = events.next().await.transpose()? else { break };
        seen = event.seq;
        if event.seq > session.last_seq {
            has_ended = matches!(event.kind.as_str(), "session.terminated" | "session.deleted");
        }
        if context.ui.is_json() { context.ui.json_line(&event)? } else { printer.show(&event)? }
    }
    Ok(())
}

struct EventPrinter {
    ui: Ui,
    is_at_line_start: bool,
}

impl EventPrinter {
    fn show(&mut self, event: &Event) -> Result<()> {
        if event.kind == "message.delta" {
            return self.output(event);
        }
        let Some((style, text)) = sentence(event) else { return Ok(()) };
        let mut line = String::new();
        if !self.is_at_line_start {
            line.push('\n');
            self.is_at_line_start = true;
        }
        line.push_str(&self.ui.paint(Style::Faint, &clock(event.at)));
        line.push_str("  ");
        line.push_str(&self.ui.paint(style, &text));
        self.ui.line(&line)
    }

    /// Output is written unchanged, as the agents wrote it.
    fn output(&mut self, event: &Event) -> Result<()> {
        let text = text_of(event, "text");
        if text.is_empty() {
            return Ok(());
        }
        self.is_at_line_start = text.ends_with('\n');
        match text_of(event, "stream") {
            "stderr" => self.ui.out(self.ui.paint(Style::Warning, text)),
            _ => self.ui.out(text),
        }
    }
}

/// Describes an event for people; `None` for events that only programs need.
fn sentence(event: &Event) -> Option<(Style, String)> {
    let data = |key: &str| clean_lines(text_of(event, key));
    let actor = clean(&event.actor);
    Some(match event.kind.as_str() {
        "session.state_changed" => {
            let reason = data("reason").replace('_', " ");
            (
                state_style(text_of(event, "to")),
                format!("{} → {}  {reason}", data("from"), data("to")).trim_end().to_owned(),
            )
        }
        "session.failed" => (Style::Bad, format!("failed: {} ({})", data("message"), data("code"))),
        "session.created" => (Style::Faint, format!("created by {actor}: {}", data("name"))),
        "message.queued" if text_of(event, "role") == "user" => {
            let content = brief(text_of(event, "content"), PROMPT_CHARACTERS_MAX);
            let to = data("agent");
            let to = if to.is_empty() { to } else { format!(" → {to}") };
            (Style::Bold, format!("{actor}{to}: {content}"))
        }
        "message.queued" | "message.added" | "message.delta" => return None,
        "message.started" => (Style::Name, format!("▶ {}{}", data("agent"), attempt(event))),
        "message.requeued" => (Style::Warning, "the container was lost; the message is tried again".to_owned()),
        "message.finished" => finished(event),
        "tool.called" => (Style::Name, tool_call(event)),
        "tool.finished" if event.data.get("is_error") == Some(&Value::Bool(true)) => {
            (Style::Warning, tool_result(event))
        }
        "tool.finished" => (Style::Faint, tool_result(event)),
        "agent.step_discarded" => (Style::Warning, format!("the model is asked again: {}", data("reason"))),
        "model.called" => model_call(event),
        "exec.started" => (Style::Faint, format!("{actor} runs {}", command(event))),
        "exec.finished" => (Style::Faint, format!("ran{}", outcome(event))),
        "file.written" => (Style::Faint, format!("{actor} wrote {}", data("path"))),
        "file.deleted" => (Style::Faint, format!("{actor} deleted {}", data("path"))),
        other => {
            let words = clean(other.strip_prefix("session.").unwrap_or(other)).replace(['.', '_'], " ");
            (Style::Warning, format!("{words} by {actor}  {}", data("reason")).trim_end().to_owned())
        }
    })
}

fn tool_result(event: &Event) -> String {
    let last = text_of(event, "output").trim_end().lines().last().unwrap_or_default();
    format!("  {}{}", brief(last, PROMPT_CHARACTERS_MAX), outcome(event))
}

fn model_call(event: &Event) -> (Style, String) {
    let model = format!("{}/{}", clean(text_of(event, "provider")), clean(text_of(event, "model")));
    let count = |name: &str| event.data.get(name).and_then(Value::as_u64);
    let tokens = count("input_tokens").zip(count("output_tokens"));
    let tokens = tokens.map(|(input, output)| format!(" · {input} → {output} tokens")).unwrap_or_default();
    let error = text_of(event, "error");
    let (style, error) = match (text_of(event, "end"), error) {
        ("complete", "") => (Style::Faint, String::new()),
        (end, "") => (Style::Warning, format!(" · {}", clean(end).replace('_', " "))),
        (_, error) => (Style::Bad, format!(" · {}", clean_lines(error))),
    };
    (style, format!("model {model}{tokens}{}{error}", outcome(event)))
}

fn state_style(state: &str) -> Style {
    match state {
        "READY" => Style::Good,
        "BUSY" => Style::Name,
        "ERROR" => Style::Bad,
        "INIT" => Style::Warning,
        _ => Style::Faint,
    }
}

fn attempt(event: &Event) -> String {
    match event.data.get("attempt").and_then(Value::as_u64) {
        Some(attempt) if attempt > 1 => format!(", try {attempt}"),
        _ => String::new(),
    }
}

fn command(event: &Event) -> String {
    match event.data.get("command") {
        Some(Value::String(script)) => brief(script, PROMPT_CHARACTERS_MAX),
        Some(Value::Array(words)) => {
            let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
            brief(&words.join(" "), PROMPT_CHARACTERS_MAX)
        }
        _ => "a command".to_owned(),
    }
}

fn finished(event: &Event) -> (Style, String) {
    let status = text_of(event, "status");
    let style = match status {
        "done" => Style::Good,
        "cancelled" => Style::Warning,
        _ => Style::Bad,
    };
    let mut text = format!("■ {}{}", clean(status), outcome(event));
    if let Some(error) = event.data.get("error").and_then(|error| error.get("message")).and_then(Value::as_str) {
        text.push_str(&format!(" · {}", clean_lines(error)));
    }
    if let Some(dropped) = event.data.get("output_bytes_dropped").and_then(Value::as_u64).filter(|n| *n > 0) {
        text.push_str(&format!(" · {} of output left out", bytes(dropped)));
    }
    (style, text)
}

fn outcome(event: &Event) -> String {
    let mut text = String::new();
    if let Some(code) = event.data.get("exit_code").and_then(Value::as_i64) {
        text.push_str(&format!(" · exit {code}"));
    }
    if let Some(seconds) = event.data.get("duration_seconds").and_then(Value::as_f64) {
        text.push_str(&format!(" · {}", span(seconds)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(kind: &str, data: Value) -> Event {
        let document = json!({
            "seq": 1, "session_id": "0192f1d2-0000-7000-8000-000000000000", "type": kind, "at": "2026-01-01T00:00:00Z",
            "actor": "admin", "generation": 1, "data": data,
        });
        serde_json::from_value(document).unwrap()
    }

    #[test]
    fn events_in_words() {
        for (kind, data, expected) in [
            (
                "session.state_changed",
                json!({"from": "INIT", "to": "READY", "reason": "host_polled"}),
                Some("INIT → READY  host polled"),
            ),
            (
                "session.failed",
                json!({"code": "out_of_memory", "message": "too much"}),
                Some("failed: too much (out_of_memory)"),
            ),
            ("session.paused", json!({}), Some("paused by admin")),
            ("session.terminated", json!({"reason": "ttl"}), Some("terminated by admin  ttl")),
            (
                "message.queued",
                json!({"role": "user", "agent": "shell", "content": "ls\nrm"}),
                Some("admin → shell: ls…"),
            ),
            ("message.queued", json!({"role": "user", "agent": null, "content": "ls"}), Some("admin: ls")),
            ("message.added", json!({"role": "agent"}), None),
            ("message.started", json!({"agent": "shell", "attempt": 2}), Some("▶ shell, try 2")),
            (
                "message.finished",
                json!({"status": "failed", "exit_code": 3, "duration_seconds": 0.012, "error": {"code": "x", "message": "bad"}}),
                Some("■ failed · exit 3 · 12 ms · bad"),
            ),
            ("exec.started", json!({"command": ["ls", "-l"]}), Some("admin runs ls -l")),
            ("file.written", json!({"path": "a\u{1b}b", "bytes": 1}), Some("admin wrote a\\u{1b}b")),
        ] {
            let told = sentence(&event(kind, data)).map(|(_, text)| text);
            assert_eq!(told.as_deref(), expected, "{kind}");
        }
    }
}
