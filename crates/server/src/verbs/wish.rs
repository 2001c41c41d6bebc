//! Wishes: pause, resume, terminate, delete, restore, restart, cancel. Recorded at once; the machine walks towards them.

use raworc_core::permissions::Actor;
use raworc_core::session::{Event, TerminationReason};
use raworc_store::audit;
use raworc_store::sessions::SessionRow;

use super::find::{self, Purpose};
use crate::app::Shared;
use crate::change::Change;
use crate::conditions::Conditions;
use crate::error::Failure;
use crate::trees::refuse_purged;

/// What someone wants of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
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

impl Wish {
    fn event(self) -> Event {
        match self {
            Wish::Pause => Event::Pause,
            Wish::Resume => Event::Resume,
            Wish::Terminate => Event::Terminate(TerminationReason::Manual),
            Wish::Delete => Event::Delete,
            Wish::Restore => Event::Restore,
            Wish::Restart => Event::Restart,
            Wish::Cancel => Event::Cancel,
        }
    }

    fn action(self) -> &'static str {
        match self {
            Wish::Pause => "session.pause",
            Wish::Resume => "session.resume",
            Wish::Terminate => "session.terminate",
            Wish::Delete => "session.delete",
            Wish::Restore => "session.restore",
            Wish::Restart => "session.restart",
            Wish::Cancel => "session.cancel",
        }
    }
}

/// Records a wish; the session as it now is.
///
/// # Errors
/// 409 where the state forbids it, 412 where the session is not what the conditions say.
pub async fn wish(
    app: &Shared,
    actor: &Actor,
    id_or_name: String,
    wish: Wish,
    conditions: Conditions,
) -> Result<SessionRow, Failure> {
    let (actor, now) = (actor.clone(), app.now());
    app.store
        .write(move |transaction| {
            Box::pin(async move {
                let row = find::session(transaction.connection(), &actor, &id_or_name, Purpose::Use).await?;
                conditions.check_version(row.version)?;
                audit::append(transaction.connection(), now, &actor, wish.action(), &row.id.to_string()).await?;
                if wish == Wish::Restore {
                    refuse_purged(row.purged_at)?;
                }
                let mut change = Change::begin(transaction, row, now, actor.name.clone());
                change.step(&wish.event()).await?;
                Ok(change.save().await?)
            })
        })
        .await
}
