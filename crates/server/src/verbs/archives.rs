//! Directories of a workspace as archives, in both directions.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName};
use raworc_api::image::LEFT_OUT_HEADER;
use raworc_core::limits::{ARCHIVE_BYTES_MAX, ARCHIVE_ENTRIES_MAX};
use raworc_core::permissions::Actor;
use raworc_workspace::{
    ArchiveSize, ExistingEntry, FileError, LayerStore, PackSource, UnpackOptions, UnpackStats, Workspace, measure,
};

use super::files::{allow, note, open, over_quota, refuse_ended, refuse_over_quota, room, session, to_its_end};
use super::find::Purpose;
use crate::app::Shared;
use crate::conditions::Conditions;
use crate::error::Failure;
use crate::layers::workspace_access::{self, PinnedWorkspace};
use crate::sync::blocking;
use crate::transfers::outgoing;

/// How much of an archive is read at once, in bytes.
const BUFFER_BYTES: usize = 64 * 1024;

/// What an archive may have in it beside what a session may still take, in bytes: headers, and what is left out. (Data takes twice as much of
/// it at most, as it begins in the middle of blocks.)
const HEADERS_BYTES: u64 = 16 * 1024 * 1024;

/// Something of a workspace that is to be written as a tar.
pub struct Outgoing {
    workspace: PinnedWorkspace,
    packing: PackSource,
}

impl Outgoing {
    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.packing.is_directory()
    }

    /// The tar, as it is made, with a trailer that says how much is left out of it.
    ///
    /// # Errors
    /// 429 or 503 where too many are made already.
    pub async fn body(self, app: &Shared, actor: &Actor) -> Result<Body, Failure> {
        let place = app.budgets.download(actor.account).await?;
        let Self { workspace, packing } = self;
        outgoing::body(app, move |out| {
            let outcome = packing.write(out);
            drop((workspace, place));
            let packed = outcome.map_err(io::Error::other)?;
            Ok(HeaderMap::from_iter([(HeaderName::from_static(LEFT_OUT_HEADER), packed.left_out.into())]))
        })
        .await
    }
}

/// What is at a path, as a tar.
///
/// # Errors
/// 404 where there is nothing.
pub async fn pack(
    app: &Shared,
    actor: &Actor,
    (id_or_name, version): (&str, Option<&str>),
    path: Vec<u8>,
    follow: bool,
) -> Result<Outgoing, Failure> {
    let workspace = open(app, actor, id_or_name, version).await?;
    let find = move || workspace.pack_source(&path, follow).map(|packing| Outgoing { workspace, packing });
    Ok(blocking(find).await.map_err(FileError::Io)??)
}

/// An archive that is to be unpacked.
pub struct Incoming<R> {
    /// The directory, from the workspace down.
    pub path: Vec<u8>,
    /// Whether a link there is followed.
    pub follow: bool,
    /// What must hold of the directory.
    pub conditions: Conditions,
    /// The archive.
    pub content: R,
}

/// Unpacks an archive into a directory.
///
/// # Errors
/// 409 where something is in its way, 412 where there is not what the conditions say, 413 where it is too large, 422 where the
/// archive cannot be used, or the path leads out of the workspace.
pub async fn unpack(
    app: &Shared,
    actor: &Actor,
    id_or_name: &str,
    incoming: Incoming<impl Read + Send + 'static>,
) -> Result<UnpackStats, Failure> {
    let row = session(app, actor, id_or_name, Purpose::Use).await?;
    refuse_ended(&row)?;
    let Incoming { path, follow, conditions, content } = incoming;
    let unpacked_at = path.clone();
    // As slowly as it comes, it holds nobody up; and nothing is changed before it is there, and is known to be one.
    let layer_store = app.layer_store.clone();
    let left = room(app, &row).await?;
    let data_max = left.map_or(u64::MAX, |left| left.saturating_mul(2).saturating_add(HEADERS_BYTES));
    let received = blocking(move || receive(&layer_store, content, data_max)).await.map_err(FileError::Io)??;
    let (archive, measured) = received.ok_or_else(|| over_quota(app, &row))?;
    let guard = app.session_locks.lock(row.id).await;
    // Others may have written, or raised its limit, before the lock was ours.
    let row = session(app, actor, &row.id.to_string(), Purpose::Use).await?;
    refuse_over_quota(app, &row, measured.disk_bytes).await?;
    let layer_store = app.layer_store.clone();
    let work = move |workspace: &Workspace| {
        layer_store.free_space_guard().charge(measured.disk_bytes)?;
        let has_begun = Cell::new(false);
        let allows = |present: Option<&ExistingEntry<'_>>| {
            has_begun.set(allow(&conditions, present)?);
            Ok(has_begun.get())
        };
        let archive = BufReader::with_capacity(BUFFER_BYTES, archive);
        let outcome = workspace.unpack(&path, follow, archive, &unpacking(), &allows);
        Ok((outcome, has_begun.get()))
    };
    let (in_task, actor) = (app.clone(), actor.clone());
    to_its_end(app, async move {
        let (outcome, has_begun) = workspace_access::change(&in_task, guard, work).await?;
        if has_begun {
            note(&in_task, &actor, &row, "file.written", &unpacked_at).await?;
        }
        outcome.map_err(|error| if has_begun { half_done(error) } else { error.into() })
    })
    .await
}

fn unpacking() -> UnpackOptions {
    let (bytes_max, entries_max) = (ARCHIVE_BYTES_MAX, ARCHIVE_ENTRIES_MAX);
    UnpackOptions { bytes_max, entries_max, mode_mask: 0o7777, name: None }
}

/// The archive, when it is there and has been looked through; nothing where more than `data_max` bytes of it are not zeros.
fn receive(
    layer_store: &LayerStore,
    mut content: impl Read,
    data_max: u64,
) -> Result<Option<(File, ArchiveSize)>, FileError> {
    let Some(mut archive) = layer_store.spool_sparse(&mut content, ARCHIVE_BYTES_MAX, data_max)? else {
        return Ok(None);
    };
    let measured = measure(BufReader::with_capacity(BUFFER_BYTES, &archive), &unpacking())?;
    archive.rewind()?;
    Ok(Some((archive, measured)))
}

/// Says that not all has been left as it was.
fn half_done(error: FileError) -> Failure {
    let is_full = matches!(error, FileError::DiskFull);
    let mut problem = Failure::from(error).into_problem();
    if is_full {
        problem.detail = "the disk is full, or the session has what it may take of it".to_owned();
    }
    problem.detail.push_str("; what comes before that in the archive is unpacked, and the rest is not");
    problem.into()
}
