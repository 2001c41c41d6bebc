//! Ask for checkpoints, list them, look into them, compare them.

use std::io::Read as _;

use raworc_core::checkpoints::Cause;
use raworc_core::events::CheckpointDeleted;
use raworc_core::ids::SessionId;
use raworc_core::limits::{DIFFERENCES_MAX, TEXT_DIFF_BYTES_MAX};
use raworc_core::names;
use raworc_core::permissions::Actor;
use raworc_store::checkpoints::{self, CheckpointRow, Status};
use raworc_store::events;
use raworc_store::layers::LayerRow;
use raworc_store::sessions::SessionRow;
use raworc_store::{Sound, audit};
use raworc_workspace::layers::compare::{self, Difference};
use raworc_workspace::{EntryKind, FileError, OpenEntry};
use tokio_util::sync::CancellationToken;

use super::check::Checks;
use super::find::{self, Purpose};
use crate::app::Shared;
use crate::change::Change;
use crate::error::Failure;
use crate::layers::workspace_access;
use crate::record::save;
use crate::sync::blocking;

/// Asks for a checkpoint and waits for it, for as long as anyone would; then it may still be `pending`.
///
/// # Errors
/// 409 where the session's files are gone, 422 where the label is wrong.
pub async fn request(
    app: &Shared,
    actor: &Actor,
    id_or_name: String,
    label: Option<String>,
) -> Result<CheckpointRow, Failure> {
    let mut checks = Checks::default();
    if let Some(label) = &label {
        checks.check("label", names::check_label(label));
    }
    checks.done()?;
    let (actor, now, app_in_job) = (actor.clone(), app.now(), app.clone());
    let row = app
        .store
        .write(move |tx| {
            Box::pin(async move {
                let row = find::session(tx, &actor, &id_or_name, Purpose::Use).await?;
                workspace_access::refuse_purged(row.purged_at)?;
                audit::append(tx, now, &actor, "checkpoint.create", &row.id.to_string()).await?;
                let mut change = Change::begin(tx, row, now, actor.name.clone());
                let wanted = save::new_row(&mut change.row, Cause::Request, label, &actor.name, now);
                checkpoints::insert(change.tx(), &wanted).await?;
                let session = wanted.session_id;
                change.tx().after_commit(move || app_in_job.checkpoint_queue.enqueue(session, Cause::Request));
                change.save().await?;
                Ok::<_, Failure>(wanted)
            })
        })
        .await?;
    wait(app, row).await
}

/// Waits until a checkpoint is done, one way or the other.
async fn wait(app: &Shared, row: CheckpointRow) -> Result<CheckpointRow, Failure> {
    let mut changes = app.hub.subscribe(row.session_id);
    let wait = async {
        loop {
            let found = get_row(app, row.session_id, row.n).await?;
            if matches!(found.status, Status::Ready | Status::Failed) || changes.changed().await.is_err() {
                return Ok(found);
            }
        }
    };
    match tokio::time::timeout(workspace_access::SAVE_WAIT_MAX, wait).await {
        Ok(found) => found,
        Err(_) => get_row(app, row.session_id, row.n).await,
    }
}

/// A checkpoint of what is there now; the newest one where that is it.
///
/// # Errors
/// Where none could be taken.
pub async fn fresh(app: &Shared, actor: &Actor, row: &SessionRow) -> Result<CheckpointRow, Failure> {
    workspace_access::wait_until_saved(app, row.id).await;
    // What is just being brought to the disk may be what is wanted.
    let saving = {
        let mut connection = app.store.read().await?;
        checkpoints::open_of(&mut connection, row.id).await?.pop()
    };
    if let Some(saving) = saving.filter(|open| open.status == Status::Saving) {
        wait(app, saving).await?;
    }
    let (row, newest) = {
        let mut connection = app.store.read().await?;
        let row = find::session(&mut connection, actor, &row.id.to_string(), Purpose::Read).await?;
        let newest = match checkpoints::newest(&mut connection, row.id).await? {
            Some(newest) if !events::has_spoken(&mut connection, row.id, newest.seq).await? => Some(newest),
            _ => None,
        };
        (row, newest)
    };
    // Whoever rests or waits has saved what it did; then there is nothing to wait for.
    if let Some(newest) = newest
        && newest.layer_id == row.layer_id
        && !workspace_access::is_changed(app, &row).await.map_err(FileError::from)?
    {
        return Ok(newest);
    }
    let row = request(app, actor, row.id.to_string(), None).await?;
    if row.status == Status::Failed {
        let why = row.error.unwrap_or_default();
        return Err(Failure::new(raworc_api::problem::Code::CheckpointFailed, why));
    }
    Ok(row)
}

