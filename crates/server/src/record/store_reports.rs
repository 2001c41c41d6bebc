//! Store what a host reports of its turn, each report once.

use raworc_api::message::{MessageError, MessageUsage, Role, Status};
use raworc_core::checkpoints::Cause;
use raworc_core::events::{LogEvent, MessageAdded, MessageDelta, Outcome, Speaker, TurnResult};
use raworc_core::ids::{ContainerId, MessageId};
use raworc_core::link::{Ending, Report, WorkId};
use raworc_core::session::{Event, Running};
use raworc_store::messages::{self, MessageRow};
use raworc_store::sessions::SessionRow;
use raworc_store::{StoreError, events};
use serde_json::Map;

use crate::app::Shared;
use crate::change::{Change, SYSTEM, cancelled, message_damaged};
use crate::error::Failure;

/// Microseconds in a second.
const MICROS: f64 = 1e6;

/// Stores numbered reports of one container's host; those that are stored already, or of an older container, or of a
/// turn that is over, are dropped. The session, where its message ended with them; `has_changed` says
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
        .write(move |tx| {
            Box::pin(async move {
                let mut change = Change::load(tx, container.session, now, SYSTEM).await?;
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
    let (Report::Output { work, .. } | Report::Finished { work, .. }) = &report;
    // Of a turn that is over, whose message may be on its next one, or of an exec: nothing to keep.
    let Some(running) = change.row.machine.running.filter(|running| *work == WorkId::Turn(running.turn)) else {
        return Ok(());
    };
    match report {
        Report::Output { stream, text, .. } => {
            let (message_id, turn_id) = (running.message, Some(running.turn));
            change.log(MessageDelta { message_id, turn_id, stream, text }).await?;
        }
        Report::Finished { ending, duration_micros, dropped_bytes, output_file, .. } => {
            let end = End { ending, duration_micros, dropped_bytes, output_file };
            finish(change, container, running, end).await?;
        }
    }
    Ok(())
}

struct End {
    ending: Ending,
    duration_micros: u64,
    dropped_bytes: u64,
    output_file: Option<String>,
}

async fn finish(change: &mut Change<'_>, container: ContainerId, running: Running, end: End) -> Result<(), Failure> {
    let finished = Event::MessageFinished { generation: container.generation, turn: running.turn };
    let Some(mut message) = change.message(running.message).await? else {
        change.tell_end(running, Outcome::Failed, message_damaged()).await?;
        return change.step(&finished).await;
    };
    let outcome = judge(end.ending);
    let usage = MessageUsage {
        exit_code: if let Ending::Exited(code) = end.ending { Some(code) } else { None },
        signal: if let Ending::Signalled(signal) = end.ending { Some(signal) } else { None },
        duration_seconds: end.duration_micros as f64 / MICROS,
        output_bytes_dropped: end.dropped_bytes,
        output_file: end.output_file,
    };
    change.row.busy_micros = change.row.busy_micros.saturating_add(end.duration_micros);
    let reply_id = answer(change, running, &message, &usage).await?;
    let result = TurnResult {
        reply_id,
        exit_code: usage.exit_code,
        signal: usage.signal,
        duration_seconds: usage.duration_seconds,
        output_bytes_dropped: usage.output_bytes_dropped,
        output_file: usage.output_file,
    };
    change.finish_message(&mut message, outcome, Some(running.turn), Some(result)).await?;
    change.step(&finished).await
}

/// Adds the agent's answer to the conversation: all that it wrote in this turn, in the order it came.
async fn answer(
    change: &mut Change<'_>,
    running: Running,
    message: &MessageRow,
    usage: &MessageUsage,
) -> Result<MessageId, StoreError> {
    let session = change.row.id;
    let since = message.started_seq.unwrap_or(message.seq);
    let mut content = String::new();
    for data in events::data_of_kind(change.tx(), session, MessageDelta::KIND, since).await? {
        match LogEvent::read(MessageDelta::KIND, &data) {
            // A turn that an older build began has none of its own.
            Some(LogEvent::MessageDelta(delta)) if delta.turn_id.is_none_or(|turn| turn == running.turn) => {
                content.push_str(&delta.text);
            }
            _ => {}
        }
    }
    let started = events::batch(change.tx(), session, since.saturating_sub(1), (1, usize::MAX)).await?.rows;
    let agent = started.first().and_then(|event| match LogEvent::read(&event.kind, &event.data) {
        Some(LogEvent::MessageStarted(started)) => started.agent,
        _ => None,
    });
    let id = MessageId(change.tx().new_id());
    let actor = format!("agent:{}", agent.as_deref().unwrap_or_default());
    let added = MessageAdded {
        message_id: id,
        turn_id: Some(running.turn),
        role: Speaker::Agent,
        reply_to: message.id,
        agent: agent.clone(),
    };
    let seq = change.log_as(&actor, added).await?;
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
    messages::insert(change.tx(), &row).await?;
    Ok(id)
}

/// What an ending means for the message.
fn judge(ending: Ending) -> (Outcome, Option<MessageError>) {
    let failed = |code: &str, message: String| (Outcome::Failed, Some(MessageError { code: code.into(), message }));
    match ending {
        Ending::Exited(0) => (Outcome::Done, None),
        Ending::Exited(137) => {
            let why = "the script exited with status 137: something in it was killed, often for the memory limit";
            failed("exit_status", why.into())
        }
        Ending::Exited(code) => failed("exit_status", format!("the script exited with status {code}")),
        Ending::Signalled(9) => failed("signal", "the script was killed, often for the memory limit".into()),
        Ending::Signalled(signal) => failed("signal", format!("signal {signal} ended the script")),
        Ending::TimedOut => failed("timeout", "it took longer than the agent's timeout_seconds".into()),
        Ending::NotStarted => failed("not_started", "the agent's program could not be started; see its output".into()),
        Ending::Cancelled => (Outcome::Cancelled, Some(cancelled())),
    }
}

#[cfg(test)]
mod tests {
    use raworc_core::ids::TurnId;
    use raworc_core::link::OutputStream;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn neighbouring_texts_are_joined_and_stored_ones_dropped() {
        let work = WorkId::Turn(TurnId(Uuid::nil()));
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
