//! Store what a host reports of its message, each report once.

use raworc_api::message::{MessageError, MessageUsage, Role, Status};
use raworc_core::checkpoints::Cause;
use raworc_core::ids::{ContainerId, MessageId};
use raworc_core::link::{Ending, OutputStream, Report, WorkId};
use raworc_core::session::Event;
use raworc_store::messages::{self, MessageRow};
use raworc_store::sessions::SessionRow;
use raworc_store::{StoreError, events};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::app::Shared;
use crate::change::{Change, SYSTEM, cancelled};
use crate::error::Failure;

/// Microseconds in a second.
const MICROS: f64 = 1e6;

/// Stores numbered reports of one container's host; those that are stored already, or of an older container, or of a
/// message that is no longer worked on, are dropped. The session, where its message ended with them; `has_changed` says
/// whether there is anything to save of its workspace then.
///
/// # Errors
/// Where the store fails.
pub async fn store_reports(
    app: &Shared,
    container: ContainerId,
    reports: Vec<(u64, Report)>,
    has_changed: bool,
) -> Result<Option<SessionRow>, Failure> {
    let now = app.now();
    app.store
        .write(move |transaction| {
            Box::pin(async move {
                let mut change = Change::load(transaction, container.session, now, SYSTEM).await?;
                if change.row.machine.generation != container.generation {
                    return Ok(None);
                }
                let (ended, before) = (change.row.messages_ended, change.row.machine.clone());
                for (n, report) in merge(reports, change.row.host_received) {
                    change.row.host_received = n;
                    store(&mut change, container, report).await?;
                }
                let has_ended = change.row.messages_ended > ended;
                if has_ended && has_changed && change.row.settings.checkpoints.wants(Cause::Message) {
                    change.row.save_due = Some(Cause::Message);
                }
                if !has_ended && change.row.machine == before {
                    change.save_log().await?;
                    return Ok(None);
                }
                Ok(Some(change.save().await?).filter(|_| has_ended))
            })
        })
        .await
}

/// Drops what is stored already and joins neighbouring texts of one stream, so that streaming costs few rows.
fn merge(reports: Vec<(u64, Report)>, received: u64) -> Vec<(u64, Report)> {
    let mut merged: Vec<(u64, Report)> = Vec::new();
    for (n, report) in reports.into_iter().filter(|(n, _)| *n > received) {
        if let (
            Some((last_n, Report::Output { work: last_work, stream: last_stream, text: last_text })),
            Report::Output { work, stream, text },
        ) = (merged.last_mut(), &report)
            && last_work == work
            && last_stream == stream
        {
            last_text.push_str(text);
            *last_n = n;
            continue;
        }
        merged.push((n, report));
    }
    merged
}

async fn store(change: &mut Change<'_>, container: ContainerId, report: Report) -> Result<(), Failure> {
    let running = change.row.machine.running.map(|running| running.message);
    match report {
        Report::Output { work: WorkId::Message(id), stream, text } if running == Some(id) => {
            let stream = match stream {
                OutputStream::Stdout => "stdout",
                OutputStream::Stderr => "stderr",
            };
            change.log("message.delta", json!({ "message_id": id, "stream": stream, "text": text })).await?;
        }
        Report::Finished { work: WorkId::Message(id), ending, duration_micros, dropped_bytes, output_file }
            if running == Some(id) =>
        {
            let end = End { ending, duration_micros, dropped_bytes, output_file };
            finish(change, container, id, end).await?;
        }
        // Of a message that was cancelled or requeued meanwhile, or of an exec: nothing to keep.
        Report::Output { .. } | Report::Finished { .. } => {}
    }
    Ok(())
}

struct End {
    ending: Ending,
    duration_micros: u64,
    dropped_bytes: u64,
    output_file: Option<String>,
}

