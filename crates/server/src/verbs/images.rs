//! Bring images in, list and remove them.

use std::io::Read;
use std::sync::Arc;

use raworc_api::image::PullImage;
use raworc_api::problem::{Code, Problem};
use raworc_core::ids::ImageId;
use raworc_core::limits::{IMAGE_ENTRIES_MAX, PAGE_BYTES_MAX};
use raworc_core::names;
use raworc_core::permissions::{Action, Actor, Role};
use raworc_oci::{Bounds, Descriptor, Digest, Image, Layout, Reference, TagOrDigest};
use raworc_store::images::{self, ImageRow, Summary};
use raworc_store::{Batch, accounts, audit, layers};
use raworc_workspace::FileError;
use uuid::Uuid;

use super::portable::Portable;
use crate::app::Shared;
use crate::error::Failure;
use crate::policy::permit;
use crate::sync::blocking;
use crate::transfers::images::{AccountTransfer, Tell};
use crate::transfers::unpack::{UnpackedImage, unpack_image};

/// How often an image is taken in again whose layers were given up meanwhile.
const TRIES: u32 = 3;

/// Brings an image in from a registry, under the name of its reference.
///
/// # Errors
/// 422 where the reference or the image cannot be used; what the registry says.
pub async fn pull(app: &Shared, actor: &Actor, body: PullImage, tell: &Tell) -> Result<ImageRow, Failure> {
    permit(actor, Action::CreateImage, "image", "")?;
    app.images.room(&app.store, actor).await?;
    let reference: Reference = body.reference.parse()?;
    let login = app.registries.login(actor, body.credentials);
    let registry = app.registries.registry(&reference, login, app.registries.address_policy(actor)).await?;
    let passage = app.images.passing(actor.account).await?;
    let told = tell.clone();
    let progress = move |what: &str, done_bytes: u64, total_bytes: u64| {
        told(raworc_api::image::TransferProgress { what: format!("pulling {what}"), done_bytes, total_bytes });
    };
    let manifest = registry.pull(passage.layout(), &progress).await?;
    let digest = manifest.digest;
    let mut rows = keep_all(app, actor, vec![(reference.to_string(), manifest)], tell, passage).await?;
    rows.pop().ok_or_else(|| Failure::not_found("image", &digest.to_string()))
}

/// Takes in images that are in the layout, to the end, also where nobody waits for it any more: so nothing of them is left over.
async fn keep_all(
    app: &Shared,
    actor: &Actor,
    images: Vec<(String, Descriptor)>,
    tell: &Tell,
    passage: AccountTransfer,
) -> Result<Vec<ImageRow>, Failure> {
    let (task_app, actor, tell) = (app.clone(), actor.clone(), tell.clone());
    let work = async move {
        let mut rows = Vec::new();
        for (name, manifest) in &images {
            rows.push(keep(&task_app, &actor, (name.clone(), manifest), passage.layout(), &tell).await?);
        }
        let served = images.into_iter().map(|(_, manifest)| manifest.digest);
        let served: Vec<Digest> = served.collect();
        blocking(move || passage.over(served)).await.map_err(FileError::Io)?;
        Ok(rows)
    };
    app.tasks.spawn(work).await.map_err(|error| FileError::Io(std::io::Error::other(error)))?
}

/// Brings in the images of an archive: an OCI archive, or what `docker save` writes, compressed or not.
///
/// # Errors
/// 422 where the archive or a name cannot be used.
pub async fn import(
    app: &Shared,
    actor: &Actor,
    name: Option<String>,
    archive: impl Read + Send + 'static,
    tell: &Tell,
) -> Result<Vec<ImageRow>, Failure> {
    permit(actor, Action::CreateImage, "image", "")?;
    if let Some(name) = &name {
        names::check_image(name).map_err(|why| Problem::field("name", why))?;
    }
    let room = app.images.room(&app.store, actor).await?;
    let passage = app.images.passing(actor.account).await?;
    let (layout, told) = (passage.layout().clone(), tell.clone());
    let read = move || {
        let bounds = Bounds { bytes: room, entries: IMAGE_ENTRIES_MAX };
        let mut progress = |done_bytes| {
            told(raworc_api::image::TransferProgress { what: "reading".to_owned(), done_bytes, total_bytes: 0 });
        };
        raworc_oci::import(archive, &layout, &bounds, &mut progress)
    };
    let found = blocking(read).await.map_err(FileError::Io)??;
    let images = match name {
        Some(name) => vec![(name, only(found)?)],
        None => {
            let named = found.into_iter().map(|(own, manifest)| Ok((named(own.as_ref())?, manifest)));
            named.collect::<Result<Vec<_>, Failure>>()?
        }
    };
    keep_all(app, actor, images, tell, passage).await
}

