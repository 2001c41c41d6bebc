//! Actions on a session's life: pause, resume, terminate, delete, restore, restart, cancel. Recorded at once; the machine walks towards them.

use raworc_core::ids::SessionId;
use raworc_core::permissions::{Actor, Role};
use raworc_core::session::{Event, TerminationReason};
use raworc_store::sessions::SessionRow;
use raworc_store::{audit, set_aside};

use super::find::{self, Purpose};
use crate::app::Shared;
use crate::change::Change;
use crate::conditions::Conditions;
use crate::error::Failure;
use crate::layers::workspace_access::refuse_purged;

/// What someone wants of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifecycleAction {
    /// Rest, and do not wake for messages.
    Pause,
    /// Go on, and have a container now.
    Resume,
    /// End.
    Terminate,
    /// End and hide.
    Delete,
    /// Undo an end.
    Restore,
    /// A new container.
    Restart,
    /// End the running message.
    Cancel,
}

impl LifecycleAction {
    fn event(self) -> Event {
        match self {
            LifecycleAction::Pause => Event::Pause,
            LifecycleAction::Resume => Event::Resume,
            LifecycleAction::Terminate => Event::Terminate(TerminationReason::Manual),
            LifecycleAction::Delete => Event::Delete,
            LifecycleAction::Restore => Event::Restore,
            LifecycleAction::Restart => Event::Restart,
            LifecycleAction::Cancel => Event::Cancel,
        }
    }

    fn action(self) -> &'static str {
        match self {
            LifecycleAction::Pause => "session.pause",
            LifecycleAction::Resume => "session.resume",
            LifecycleAction::Terminate => "session.terminate",
            LifecycleAction::Delete => "session.delete",
            LifecycleAction::Restore => "session.restore",
            LifecycleAction::Restart => "session.restart",
            LifecycleAction::Cancel => "session.cancel",
        }
    }
}

/// Deletes a session whose record is damaged, as far as that can be: it is hidden, its container is stopped, and nothing of it is
/// removed. Once it is mended, it is deleted like any other.
///
/// # Errors
/// The `failure` that told of the damage, where the actor is no administrator or the record is not a session's.
pub async fn delete_damaged(app: &Shared, actor: &Actor, id_or_name: &str, failure: Failure) -> Result<(), Failure> {
    let damage = failure.damage().filter(|damage| actor.role == Role::Admin && damage.table == "sessions");
    let id = damage.and_then(|damage| id_or_name.parse().or_else(|_| damage.id.parse::<SessionId>()).ok());
    let Some(id) = id else { return Err(failure) };
    let (actor, now, app_in_job) = (actor.clone(), app.now(), app.clone());
    let write = app.store.write(move |tx| {
        Box::pin(async move {
            audit::append(tx, now, &actor, LifecycleAction::Delete.action(), &id.to_string()).await?;
            set_aside::delete_damaged(tx, id, now).await?;
            tx.changed(id);
            // Its container is nobody's now.
            tx.after_commit(move || app_in_job.hub.sweep_soon());
            Ok::<_, Failure>(())
        })
    });
    write.await
}

/// Records what is asked of a session's life; the session as it now is.
///
/// # Errors
/// 409 where the state forbids it, 412 where the session is not what the conditions say.
pub async fn apply(
    app: &Shared,
    actor: &Actor,
    id_or_name: String,
    action: LifecycleAction,
    conditions: Conditions,
) -> Result<SessionRow, Failure> {
    let (actor, now) = (actor.clone(), app.now());
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let row = find::session(tx, &actor, &id_or_name, Purpose::Use).await?;
                conditions.check_session(row.edition, row.version)?;
                audit::append(tx, now, &actor, action.action(), &row.id.to_string()).await?;
                if action == LifecycleAction::Restore {
                    refuse_purged(row.purged_at)?;
                }
                let mut change = Change::begin(tx, row, now, actor.name.clone());
                change.step(&action.event()).await?;
                Ok(change.save().await?)
            })
        })
        .await
}
