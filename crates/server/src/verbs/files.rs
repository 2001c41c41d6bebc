//! Read and change files of a session's workspace, whatever its state.

use std::fs::File;
use std::future::Future;
use std::io::Read;

use raworc_api::problem::Code;
use raworc_core::events::{FileDeleted, FileWritten, LogEvent};
use raworc_core::ids::ContainerId;
use raworc_core::limits::FILE_BYTES_MAX;
use raworc_core::permissions::Actor;
use raworc_store::sessions::SessionRow;
use raworc_store::{StoreError, audit};
use raworc_workspace::{
    Entries, ExistingEntry, FileError, OpenEntry, Version, Workspace, WriteOptions, WriteResult, list,
};
use tokio::sync::oneshot;

use super::checkpoints;
use super::find::{self, Purpose};
use crate::app::Shared;
use crate::change::Change;
use crate::conditions::{self, Conditions};
use crate::error::Failure;
use crate::layers::disk_use;
use crate::layers::workspace_access;
use crate::sync::blocking;
use crate::view;

/// What someone wants to see.
pub struct Look {
    /// From the workspace down.
    pub path: Vec<u8>,
    /// Whether the last name is followed where it is a link.
    pub follow: bool,
    /// Of a directory: the name after which to begin.
    pub after: Option<Vec<u8>>,
    /// Of a directory: most entries.
    pub entries_max: usize,
}

/// What is there.
pub enum Looked {
    /// A file, open.
    File(File, Version),
    /// A link, and where it points.
    Symlink(Vec<u8>, Version),
    /// A page of a directory.
    Directory(Entries),
}

impl Look {
    /// Looks.
    ///
    /// # Errors
    /// Where there is nothing.
    pub fn run(&self, workspace: &Workspace) -> Result<Looked, FileError> {
        Ok(match workspace.open_entry(&self.path, self.follow)? {
            OpenEntry::File(file, version) => Looked::File(file, version),
            OpenEntry::Symlink(target, version) => Looked::Symlink(target, version),
            OpenEntry::Directory(directory) => {
                Looked::Directory(list(&directory, self.after.as_deref(), self.entries_max)?)
            }
        })
    }
}

/// A workspace as it is now, or as of a version, to be looked into.
///
/// # Errors
/// 404 where there is none.
pub async fn open(
    app: &Shared,
    actor: &Actor,
    id_or_name: &str,
    version: Option<&str>,
) -> Result<workspace_access::PinnedWorkspace, Failure> {
    match version {
        Some(version) => checkpoints::open_version(app, actor, id_or_name, version).await,
        None => workspace_access::open_now(app, &session(app, actor, id_or_name, Purpose::Read).await?).await,
    }
}

/// A file that is to be written.
pub struct Upload<R> {
    /// From the workspace down.
    pub path: Vec<u8>,
    /// Whether a link there is written through.
    pub follow: bool,
    /// The permission bits it is to have.
    pub mode: Option<u32>,
    /// What must hold.
    pub conditions: Conditions,
    /// The bytes.
    pub content: R,
}

/// Writes a file.
///
/// # Errors
/// 412 where there is not what the conditions say, 413 where there are too many bytes, 422 where the path leads out of the
/// workspace.
pub async fn write(
    app: &Shared,
    actor: &Actor,
    id_or_name: &str,
    upload: Upload<impl Read + Send + 'static>,
) -> Result<WriteResult, Failure> {
    let row = session(app, actor, id_or_name, Purpose::Use).await?;
    refuse_ended(&row)?;
    let Upload { path, follow, mode, conditions, mut content } = upload;
    let written = path.clone();
    // As slowly as it comes, it holds nobody up; it is put into the workspace when it is there.
    let layer_store = app.layer_store.clone();
    let left = room(app, &row).await?.filter(|left| *left < FILE_BYTES_MAX);
    let bytes_max = left.unwrap_or(FILE_BYTES_MAX);
    let spooled = blocking(move || layer_store.spool(&mut content, bytes_max)).await.map_err(FileError::Io)?;
    let mut content = match spooled {
        Err(FileError::TooLarge) if left.is_some() => return Err(over_quota(app, &row)),
        spooled => spooled?,
    };
    let guard = app.session_locks.lock(row.id).await;
    // Others may have written, or raised its limit, before the lock was ours.
    let row = session(app, actor, &row.id.to_string(), Purpose::Use).await?;
    refuse_over_quota(app, &row, content.metadata().map_err(FileError::from)?.len()).await?;
    let work = move |workspace: &Workspace| {
        let allows = |present: Option<&ExistingEntry<'_>>| allow(&conditions, present);
        let how = WriteOptions { follow, mode, bytes_max: FILE_BYTES_MAX, allows: &allows };
        workspace.write(&path, &mut content, &how)
    };
    let (in_task, actor) = (app.clone(), actor.clone());
    to_its_end(app, async move {
        let outcome = workspace_access::change(&in_task, guard, work).await?;
        note(&in_task, &actor, &row, Noted::Written, &written).await?;
        Ok(outcome)
    })
    .await
}