/// A session's checkpoints, in order.
///
/// # Errors
/// 404 where there is no such session.
pub async fn list(
    app: &Shared,
    actor: &Actor,
    id_or_name: &str,
    after: u64,
    limit: u32,
) -> Result<Sound<CheckpointRow>, Failure> {
    let row = session(app, actor, id_or_name).await?;
    let mut connection = app.store.read().await?;
    Ok(checkpoints::list(&mut connection, row.id, after, limit).await?)
}

/// The checkpoint of this number or label.
///
/// # Errors
/// 404 where there is none.
pub async fn get(app: &Shared, actor: &Actor, id_or_name: &str, version: &str) -> Result<CheckpointRow, Failure> {
    let row = session(app, actor, id_or_name).await?;
    match parse(app, &row, version).await? {
        Version::Now => Err(Failure::not_found("checkpoint", version)),
        Version::Number(n) => get_row(app, row.id, n).await,
    }
}

async fn session(app: &Shared, actor: &Actor, id_or_name: &str) -> Result<SessionRow, Failure> {
    let row = {
        let mut connection = app.store.read().await?;
        find::session(&mut connection, actor, id_or_name, Purpose::Read).await?
    };
    // Who has heard that a message ended sees the checkpoint that was taken then.
    if app.checkpoint_queue.is_pending(row.id) {
        workspace_access::wait_until_saved(app, row.id).await;
        let mut connection = app.store.read().await?;
        return find::session(&mut connection, actor, &row.id.to_string(), Purpose::Read).await;
    }
    Ok(row)
}

async fn get_row(app: &Shared, session: SessionId, n: u64) -> Result<CheckpointRow, Failure> {
    let mut connection = app.store.read().await?;
    let row = checkpoints::find(&mut connection, session, n).await?;
    row.ok_or_else(|| Failure::not_found("checkpoint", &n.to_string()))
}

/// Gives up a checkpoint; the space that only it needs is free again in a while.
///
/// # Errors
/// 404 where there is none, 409 while it is being taken or the session goes back to it.
pub async fn delete(app: &Shared, actor: &Actor, id_or_name: String, n: u64) -> Result<(), Failure> {
    let (actor, now) = (actor.clone(), app.now());
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let row = find::session(tx, &actor, &id_or_name, Purpose::Use).await?;
                audit::append(tx, now, &actor, "checkpoint.delete", &row.id.to_string()).await?;
                let found = checkpoints::find(tx, row.id, n).await?;
                let found = found.ok_or_else(|| Failure::not_found("checkpoint", &n.to_string()))?;
                let is_done = matches!(found.status, Status::Ready | Status::Failed);
                if !is_done || row.machine.rewind == Some(n) {
                    let detail = format!("checkpoint {n} is in use just now; try again when it is not");
                    return Err(Failure::new(raworc_api::problem::Code::InvalidState, detail));
                }
                let mut change = Change::begin(tx, row, now, actor.name.clone());
                save::forget(&mut change, n).await?;
                change.log(CheckpointDeleted { n }).await?;
                change.save().await?;
                Ok(())
            })
        })
        .await
}

