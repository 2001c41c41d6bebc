//! Go back to a checkpoint.

use raworc_core::checkpoints::Cause;
use raworc_core::events::SessionRewinding;
use raworc_core::permissions::Actor;
use raworc_core::session::Event;
use raworc_store::sessions::{self, SessionRow};
use raworc_store::{audit, checkpoints};

use super::checkpoints as versions;
use super::find::{self, Purpose};
use crate::app::Shared;
use crate::change::Change;
use crate::error::Failure;
use crate::layers::workspace_access;
use crate::record::save;

/// Has a session go back to its checkpoint `n`, workspace and conversation, and waits until it has, for as long as anyone
/// would. What is there now is saved first. What is worked on or waits is cancelled.
///
/// # Errors
/// 404 where there is no such checkpoint, 409 where the state forbids it.
pub async fn rewind(app: &Shared, actor: &Actor, id_or_name: String, n: u64) -> Result<SessionRow, Failure> {
    let session = {
        let mut connection = app.store.read().await?;
        find::session(&mut connection, actor, &id_or_name, Purpose::Use).await?.id
    };
    versions::usable(app, session, n).await?;
    let (actor, now, app_in_job) = (actor.clone(), app.now(), app.clone());
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let row = find::session(tx, &actor, &session.to_string(), Purpose::Use).await?;
                audit::append(tx, now, &actor, "checkpoint.restore", &session.to_string()).await?;
                if checkpoints::find(tx, session, n).await?.is_none() {
                    return Err(Failure::not_found("checkpoint", &n.to_string()));
                }
                let mut change = Change::begin(tx, row, now, actor.name.clone());
                // What is there now, up to this point of the conversation.
                let saved = save::new_row(&mut change.row, Cause::Rewind, None, &actor.name, now);
                change.log(SessionRewinding { checkpoint: n, saved_as: saved.n }).await?;
                change.step(&Event::Rewind { checkpoint: n }).await?;
                checkpoints::insert(change.tx(), &saved).await?;
                change.tx().after_commit(move || app_in_job.checkpoint_queue.enqueue(session, Cause::Rewind));
                change.save().await?;
                Ok::<_, Failure>(())
            })
        })
        .await?;
    wait(app, session).await
}

async fn wait(app: &Shared, session: raworc_core::ids::SessionId) -> Result<SessionRow, Failure> {
    let mut changes = app.hub.subscribe(session);
    let until = tokio::time::Instant::now() + workspace_access::SAVE_WAIT_MAX;
    loop {
        let row = {
            let mut connection = app.store.read().await?;
            sessions::find(&mut connection, session).await?
        };
        let row = row.ok_or_else(|| Failure::not_found("session", &session.to_string()))?;
        if row.machine.rewind.is_none() || tokio::time::timeout_at(until, changes.changed()).await.is_err() {
            return Ok(row);
        }
    }
}
