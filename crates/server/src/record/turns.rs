//! Turns that run in the server: what they say, and their end.

use raworc_core::checkpoints::Cause;
use raworc_core::events::LogEvent;
use raworc_core::ids::ContainerId;
use raworc_core::session::Running;
use raworc_store::sessions::SessionRow;

use crate::app::Shared;
use crate::change::{Change, SYSTEM};
use crate::error::Failure;
use crate::record::turn_end::{self, TurnEnd};

/// Adds to the log what happened in a turn; false where the turn is over.
///
/// # Errors
/// Where the store fails.
pub async fn log(
    app: &Shared,
    container: ContainerId,
    running: Running,
    events: Vec<LogEvent>,
) -> Result<bool, Failure> {
    let now = app.now();
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let mut change = Change::load(tx, container.session, now, SYSTEM).await?;
                if !is_current(&change, container, running) {
                    return Ok(false);
                }
                for event in events {
                    change.log(event).await?;
                }
                change.save_log().await?;
                Ok(true)
            })
        })
        .await
}

/// Ends a turn, after what it has said last. The session, where it was not over already; `has_changed` says whether there is anything to
/// save of its workspace.
///
/// # Errors
/// Where the store fails.
pub async fn finish(
    app: &Shared,
    container: ContainerId,
    running: Running,
    (events, end, has_changed): (Vec<LogEvent>, TurnEnd, bool),
) -> Result<Option<SessionRow>, Failure> {
    let now = app.now();
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let mut change = Change::load(tx, container.session, now, SYSTEM).await?;
                if !is_current(&change, container, running) {
                    return Ok(None);
                }
                for event in events {
                    change.log(event).await?;
                }
                turn_end::finish(&mut change, container, running, end).await?;
                if has_changed && change.row.settings.checkpoints.wants(Cause::Message) {
                    change.row.save_due = Some(Cause::Message);
                }
                Ok(Some(change.save().await?))
            })
        })
        .await
}

fn is_current(change: &Change<'_>, container: ContainerId, running: Running) -> bool {
    let machine = &change.row.machine;
    machine.generation == container.generation && machine.running == Some(running)
}
