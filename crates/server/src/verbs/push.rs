//! Send checkpoints to registries, and into archives.

use std::io::Write;

use raworc_api::image::{PushCheckpoint, Pushed, TransferProgress};
use raworc_core::conversation::standing;
use raworc_core::permissions::Actor;
use raworc_oci::{Descriptor, Digest, Error, Image, Reference, Registry};
use raworc_store::checkpoints::CheckpointRow;
use raworc_store::sessions::SessionRow;
use raworc_store::{agents, audit, messages};
use raworc_workspace::FileError;
use serde_json::json;
use tokio::sync::OwnedRwLockReadGuard;

use super::checkpoints as versions;
use super::find::{self, Purpose};
use super::images;
use super::portable::Portable;
use crate::app::{Shared, blocking};
use crate::change::Change;
use crate::error::Failure;
use crate::images::{Tell, pack};
use crate::trees::Hold;

/// Says in the manifest what the image is of.
const TITLE: &str = "org.opencontainers.image.title";

/// Sends a checkpoint to a registry.
///
/// # Errors
/// 404 where there is no such checkpoint; what the registry says. What has been sent stays there, and is not sent again.
pub async fn push(
    app: &Shared,
    actor: &Actor,
    (id_or_name, version): (&str, &str),
    body: PushCheckpoint,
    tell: &Tell,
) -> Result<Pushed, Failure> {
    let (row, checkpoint) = find(app, actor, id_or_name, version).await?;
    let reference: Reference = body.reference.parse()?;
    let registry = app.images.registry(&reference, body.credentials).await?;
    let digest = send(app, &row, &checkpoint, &registry, tell).await?;
    let pushed = Pushed { reference: reference.to_string(), digest: digest.to_string(), n: checkpoint.n };
    note(app, actor, &row, &pushed).await?;
    Ok(pushed)
}

async fn find(
    app: &Shared,
    actor: &Actor,
    id_or_name: &str,
    version: &str,
) -> Result<(SessionRow, CheckpointRow), Failure> {
    let row = {
        let mut connection = app.store.read().await?;
        find::session(&mut connection, actor, id_or_name, Purpose::Use).await?
    };
    let checkpoint = versions::named(app, actor, &row, version).await?;
    Ok((row, checkpoint))
}

/// Sends a checkpoint of a session.
///
/// # Errors
/// As [`push`].
pub async fn send(
    app: &Shared,
    row: &SessionRow,
    checkpoint: &CheckpointRow,
    registry: &Registry,
    tell: &Tell,
) -> Result<Digest, Failure> {
    let passing = app.images.passing().await;
    let (mut manifest, hold) = prepare(app, row, checkpoint, Some(registry), tell).await?;
    let told = tell.clone();
    let progress = move |what: &str, done_bytes: u64, total_bytes: u64| {
        told(TransferProgress { what: format!("pushing {what}"), done_bytes, total_bytes });
    };
    let mut sent = registry.push(app.images.layout(), &manifest.digest, &progress).await;
    if let Err(Error::Damaged { digest } | Error::Missing { digest }) = &sent {
        // What lay here was spoiled, or removed; the layer itself is still there.
        app.images.layout().delete(digest)?;
        (manifest, _) = prepare(app, row, checkpoint, Some(registry), tell).await?;
        sent = registry.push(app.images.layout(), &manifest.digest, &progress).await;
    }
    drop((passing, hold));
    sent?;
    images::served(app, manifest.digest).await;
    Ok(manifest.digest)
}

/// Puts the image of a checkpoint into the layout, but for layers that the registry has.
async fn prepare(
    app: &Shared,
    row: &SessionRow,
    checkpoint: &CheckpointRow,
    registry: Option<&Registry>,
    tell: &Tell,
) -> Result<(Descriptor, Hold), Failure> {
    let (chain, hold) = versions::layers(app, row.id, checkpoint.n).await?;
    let (agents, spoken) = {
        let mut connection = app.store.read().await?;
        let ranges = standing(checkpoint.seq, &row.rewinds);
        (
            agents::of_session(&mut connection, row.id).await?,
            messages::ended_in(&mut connection, row.id, &ranges).await?,
        )
    };
    let layers = pack(app, &chain, registry, tell).await?;
    let agents = agents.into_iter().map(|agent| agent.definition.name).collect();
    let portable = Portable::of(row, agents, checkpoint, spoken);
    let image = Image {
        layers,
        created: Some(checkpoint.created_at.to_timestamp().to_string()),
        annotations: [(TITLE.to_owned(), format!("{} @{}", row.name, checkpoint.n))].into(),
        extra: Some(serde_json::to_value(portable).map_err(raworc_store::StoreError::from)?),
        ..Image::default()
    };
    let layout = app.images.layout().clone();
    let manifest = blocking(move || image.store(&layout)).await.map_err(FileError::Io)??;
    Ok((manifest, hold))
}

async fn note(app: &Shared, actor: &Actor, row: &SessionRow, pushed: &Pushed) -> Result<(), Failure> {
    let (actor, now, session) = (actor.clone(), app.now(), row.id);
    let data = json!({ "n": pushed.n, "reference": pushed.reference, "digest": pushed.digest });
    let write = app.store.write(move |transaction| {
        Box::pin(async move {
            audit::append(transaction.connection(), now, &actor, "checkpoint.push", &session.to_string()).await?;
            let mut change = Change::load(transaction, session, now, actor.name).await?;
            change.log("checkpoint.pushed", data).await?;
            change.save().await?;
            Ok::<_, Failure>(())
        })
    });
    write.await
}

/// A checkpoint that is ready to be written into an archive.
pub struct Export {
    app: Shared,
    manifest: Descriptor,
    name: String,
    passing: OwnedRwLockReadGuard<()>,
}

/// Packs a checkpoint for an archive.
///
/// # Errors
/// 404 where there is no such checkpoint.
pub async fn export(app: &Shared, actor: &Actor, id_or_name: &str, version: &str) -> Result<Export, Failure> {
    let (row, checkpoint) = find(app, actor, id_or_name, version).await?;
    let passing = app.images.passing().await;
    let tell: Tell = std::sync::Arc::new(|_| {});
    let (manifest, _hold) = prepare(app, &row, &checkpoint, None, &tell).await?;
    Ok(Export { app: app.clone(), manifest, name: format!("{}-{}", row.id, checkpoint.n), passing })
}

impl Export {
    /// What the file may be called.
    pub fn file_name(&self) -> String {
        format!("{}.tar", self.name)
    }

    /// Writes it; blocks.
    ///
    /// # Errors
    /// Where it cannot be written, or a blob is spoiled. What has been written then is no archive.
    pub fn write(self, writer: impl Write) -> Result<(), Error> {
        let layout = self.app.images.layout();
        raworc_oci::export(layout, &self.manifest, Some(&self.name), writer, &mut |_, _, _| {})?;
        drop(self.passing);
        self.app.images.served(&self.manifest.digest);
        Ok(())
    }
}