/// One that can be used; what is just being taken is waited for.
///
/// # Errors
/// 404 where there is none, 409 where it is not ready.
pub async fn usable(app: &Shared, session: SessionId, n: u64) -> Result<CheckpointRow, Failure> {
    let mut row = get_row(app, session, n).await?;
    if matches!(row.status, Status::Pending | Status::Saving) {
        row = wait(app, row).await?;
    }
    if row.status != Status::Ready {
        let detail = format!("checkpoint {n} is not ready; GET it to see why");
        return Err(Failure::new(raworc_api::problem::Code::InvalidState, detail));
    }
    Ok(row)
}

/// The checkpoint that someone names: a number, a label, or `now` for one of what is there now.
///
/// # Errors
/// 404 where there is none, 409 where it is not ready.
pub async fn named(app: &Shared, actor: &Actor, row: &SessionRow, version: &str) -> Result<CheckpointRow, Failure> {
    match parse(app, row, version).await? {
        Version::Now => fresh(app, actor, row).await,
        Version::Number(n) => usable(app, row.id, n).await,
    }
}

/// The layers of a checkpoint, held.
///
/// # Errors
/// 404 where there is none, 409 where it is not ready.
pub async fn layers(
    app: &Shared,
    session: SessionId,
    n: u64,
) -> Result<(Vec<LayerRow>, crate::layers::pins::LayerPin), Failure> {
    loop {
        let top = usable(app, session, n).await?.layer_id;
        match workspace_access::chain(app, top).await {
            Ok(found) => return Ok(found),
            // It may have been merged with others just now: then it has another layer than a moment ago.
            Err(_) if usable(app, session, n).await?.layer_id != top => {}
            Err(error) => return Err(error),
        }
    }
}

/// A version of a workspace, to be looked into.
///
/// # Errors
/// 404 where there is none.
pub async fn open_version(
    app: &Shared,
    actor: &Actor,
    id_or_name: &str,
    version: &str,
) -> Result<workspace_access::PinnedWorkspace, Failure> {
    let row = session(app, actor, id_or_name).await?;
    let version = parse(app, &row, version).await?;
    open(app, &row, version).await
}

/// A version of a workspace, as people name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Now,
    Number(u64),
}

impl std::fmt::Display for Version {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Now => formatter.write_str("now"),
            Self::Number(n) => n.fmt(formatter),
        }
    }
}

/// What a version's name means: `now`, a number, or a label (of several that have it, the newest).
async fn parse(app: &Shared, row: &SessionRow, text: &str) -> Result<Version, Failure> {
    if text == "now" {
        return Ok(Version::Now);
    }
    // (A sign before it makes it a label.)
    if let Some(n) = text.parse().ok().filter(|_| text.starts_with(|first: char| first.is_ascii_digit())) {
        return Ok(Version::Number(n));
    }
    let mut connection = app.store.read().await?;
    let found = checkpoints::labelled(&mut connection, row.id, text).await?;
    let found = found.ok_or_else(|| Failure::not_found("checkpoint", text))?;
    Ok(Version::Number(found.n))
}

/// What differs between two versions.
pub struct Differences {
    /// The earlier one.
    pub from: String,
    /// The paths.
    pub items: Vec<Difference>,
    /// Whether there are more.
    pub is_truncated: bool,
    /// One file's difference as text.
    pub unified: Option<String>,
    /// Whether that file is no text.
    pub is_binary: bool,
}