/// Runs what changes files and notes it in a task of its own: it is noted also where the client goes away meanwhile, or its token is
/// revoked.
pub(super) async fn to_its_end<T: Send + 'static>(
    app: &Shared,
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    let (sender, done) = oneshot::channel();
    app.tasks.spawn(async move {
        // Nobody may wait for it any more.
        let _ = sender.send(work.await);
    });
    let panicked = |_| Err(Failure::new(Code::Internal, "the server could not do this; its log says why"));
    done.await.unwrap_or_else(panicked)
}

/// Whether what is there is what conditions say.
pub(super) fn allow(conditions: &Conditions, present: Option<&ExistingEntry<'_>>) -> Result<bool, FileError> {
    if conditions.is_empty() {
        return Ok(true);
    }
    let version = present.map(ExistingEntry::version).transpose()?;
    Ok(conditions.allow(version.map(|version| described(version.as_ref())).as_ref()))
}

/// What conditions are about, of a file; directories have no version.
pub fn described(version: Option<&Version>) -> conditions::Present {
    conditions::Present {
        tag: version.map(|version| version.tag.clone()),
        modified: version.map(|version| version.modified.0),
    }
}

/// Removes a file or directory; of a link, the link itself.
///
/// # Errors
/// 404 where there is nothing, 412 where it is not what the conditions say.
pub async fn remove(
    app: &Shared,
    actor: &Actor,
    id_or_name: &str,
    path: Vec<u8>,
    conditions: Conditions,
) -> Result<(), Failure> {
    let row = session(app, actor, id_or_name, Purpose::Use).await?;
    refuse_ended(&row)?;
    let removed = path.clone();
    let guard = app.session_locks.lock(row.id).await;
    let work = move |workspace: &Workspace| {
        workspace.remove(&path, &|present: Option<&ExistingEntry<'_>>| allow(&conditions, present))
    };
    let (in_task, actor) = (app.clone(), actor.clone());
    to_its_end(app, async move {
        workspace_access::change(&in_task, guard, work).await?;
        note(&in_task, &actor, &row, Noted::Deleted, &removed).await
    })
    .await
}

pub(super) async fn session(
    app: &Shared,
    actor: &Actor,
    id_or_name: &str,
    purpose: Purpose,
) -> Result<SessionRow, Failure> {
    let mut connection = app.store.read().await?;
    find::session(&mut connection, actor, id_or_name, purpose).await
}

/// A session with a limit takes no more than that from outside, either.
pub(crate) async fn refuse_over_quota(app: &Shared, row: &SessionRow, bytes: u64) -> Result<(), Failure> {
    match room(app, row).await? {
        Some(left) if left < bytes => Err(over_quota(app, row)),
        _ => Ok(()),
    }
}

/// How many bytes a session may still take; none where it has no limit. One that is over its limit takes nothing, not even what is empty.
pub(super) async fn room(app: &Shared, row: &SessionRow) -> Result<Option<u64>, Failure> {
    let Some(limit) = app.ceilings.disk(row.settings.disk) else { return Ok(None) };
    let container = ContainerId { session: row.id, generation: row.machine.generation };
    let left = limit.0.checked_sub(disk_use::used(app, row, container).await?);
    left.map(Some).ok_or_else(|| over_quota(app, row))
}

/// Says that a session has no room for what is to be written.
pub(super) fn over_quota(app: &Shared, row: &SessionRow) -> Failure {
    let limit = app.ceilings.disk(row.settings.disk).map_or(0, |limit| limit.0);
    let detail = format!("the session may take {limit} bytes of the disk; remove something, or give it more");
    Failure::new(Code::DiskQuotaExceeded, detail)
}

/// What has ended is kept as it is.
pub(crate) fn refuse_ended(row: &SessionRow) -> Result<(), Failure> {
    use raworc_core::session::Refused;
    if row.machine.deleted_at.is_some() {
        return Err(Refused::Deleted.into());
    }
    if row.machine.terminated.is_some() {
        return Err(Refused::Terminated.into());
    }
    Ok(())
}

/// What was done to a file from outside.
#[derive(Clone, Copy)]
pub(super) enum Noted {
    Written,
    Deleted,
}

pub(super) async fn note(
    app: &Shared,
    actor: &Actor,
    row: &SessionRow,
    what: Noted,
    path: &[u8],
) -> Result<(), Failure> {
    let (path, path_bytes) = view::name(path.strip_prefix(b"/").unwrap_or(path));
    let event: LogEvent = match what {
        Noted::Written => FileWritten { path, path_bytes }.into(),
        Noted::Deleted => FileDeleted { path, path_bytes }.into(),
    };
    let (actor, now, session) = (actor.clone(), app.now(), row.id);
    app.store
        .write(move |tx| {
            Box::pin(async move {
                audit::append(tx, now, &actor, event.kind(), &session.to_string()).await?;
                let mut change = Change::load(tx, session, now, actor.name).await?;
                change.log(event).await?;
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