/// The one image of an archive, however many names it has there.
fn only(found: Vec<(Option<String>, Descriptor)>) -> Result<Descriptor, Failure> {
    let mut images: Vec<Descriptor> = found.into_iter().map(|(_, manifest)| manifest).collect();
    images.dedup_by_key(|manifest| manifest.digest);
    let count = images.len();
    images.pop().filter(|_| count == 1).ok_or_else(|| {
        let message = format!("must be absent: the archive has {count} images, and a name is for one");
        Problem::field("name", message).into()
    })
}

fn named(name: Option<&String>) -> Result<String, Failure> {
    let name = name.ok_or_else(|| Problem::field("name", "must be there: the archive does not name its image"))?;
    names::check_image(name).map_err(|why| Problem::field("name", why))?;
    Ok(name.clone())
}

/// Unpacks an image that is in the layout, and records it. One of the same name is given up.
async fn keep(
    app: &Shared,
    actor: &Actor,
    (name, manifest): (String, &Descriptor),
    layout: &Layout,
    tell: &Tell,
) -> Result<ImageRow, Failure> {
    let (blobs, digest) = (layout.clone(), manifest.digest);
    let image = blocking(move || Image::load(&blobs, &digest)).await.map_err(FileError::Io)??;
    let unusable = |why| Failure::new(Code::ImageUnusable, why);
    let portable = Portable::read(image.extra.as_ref()).map_err(unusable)?;
    // A checkpoint's files are of use on any machine.
    if portable.is_none() && !image.matches_platform() {
        let detail =
            format!("{name} is for another machine than this one, which is linux/{}", raworc_oci::architecture());
        return Err(unusable(detail));
    }
    for _ in 0..TRIES {
        let room = app.images.room(&app.store, actor).await?;
        let taken = Arc::new(unpack_image(app, layout, (&image, room), tell).await?);
        let row = ImageRow {
            id: ImageId(Uuid::now_v7()),
            owner_id: actor.account,
            owner_name: actor.name.clone(),
            is_shared: actor.role == Role::Admin && portable.is_none(),
            name: name.clone(),
            digest: manifest.digest.to_string(),
            layer_id: taken.top(),
            summary: Summary { env: image.env.clone(), checkpoint: portable.as_ref().map(Portable::summary) },
            bytes: taken.size.0,
            files: taken.size.1,
            created_at: app.now(),
        };
        let content = portable.as_ref().map(serde_json::to_string).transpose();
        let content = content.map_err(raworc_store::StoreError::from)?;
        match record(app, actor, row, content, &taken).await {
            Ok(Some(row)) => return Ok(row),
            Ok(None) => {}
            Err(error) => {
                // Nobody needs what was unpacked for it.
                app.garbage_queue.enqueue(taken.new.iter().map(|(layer, _)| layer.id));
                return Err(error);
            }
        }
    }
    Err(Failure::new(Code::Unavailable, "its layers were given up while it was taken in; try again"))
}

