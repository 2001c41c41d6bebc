//! Send checkpoints to registries, and into archives.

use std::io::Write;

use raworc_api::image::{PushCheckpoint, Pushed, TransferProgress};
use raworc_core::conversation::standing;
use raworc_core::events::CheckpointPushed;
use raworc_core::ids::AccountId;
use raworc_core::permissions::Actor;
use raworc_oci::{Descriptor, Digest, Error, Image, Reference, Registry};
use raworc_store::checkpoints::CheckpointRow;
use raworc_store::layers::LayerRow;
use raworc_store::sessions::{self, SessionRow};
use raworc_store::{agents, audit, messages};
use raworc_workspace::FileError;

use super::checkpoints as versions;
use super::find::{self, Purpose};
use super::portable::{self, Portable};
use crate::app::Shared;
use crate::change::Change;
use crate::error::Failure;
use crate::layers::pins::LayerPin;
use crate::sync::blocking;
use crate::transfers::images::{AccountTransfer, Tell};
use crate::transfers::pack::pack;

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
    let login = app.registries.login(actor, body.credentials);
    let registry = app.registries.registry(&reference, login, app.registries.address_policy(actor)).await?;
    let (digest, left_out) = send(app, actor.account, (&row, &checkpoint), &[registry], tell).await?;
    let pushed = Pushed { reference: reference.to_string(), digest: digest.to_string(), n: checkpoint.n, left_out };
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
    // It may have gone back to another checkpoint meanwhile.
    let mut connection = app.store.read().await?;
    let row = sessions::find(&mut connection, row.id).await?.unwrap_or(row);
    Ok((row, checkpoint))
}

/// Sends a checkpoint of a session, as a transfer of `account`, to places of one registry; what it is there, and how much has no form
/// there.
///
/// # Errors
/// As [`push`].
pub async fn send(
    app: &Shared,
    account: AccountId,
    (row, checkpoint): (&SessionRow, &CheckpointRow),
    registries: &[Registry],
    tell: &Tell,
) -> Result<(Digest, u64), Failure> {
    // It may be given up while it waits for its turn, or is on its way.
    let content = content(app, row, checkpoint).await?;
    let passage = app.images.passing(account).await?;
    let layout = passage.layout();
    let told = tell.clone();
    let progress = move |what: &str, done_bytes: u64, total_bytes: u64| {
        told(TransferProgress { what: format!("pushing {what}"), done_bytes, total_bytes });
    };
    let (mut manifest, mut left_out) = content.store(app, &passage, registries.first(), tell).await?;
    for registry in registries {
        let mut sent = registry.push(layout, &manifest.digest, &progress).await;
        if let Err(Error::Damaged { digest } | Error::Missing { digest }) = &sent {
            // What lay here was spoiled, or removed; the layer itself is still there.
            layout.delete(digest)?;
            (manifest, left_out) = content.store(app, &passage, Some(registry), tell).await?;
            sent = registry.push(layout, &manifest.digest, &progress).await;
        }
        sent?;
    }
    blocking(move || passage.over([manifest.digest])).await.map_err(FileError::Io)?;
    Ok((manifest.digest, left_out))
}

/// What of a checkpoint goes elsewhere.
struct Content {
    chain: Vec<LayerRow>,
    _hold: LayerPin,
    portable: serde_json::Value,
    created: String,
    title: String,
}

async fn content(app: &Shared, row: &SessionRow, checkpoint: &CheckpointRow) -> Result<Content, Failure> {
    let (chain, hold) = versions::layers(app, row.id, checkpoint.n).await?;
    let (agents, (spoken, older)) = {
        let mut connection = app.store.read().await?;
        let ranges = standing(checkpoint.seq, &row.rewinds);
        (
            agents::of_session(&mut connection, row.id).await?,
            messages::newest_ended_in(&mut connection, row.id, &ranges, portable::MESSAGES_BYTES_MAX).await?,
        )
    };
    let agents = agents.into_iter().map(|agent| agent.definition.name).collect();
    let document = Portable::of(row, agents, checkpoint, (spoken, older));
    Ok(Content {
        chain,
        _hold: hold,
        portable: serde_json::to_value(document).map_err(raworc_store::StoreError::from)?,
        created: checkpoint.created_at.to_timestamp().to_string(),
        title: format!("{} @{}", row.name, checkpoint.n),
    })
}

impl Content {
    /// Puts the image of it into the layout, but for layers that the registry has.
    async fn store(
        &self,
        app: &Shared,
        passage: &AccountTransfer,
        registry: Option<&Registry>,
        tell: &Tell,
    ) -> Result<(Descriptor, u64), Failure> {
        let (layers, left_out) = pack(app, passage, &self.chain, registry, tell).await?;
        let image = Image {
            layers,
            created: Some(self.created.clone()),
            annotations: [(TITLE.to_owned(), self.title.clone())].into(),
            extra: Some(self.portable.clone()),
            ..Image::default()
        };
        let layout = passage.layout().clone();
        Ok((blocking(move || image.store(&layout)).await.map_err(FileError::Io)??, left_out))
    }
}

async fn note(app: &Shared, actor: &Actor, row: &SessionRow, pushed: &Pushed) -> Result<(), Failure> {
    let (actor, now, session) = (actor.clone(), app.now(), row.id);
    let Pushed { n, reference, digest, left_out } = pushed;
    let (reference, digest) = (reference.clone(), digest.clone());
    let event = CheckpointPushed { n: *n, reference, digest, left_out: *left_out };
    let write = app.store.write(move |tx| {
        Box::pin(async move {
            audit::append(tx, now, &actor, "checkpoint.push", &session.to_string()).await?;
            let mut change = Change::load(tx, session, now, actor.name).await?;
            change.log(event).await?;
            change.save().await?;
            Ok::<_, Failure>(())
        })
    });
    write.await
}

/// A checkpoint that is ready to be written into an archive.
pub struct Export {
    passage: AccountTransfer,
    manifest: Descriptor,
    name: String,
    /// How much of the checkpoint has no form in it.
    pub left_out: u64,
}

/// Packs a checkpoint for an archive.
///
/// # Errors
/// 404 where there is no such checkpoint.
pub async fn export(app: &Shared, actor: &Actor, id_or_name: &str, version: &str) -> Result<Export, Failure> {
    let (row, checkpoint) = find(app, actor, id_or_name, version).await?;
    let content = content(app, &row, &checkpoint).await?;
    let passage = app.images.passing(actor.account).await?;
    let tell: Tell = std::sync::Arc::new(|_| {});
    let (manifest, left_out) = content.store(app, &passage, None, &tell).await?;
    Ok(Export { passage, manifest, left_out, name: format!("{}-{}", row.id, checkpoint.n) })
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
        raworc_oci::export(self.passage.layout(), &self.manifest, Some(&self.name), writer, &mut |_, _, _| {})?;
        self.passage.over([self.manifest.digest]);
        Ok(())
    }
}