async fn finish(change: &mut Change<'_>, container: ContainerId, id: MessageId, end: End) -> Result<(), Failure> {
    let Some(mut message) = change.message(id).await? else {
        return change.step(&Event::MessageFinished { generation: container.generation, message: id }).await;
    };
    let (status, error) = judge(end.ending);
    let usage = MessageUsage {
        exit_code: if let Ending::Exited(code) = end.ending { Some(code) } else { None },
        signal: if let Ending::Signalled(signal) = end.ending { Some(signal) } else { None },
        duration_seconds: end.duration_micros as f64 / MICROS,
        output_bytes_dropped: end.dropped_bytes,
        output_file: end.output_file,
    };
    change.row.busy_micros = change.row.busy_micros.saturating_add(end.duration_micros);
    let reply = answer(change, &message, &usage).await?;
    let mut facts = Map::new();
    facts.insert("reply_id".into(), json!(reply));
    facts.insert("exit_code".into(), json!(usage.exit_code));
    if let Some(signal) = usage.signal {
        facts.insert("signal".into(), json!(signal));
    }
    if let Some(file) = &usage.output_file {
        facts.insert("output_file".into(), json!(file));
    }
    facts.insert("duration_seconds".into(), json!(usage.duration_seconds));
    facts.insert("output_bytes_dropped".into(), json!(usage.output_bytes_dropped));
    change.finish_message(&mut message, status, error, facts).await?;
    change.step(&Event::MessageFinished { generation: container.generation, message: id }).await
}

/// Adds the agent's answer to the conversation: all it wrote, in the order it came.
async fn answer(change: &mut Change<'_>, message: &MessageRow, usage: &MessageUsage) -> Result<MessageId, StoreError> {
    let session = change.row.id;
    let since = message.started_seq.unwrap_or(message.seq);
    let deltas = events::data_of_kind(change.connection(), session, "message.delta", since).await?;
    let content: String = deltas.iter().filter_map(|data| data.get("text").and_then(Value::as_str)).collect();
    let started = events::batch(change.connection(), session, since.saturating_sub(1), (1, usize::MAX)).await?.rows;
    let agent = started.first().and_then(|event| event.data.get("agent")).and_then(Value::as_str).map(str::to_owned);
    let id = MessageId(Uuid::now_v7());
    let actor = format!("agent:{}", agent.as_deref().unwrap_or_default());
    let data = json!({ "message_id": id, "role": Role::Agent, "reply_to": message.id, "agent": agent });
    let seq = change.log_as(&actor, "message.added", data).await?;
    let row = MessageRow {
        id,
        session_id: session,
        seq,
        role: Role::Agent,
        content,
        agent,
        status: Status::Done,
        reply_to: Some(message.id),
        attempts: message.attempts,
        losses: 0,
        started_seq: None,
        cancel_wanted: false,
        error: None,
        usage: Some(usage.clone()),
        metadata: Map::new(),
        created_at: change.now,
        finished_at: Some(change.now),
        finished_seq: Some(seq),
    };
    messages::insert(change.connection(), &row).await?;
    Ok(id)
}

/// What an ending means for the message.
fn judge(ending: Ending) -> (Status, Option<MessageError>) {
    let failed = |code: &str, message: String| (Status::Failed, Some(MessageError { code: code.into(), message }));
    match ending {
        Ending::Exited(0) => (Status::Done, None),
        Ending::Exited(137) => {
            let why = "the script exited with status 137: something in it was killed, often for the memory limit";
            failed("exit_status", why.into())
        }
        Ending::Exited(code) => failed("exit_status", format!("the script exited with status {code}")),
        Ending::Signalled(9) => failed("signal", "the script was killed, often for the memory limit".into()),
        Ending::Signalled(signal) => failed("signal", format!("signal {signal} ended the script")),
        Ending::TimedOut => failed("timeout", "it took longer than the agent's timeout_seconds".into()),
        Ending::NotStarted => failed("not_started", "the agent's program could not be started; see its output".into()),
        Ending::Cancelled => (Status::Cancelled, Some(cancelled())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_texts_are_joined_and_stored_ones_dropped() {
        let work = WorkId::Message(MessageId(Uuid::nil()));
        let out = |stream, text: &str| Report::Output { work, stream, text: text.into() };
        let reports = vec![
            (1, out(OutputStream::Stdout, "old")),
            (2, out(OutputStream::Stdout, "a")),
            (3, out(OutputStream::Stdout, "b")),
            (4, out(OutputStream::Stderr, "c")),
            (5, out(OutputStream::Stdout, "d")),
        ];
        let expected = vec![
            (3, out(OutputStream::Stdout, "ab")),
            (4, out(OutputStream::Stderr, "c")),
            (5, out(OutputStream::Stdout, "d")),
        ];
        assert_eq!(merge(reports, 1), expected);
    }
}