/// Compares version `to` with `from`, which may be another session's (`SESSION@VERSION`); where that is absent, with the
/// checkpoint before it.
///
/// # Errors
/// 404 where there is no such version.
pub async fn diff(
    app: &Shared,
    actor: &Actor,
    id_or_name: &str,
    (from, to): (Option<String>, &str),
    path: Option<String>,
) -> Result<Differences, Failure> {
    let row = session(app, actor, id_or_name).await?;
    let to = parse(app, &row, to).await?;
    let (old, from) = match from.as_deref().map(|from| from.rsplit_once('@').ok_or(from)) {
        Some(Ok((other, version))) => {
            let other = session(app, actor, other).await?;
            let version = parse(app, &other, version).await?;
            (open(app, &other, version).await?, format!("{}@{version}", other.name))
        }
        Some(Err(version)) => {
            let version = parse(app, &row, version).await?;
            (open(app, &row, version).await?, version.to_string())
        }
        None => {
            let version = before(app, &row, to).await?.map(Version::Number);
            let name = version.map_or_else(|| "empty".to_owned(), |version| version.to_string());
            let opened = match version {
                Some(version) => open(app, &row, version).await?,
                None => workspace_access::open_layers(app, Vec::new(), app.layer_pins.pin([])).await?,
            };
            (opened, name)
        }
    };
    let new = open(app, &row, to).await?;
    // Whoever asks may go away; then it ends, and leaves its place.
    let place = app.comparisons.of(actor.account).acquire_owned().await;
    let place = place.map_err(|error| FileError::Io(std::io::Error::other(error)))?;
    let is_over = CancellationToken::new();
    let _ends = is_over.clone().drop_guard();
    let work = move || {
        let _place = place;
        let goes_on = || !is_over.is_cancelled();
        let Some(path) = path else {
            let (items, is_truncated) = compare::compare(old.side(), new.side(), DIFFERENCES_MAX, &goes_on)?;
            return Ok((items, is_truncated, None, false));
        };
        let is_in = |side: &raworc_workspace::Workspace| match side.open_entry(path.as_bytes(), true) {
            Err(FileError::NotFound) => Ok(false),
            Err(error @ FileError::BadPath(_)) => Err(error),
            _ => Ok(true),
        };
        if !is_in(&old)? && !is_in(&new)? {
            return Err(FileError::NotFound);
        }
        let items = Vec::from_iter(compare::compare_one(old.side(), new.side(), &path, &goes_on)?);
        // Where a link leads is another path's business.
        if items.iter().any(|item| item.kind == EntryKind::Symlink) {
            return Ok((items, false, None, false));
        }
        let texts = [&old, &new].map(|side| read_text(side, &path));
        let unified = match texts {
            [Ok(old), Ok(new)] => compare::text(&path, old.as_deref(), new.as_deref()),
            [Err(error), _] | [_, Err(error)] => return Err(error),
        };
        let is_binary = unified.is_none();
        Ok((items, false, unified.filter(|text| !text.is_empty()), is_binary))
    };
    let (items, is_truncated, unified, is_binary) = blocking(work).await.map_err(FileError::Io)??;
    Ok(Differences { from, items, is_truncated, unified, is_binary })
}

/// A file's bytes, if there is such a file; one that is too long for a comparison is no text.
fn read_text(side: &raworc_workspace::Workspace, path: &str) -> Result<Option<Vec<u8>>, FileError> {
    match side.open_entry(path.as_bytes(), true) {
        Ok(OpenEntry::File(file, version)) if version.size <= TEXT_DIFF_BYTES_MAX => {
            let mut bytes = Vec::new();
            file.take(TEXT_DIFF_BYTES_MAX).read_to_end(&mut bytes)?;
            Ok(Some(bytes))
        }
        Ok(OpenEntry::File(..)) => Ok(Some(vec![0])),
        Ok(OpenEntry::Directory(_) | OpenEntry::Symlink(..)) | Err(FileError::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The checkpoint before a version.
async fn before(app: &Shared, row: &SessionRow, version: Version) -> Result<Option<u64>, Failure> {
    let mut connection = app.store.read().await?;
    let kept = checkpoints::kept(&mut connection, row.id).await?;
    let is_older = |n: &u64| match version {
        Version::Now => true,
        Version::Number(to) => *n < to,
    };
    Ok(kept.into_iter().map(|(n, _)| n).filter(is_older).max())
}

async fn open(app: &Shared, row: &SessionRow, version: Version) -> Result<workspace_access::PinnedWorkspace, Failure> {
    match version {
        Version::Now => workspace_access::open_now(app, row).await,
        Version::Number(n) => {
            let (chain, hold) = layers(app, row.id, n).await?;
            workspace_access::open_layers(app, chain.into_iter().map(|layer| layer.id).collect(), hold).await
        }
    }
}
