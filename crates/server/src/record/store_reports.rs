//! Store what a host reports of its turn, each report once.

use raworc_api::message::{MessageError, MessageUsage};
use raworc_core::checkpoints::Cause;
use raworc_core::events::{MessageDelta, Outcome};
use raworc_core::ids::ContainerId;
use raworc_core::link::{Ending, Report, WorkId};
use raworc_store::sessions::SessionRow;

use crate::app::Shared;
use crate::change::{Change, SYSTEM, cancelled};
use crate::error::Failure;
use crate::record::turn_end::{self, TurnEnd};

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
            let end = turn_end(ending, duration_micros, dropped_bytes, output_file);
            turn_end::finish(change, container, running, end).await?;
        }
    }
    Ok(())
}

/// What a host has reported of the end of a turn.
fn turn_end(ending: Ending, duration_micros: u64, dropped_bytes: u64, output_file: Option<String>) -> TurnEnd {
    let usage = MessageUsage {
        exit_code: if let Ending::Exited(code) = ending { Some(code) } else { None },
        signal: if let Ending::Signalled(signal) = ending { Some(signal) } else { None },
        duration_seconds: duration_micros as f64 / MICROS,
        output_bytes_dropped: dropped_bytes,
        output_file,
    };
    TurnEnd { outcome: judge(ending), duration_micros, usage, content: None }
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