/// Records an image and its layers, unless it is here already; none where what they lie on is gone.
async fn record(
    app: &Shared,
    actor: &Actor,
    row: ImageRow,
    content: Option<String>,
    taken: &Arc<UnpackedImage>,
) -> Result<Option<ImageRow>, Failure> {
    // Its layers are kept until they are recorded, even if nobody waits for that any more.
    let (actor, now, taken) = (actor.clone(), app.now(), Arc::clone(taken));
    let write = app.store.write(move |tx| {
        Box::pin(async move {
            // It may have been closed since this was asked for: then it gets nothing more.
            let owner = accounts::find(tx, &actor.account.to_string()).await?;
            if owner.is_none_or(|owner| owner.closed_at.is_some()) {
                return Err(Failure::new(Code::Unauthenticated, "the account was closed meanwhile"));
            }
            let new = &taken.new;
            if let Some(known) = taken.known
                && layers::find(tx, known).await?.is_none()
            {
                tx.wasted(new.iter().map(|(layer, _)| layer.id));
                return Ok(None);
            }
            let old = images::find_by_name(tx, actor.account, &row.name).await?;
            let old = old.filter(|old| old.owner_id == actor.account);
            // Someone else has brought in the same just now, and names it already.
            if let Some(old) = old.as_ref().filter(|old| old.digest == row.digest) {
                tx.wasted(new.iter().map(|(layer, _)| layer.id));
                return Ok(Some(old.clone()));
            }
            for (layer, archived) in new {
                layers::insert(tx, layer).await?;
                if let Some(archived) = archived {
                    layers::set_archived(tx, layer.id, archived).await?;
                }
            }
            if let Some(old) = old {
                images::delete(tx, old.id).await?;
                images::insert(tx, &row, content).await?;
                layers::release(tx, old.layer_id).await?;
            } else {
                images::insert(tx, &row, content).await?;
            }
            audit::append(tx, now, &actor, "image.create", &row.id.to_string()).await?;
            Ok::<_, Failure>(Some(row))
        })
    });
    write.await
}

/// Images that the actor may use, in the order they came.
///
/// # Errors
/// Where the store fails.
pub async fn list(app: &Shared, actor: &Actor, after: Option<ImageId>, limit: u32) -> Result<Batch<ImageRow>, Failure> {
    let account = (actor.role != Role::Admin).then_some(actor.account);
    let mut connection = app.store.read().await?;
    Ok(images::list(&mut connection, account, after, (limit, PAGE_BYTES_MAX)).await?)
}

/// The image of this id or name.
///
/// # Errors
/// 404 where there is none for this actor.
pub async fn get(app: &Shared, actor: &Actor, id_or_name: &str) -> Result<ImageRow, Failure> {
    let mut connection = app.store.read().await?;
    find(&mut connection, actor, id_or_name).await
}

async fn find(connection: &mut raworc_store::Read, actor: &Actor, id_or_name: &str) -> Result<ImageRow, Failure> {
    let found = match id_or_name.parse::<ImageId>() {
        Ok(id) => images::find(connection, id).await?,
        Err(_) => images::find_by_name(connection, actor.account, id_or_name).await?,
    };
    let row = found.ok_or_else(|| Failure::not_found("image", id_or_name))?;
    let action = Action::ReadImage { owner: row.owner_id, is_shared: row.is_shared };
    permit(actor, action, "image", id_or_name)?;
    Ok(row)
}

/// Removes an image. Sessions that run it keep its files.
///
/// # Errors
/// 404 where there is none, 403 where it is not the actor's.
pub async fn delete(app: &Shared, actor: &Actor, id_or_name: String) -> Result<(), Failure> {
    let (actor, now) = (actor.clone(), app.now());
    let write = app.store.write(move |tx| {
        Box::pin(async move {
            let row = find(tx, &actor, &id_or_name).await?;
            let action = Action::ManageImage { owner: row.owner_id, is_shared: row.is_shared };
            permit(&actor, action, "image", &id_or_name)?;
            audit::append(tx, now, &actor, "image.delete", &row.id.to_string()).await?;
            images::delete(tx, row.id).await?;
            layers::release(tx, row.layer_id).await?;
            Ok::<_, Failure>(())
        })
    });
    write.await
}

/// What an image is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Containers are to run it.
    Run,
    /// A session is to go on from it.
    GoOn,
}

impl Use {
    fn field(self) -> &'static str {
        match self {
            Self::Run => "image",
            Self::GoOn => "from",
        }
    }
}

