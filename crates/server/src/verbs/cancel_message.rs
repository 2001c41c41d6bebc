//! Cancel one message: one that waits is taken out of the queue, one that is worked on is ended.

use raworc_api::message::Status;
use raworc_api::problem::Code;
use raworc_core::events::Outcome;
use raworc_core::ids::MessageId;
use raworc_core::permissions::Actor;
use raworc_core::session::Event;
use raworc_store::audit;
use raworc_store::messages::{self, MessageRow};

use super::find::{self, Purpose};
use crate::app::Shared;
use crate::change::{Change, cancelled};
use crate::error::Failure;

/// Cancels a message; the message as it now is. One that is worked on ends a little later.
///
/// # Errors
/// 409 where it has ended in another way.
pub async fn cancel_message(
    app: &Shared,
    actor: &Actor,
    id_or_name: String,
    message: String,
) -> Result<MessageRow, Failure> {
    let (actor, now) = (actor.clone(), app.now());
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let row = find::session(tx, &actor, &id_or_name, Purpose::Use).await?;
                let not_found = || Failure::not_found("message", &message);
                let id: MessageId = message.parse().map_err(|_| not_found())?;
                let found = messages::find(tx, row.id, id).await?;
                let mut message = found.ok_or_else(not_found)?;
                match message.status {
                    // To ask again changes nothing.
                    Status::Cancelled => return Ok(message),
                    Status::Done | Status::Failed => return Err(has_ended(message.status)),
                    Status::Queued | Status::Processing => {}
                }
                audit::append(tx, now, &actor, "message.cancel", &row.id.to_string()).await?;
                let mut change = Change::begin(tx, row, now, actor.name.clone());
                if message.status == Status::Queued {
                    let end = (Outcome::Cancelled, Some(cancelled()));
                    change.finish_message(&mut message, end, None, None).await?;
                    change.step(&Event::MessageWithdrawn).await?;
                } else {
                    change.step(&Event::Cancel).await?;
                }
                let session = change.row.id;
                let found = messages::find(change.tx(), session, id).await?;
                change.save().await?;
                found.ok_or_else(|| Failure::not_found("message", &id.to_string()))
            })
        })
        .await
}

fn has_ended(status: Status) -> Failure {
    let how = if status == Status::Done { "done" } else { "failed" };
    Failure::new(Code::InvalidState, format!("the message has ended already, and is {how}: there is nothing to cancel"))
}
