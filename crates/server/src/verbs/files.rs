//! Read and change files of a session's workspace, whatever its state.

use std::io::Read;

use raworc_core::limits::FILE_BYTES_MAX;
use raworc_core::permissions::Actor;
use raworc_store::audit;
use raworc_store::sessions::SessionRow;
use raworc_workspace::{FileError, Found, Workspace};
use serde_json::json;

use super::find::{self, Purpose};
use crate::app::{Shared, blocking};
use crate::change::Change;
use crate::error::Failure;

/// What is at `path`.
///
/// # Errors
/// 404 where there is nothing.
pub async fn look(app: &Shared, actor: &Actor, id_or_name: &str, path: String) -> Result<Found, Failure> {
    let row = session(app, actor, id_or_name, Purpose::Read).await?;
    in_workspace(app, &row, move |workspace| workspace.look(&path)).await
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
    let is_new = in_workspace(app, &row, move |workspace| workspace.write(&path, &mut content, FILE_BYTES_MAX)).await?;
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
    in_workspace(app, &row, move |workspace| workspace.remove(&path)).await?;
    note(app, actor, &row, "file.deleted", removed).await
}

async fn session(app: &Shared, actor: &Actor, id_or_name: &str, purpose: Purpose) -> Result<SessionRow, Failure> {
    let mut connection = app.store.read().await?;
    find::session(&mut connection, actor, id_or_name, purpose).await
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

async fn in_workspace<T: Send + 'static>(
    app: &Shared,
    row: &SessionRow,
    work: impl FnOnce(&Workspace) -> Result<T, FileError> + Send + 'static,
) -> Result<T, Failure> {
    let (workspaces, session) = (app.workspaces.clone(), row.id);
    let outcome = blocking(move || {
        workspaces.create(session)?;
        work(&workspaces.get(session)?)
    })
    .await
    .map_err(FileError::Io)?;
    Ok(outcome?)
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
}