/// The image that someone names for a session: one that is here, or else it is pulled.
///
/// # Errors
/// 422 where it is none for this use; what pulling it says.
pub async fn resolve(app: &Shared, actor: &Actor, name: &str, usage: Use) -> Result<ImageRow, Failure> {
    let row = match get(app, actor, name).await {
        Ok(row) if usage == Use::GoOn && row.name == name => current(app, actor, row).await?,
        Ok(row) => row,
        Err(missing) => match name.parse::<Reference>() {
            // What is written in a shorter way is called by its full name here.
            Ok(reference) => match get(app, actor, &reference.to_string()).await {
                Ok(row) if usage == Use::GoOn => current(app, actor, row).await?,
                Ok(row) => row,
                Err(_) => bring(app, actor, &reference).await?,
            },
            Err(_) if name.parse::<ImageId>().is_ok() => return Err(missing),
            Err(error) => {
                let message = format!("there is no image {name:?}, and it is no reference to one: {error}");
                return Err(Problem::field(usage.field(), message).into());
            }
        },
    };
    check(&row, usage)?;
    Ok(row)
}

/// Pulls what is not here yet, once for all who want it now.
async fn bring(app: &Shared, actor: &Actor, reference: &Reference) -> Result<ImageRow, Failure> {
    let reference = reference.to_string();
    let _turn = app.images.turn(actor.account, reference.clone()).await;
    match get(app, actor, &reference).await {
        Ok(row) => Ok(row),
        Err(_) => pull(app, actor, PullImage { reference, credentials: None }, &(Arc::new(|_| {}) as Tell)).await,
    }
}

/// What a checkpoint's name means now: a tag of a registry may have moved, as backups move theirs. Where the registry cannot
/// be asked, what is here is what there is.
async fn current(app: &Shared, actor: &Actor, row: ImageRow) -> Result<ImageRow, Failure> {
    let Some(reference) =
        row.name.parse::<Reference>().ok().filter(|found| matches!(found.tag_or_digest(), TagOrDigest::Tag(_)))
    else {
        return Ok(row);
    };
    let (login, address_policy) = (app.registries.login(actor, None), app.registries.address_policy(actor));
    match app.registries.registry(&reference, login, address_policy).await?.digest().await {
        Ok(Some(digest)) if digest.to_string() != row.digest => {
            let body = PullImage { reference: reference.to_string(), credentials: None };
            pull(app, actor, body, &(Arc::new(|_| {}) as Tell)).await
        }
        Ok(_) => Ok(row),
        Err(error) => {
            tracing::warn!(image = row.name, %error, "a registry could not be asked whether a tag has moved");
            Ok(row)
        }
    }
}

/// Whether an image is fit for a use.
fn check(row: &ImageRow, usage: Use) -> Result<(), Failure> {
    let name = &row.name;
    let message = match (usage, &row.summary.checkpoint) {
        (Use::Run, Some(_)) => format!("{name} is a checkpoint; name it as `from` to go on from it"),
        (Use::GoOn, None) => format!("{name} is no checkpoint; name it as `image` to have containers run it"),
        (Use::Run, None) if row.layer_id.is_none() => format!("{name} is empty: nothing can run in it"),
        (Use::Run, None) | (Use::GoOn, Some(_)) => return Ok(()),
    };
    Err(Problem::field(usage.field(), message).into())
}

/// What came with a checkpoint besides its files.
///
/// # Errors
/// Where it is gone.
pub async fn portable(app: &Shared, row: &ImageRow) -> Result<Portable, Failure> {
    let mut connection = app.store.read().await?;
    let text = images::content(&mut connection, row.id).await?;
    let text = text.ok_or_else(|| Failure::not_found("image", &row.name))?;
    let document = serde_json::from_str(&text).map_err(raworc_store::StoreError::from)?;
    let read = Portable::read(Some(&document)).map_err(|why| Failure::new(Code::ImageUnusable, why))?;
    read.ok_or_else(|| Failure::not_found("image", &row.name))
}
