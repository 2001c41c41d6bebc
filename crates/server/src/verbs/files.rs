//! Read and change files of a session's workspace, whatever its state.

use std::fs::File;
use std::io::Read;

use raworc_api::problem::Code;
use raworc_core::ids::ContainerId;
use raworc_core::limits::FILE_BYTES_MAX;
use raworc_core::permissions::Actor;
use raworc_store::sessions::SessionRow;
use raworc_store::{StoreError, audit};
use raworc_workspace::{FileError, Found};
use serde_json::json;

use super::find::{self, Purpose};
use crate::app::{Shared, blocking};
use crate::change::Change;
use crate::error::Failure;
use crate::reconcile::quotas;
use crate::trees;

/// What is at `path`.
///
/// # Errors
/// 404 where there is nothing.
pub async fn look(app: &Shared, actor: &Actor, id_or_name: &str, path: String) -> Result<Found, Failure> {
    let row = session(app, actor, id_or_name, Purpose::Read).await?;
    trees::read(trees::open_now(app, &row).await?, move |workspace| workspace.look(&path)).await
}

/// Writes a file; true where it is new.
///
/// # Errors
/// 413 where there are too many bytes, 422 where the path leads out of the workspace.
pub async fn write(
    app: &Shared,
    actor: &Actor,
    id_or_name: &str,
    path: String,
    mut content: impl Read + Send + 'static,
) -> Result<bool, Failure> {
    let row = session(app, actor, id_or_name, Purpose::Use).await?;
    refuse_ended(&row)?;
    let written = path.clone();
    // As slowly as it comes, it holds nobody up; it is put into the workspace when it is there.
    let shelf = app.trees.shelf.clone();
    let mut content = blocking(move || shelf.spool(&mut content, FILE_BYTES_MAX)).await.map_err(FileError::Io)??;
    let turn = app.trees.turn(row.id).await;
    // Others may have written, or raised its limit, before it was our turn.
    let row = session(app, actor, &row.id.to_string(), Purpose::Use).await?;
    refuse_over_quota(app, &row, &content).await?;
    let is_new =
        trees::change(app, turn, move |workspace| workspace.write(&path, &mut content, FILE_BYTES_MAX)).await?;
    note(app, actor, &row, "file.written", written).await?;
    Ok(is_new)
}

/// Removes a file or directory.
///
/// # Errors
/// 404 where there is nothing.
pub async fn remove(app: &Shared, actor: &Actor, id_or_name: &str, path: String) -> Result<(), Failure> {
    let row = session(app, actor, id_or_name, Purpose::Use).await?;
    refuse_ended(&row)?;
    let removed = path.clone();
    let turn = app.trees.turn(row.id).await;
    trees::change(app, turn, move |workspace| workspace.remove(&path)).await?;
    note(app, actor, &row, "file.deleted", removed).await
}

async fn session(app: &Shared, actor: &Actor, id_or_name: &str, purpose: Purpose) -> Result<SessionRow, Failure> {
    let mut connection = app.store.read().await?;
    find::session(&mut connection, actor, id_or_name, purpose).await
}

/// A session with a limit takes no more than that from outside, either.
async fn refuse_over_quota(app: &Shared, row: &SessionRow, content: &File) -> Result<(), Failure> {
    let Some(limit) = app.ceilings.disk(row.settings.disk) else { return Ok(()) };
    let container = ContainerId { session: row.id, generation: row.machine.generation };
    let bytes = content.metadata().map_err(FileError::from)?.len();
    if quotas::used(app, row, container).await?.saturating_add(bytes) <= limit.0 {
        return Ok(());
    }
    let detail = format!("the session may take {} bytes of the disk; remove something, or give it more", limit.0);
    Err(Failure::new(Code::DiskQuotaExceeded, detail))
}

/// What has ended is kept as it is.
fn refuse_ended(row: &SessionRow) -> Result<(), Failure> {
    use raworc_core::session::Refused;
    if row.machine.deleted_at.is_some() {
        return Err(Refused::Deleted.into());
    }
    if row.machine.terminated.is_some() {
        return Err(Refused::Terminated.into());
    }
    Ok(())
}

async fn note(app: &Shared, actor: &Actor, row: &SessionRow, kind: &'static str, path: String) -> Result<(), Failure> {
    let (actor, now, session) = (actor.clone(), app.now(), row.id);
    app.store
        .write(move |transaction| {
            Box::pin(async move {
                audit::append(transaction.connection(), now, &actor, kind, &session.to_string()).await?;
                let mut change = Change::load(transaction, session, now, actor.name).await?;
                change.log(kind, json!({ "path": path })).await?;
                change.save().await?;
                Ok(())
            })
        })
        .await
        .map_err(|failure| match failure {
            Failure::Store(StoreError::DiskFull) => Failure::new(
                Code::DiskFull,
                "the file is changed, but the disk is full: no event says so. Free some space",
            ),
            other => other,
        })
}
