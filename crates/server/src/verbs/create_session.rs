//! Create a session.

use std::collections::HashMap;
use std::time::Duration;

use raworc_api::problem::{Code, Problem};
use raworc_api::session::CreateSession;
use raworc_core::checkpoints::{Cause, Plan};
use raworc_core::events::{ImageName, MessageInherited, SessionCreated};
use raworc_core::ids::{ImageId, LayerId, MessageId, SessionId};
use raworc_core::limits::{
    MESSAGE_BYTES_MAX, NAME_CHARACTERS_MAX, TTL_SECONDS, WAITING_TIMEOUT_DEFAULT, WAITING_TIMEOUT_SECONDS,
};
use raworc_core::names;
use raworc_core::permissions::{Action, Actor};
use raworc_core::quantity::Bytes;
use raworc_core::session;
use raworc_core::time::Time;
use raworc_store::agents::AgentRow;
use raworc_store::checkpoints::{self, Status};
use raworc_store::images::ImageRow;
use raworc_store::messages::{self, MessageRow};
use raworc_store::sessions::{self, BackupState, ImageUsed, SessionRow, Settings};
use raworc_store::{Read, Tx, agents, audit};
use uuid::Uuid;

use super::check::{Checks, backup, disk, plan, resources_or_default};
use super::idempotent::Key;
use super::images::{self, Use};
use super::send_message::{NewMessage, queue};
use crate::app::Shared;
use crate::change::Change;
use crate::error::Failure;
use crate::policy::ceilings::Ceilings;
use crate::policy::permit;
use crate::record::{backups, save};

/// The agent of a session that names none.
pub const DEFAULT_AGENT: &str = "shell";

/// Makes a session, in INIT; its container is made right after.
///
/// # Errors
/// 422 where the body is wrong.
pub async fn create_session(
    app: &Shared,
    actor: &Actor,
    body: CreateSession,
    key: Option<Key>,
) -> Result<SessionRow, Failure> {
    permit(actor, Action::CreateSession, "session", "")?;
    check(&body, &app.ceilings)?;
    {
        // Before anything is pulled for it.
        let mut connection = app.store.read().await?;
        if let Some(made) = made_before(&mut connection, actor, key.as_ref()).await? {
            return Ok(made);
        }
    }
    let (wanted, origin) = match body.from.clone() {
        Some(name) => {
            let image = images::resolve(app, actor, &name, Use::GoOn).await?;
            let portable = images::portable(app, &image).await?;
            let wanted = CreateSession { name: body.name.clone().or_else(|| Some(another(portable.name()))), ..body };
            let is_theirs = wanted.image.is_none();
            let wanted = wanted.with_defaults_from(portable.wanted());
            check(&wanted, &Ceilings::default())?;
            if let Some(image) = wanted.image.as_ref().filter(|_| is_theirs) {
                // Whoever made the checkpoint is not to say with whom this server speaks.
                images::get(app, actor, image).await.map_err(|_| {
                    let message =
                        format!("{name} runs the image {image}, which is not here: pull it first, or name another one");
                    Failure::from(Problem::field("image", message))
                })?;
            }
            (wanted, Some((image.id, portable)))
        }
        None => (body, None),
    };
    let image = image_of(app, actor, &wanted).await?;
    let (actor, now, most) = (actor.clone(), app.now(), app.ceilings);
    app.store
        .write(move |tx| {
            Box::pin(async move {
                if let Some(made) = made_before(tx, &actor, key.as_ref()).await? {
                    return Ok(made);
                }
                let names = wanted.agent_ids.clone().unwrap_or_else(|| vec![DEFAULT_AGENT.to_owned()]);
                let found = super::find::agents(tx, &names).await?;
                let mut row = new_row(tx, &actor, &wanted, &most, now);
                if let Some(id) = image {
                    run_image(tx, &mut row, id).await?;
                }
                let origin = match origin {
                    Some((id, portable)) => Some((go_on(tx, &mut row, id).await?, portable)),
                    None => None,
                };
                sessions::insert(tx, &row).await?;
                let ids: Vec<_> = found.iter().map(|agent| agent.id).collect();
                agents::assign(tx, row.id, &ids).await?;
                audit::append(tx, now, &actor, "session.create", &row.id.to_string()).await?;
                if let Some(key) = &key {
                    key.remember(tx, &actor, row.id.to_string(), now).await?;
                }
                let mut change = Change::begin(tx, row, now, actor.name.clone());
                log_created(&mut change, &found).await?;
                if let Some((image, portable)) = origin {
                    let label = portable.label();
                    let messages = portable.into_messages(change.row.id);
                    inherit(&mut change, messages, Inherited { label, by: actor.name, size: image }).await?;
                }
                if !change.row.starting_prompt.is_empty() {
                    let content = change.row.starting_prompt.clone();
                    queue(&mut change, NewMessage { content, ..NewMessage::default() }).await?;
                }
                Ok(change.save().await?)
            })
        })
        .await
}

async fn log_created(change: &mut Change<'_>, agents: &[AgentRow]) -> Result<(), Failure> {
    let settings = &change.row.settings;
    let name_of = |used: &ImageUsed| ImageName { name: used.name.clone(), digest: used.digest.clone() };
    let created = SessionCreated {
        name: change.row.name.clone(),
        agents: agents.iter().map(|agent| agent.definition.name.clone()).collect(),
        image: settings.image.as_ref().map(name_of),
        from: settings.from.as_ref().map(name_of),
        parent_session_id: None,
        parent_checkpoint: None,
    };
    change.log(created).await?;
    Ok(())
}

/// The image that containers of a session are to run: what it says, or what the first of its agents does that says anything.
async fn image_of(app: &Shared, actor: &Actor, wanted: &CreateSession) -> Result<Option<ImageId>, Failure> {
    let name = match &wanted.image {
        Some(name) => Some(name.clone()),
        None => {
            let mut connection = app.store.read().await?;
            let found = super::find::agents(&mut connection, wanted.agent_ids.as_deref().unwrap_or_default()).await;
            // What is wrong with them is told by whoever assigns them.
            found.ok().and_then(|agents| agents.into_iter().find_map(|agent| agent.definition.image))
        }
    };
    match name {
        Some(name) => Ok(Some(images::resolve(app, actor, &name, Use::Run).await?.id)),
        None => Ok(None),
    }
}

/// An image that was found a moment ago.
async fn image(connection: &mut Read, id: ImageId) -> Result<ImageRow, Failure> {
    let gone = || Failure::new(Code::NotFound, "the image was deleted while the session was made; bring it in again");
    raworc_store::images::find(connection, id).await?.ok_or_else(gone)
}

/// Has a session that is being made run an image.
///
/// # Errors
/// 404 where it is gone.
pub async fn run_image(connection: &mut Read, row: &mut SessionRow, id: ImageId) -> Result<(), Failure> {
    let image = image(connection, id).await?;
    row.image_layer_id = image.layer_id;
    row.settings.image = Some(ImageUsed { name: image.name, digest: image.digest, env: image.summary.env });
    Ok(())
}

/// Has a session that is being made go on from a checkpoint of elsewhere; bytes and number of its files.
async fn go_on(connection: &mut Read, row: &mut SessionRow, id: ImageId) -> Result<(u64, u64), Failure> {
    let image = image(connection, id).await?;
    row.layer_id = image.layer_id;
    row.settings.from = Some(ImageUsed { name: image.name, digest: image.digest, env: Vec::new() });
    Ok((image.bytes, image.files))
}

/// What a session begins with that goes on from a checkpoint.
pub struct Inherited {
    /// The checkpoint's name.
    pub label: Option<String>,
    /// Who took it.
    pub by: String,
    /// Bytes and number of its files.
    pub size: (u64, u64),
}

/// The conversation up to a checkpoint, and the checkpoint itself as the new session's first.
///
/// # Errors
/// Where the store fails.
pub async fn inherit(change: &mut Change<'_>, messages: Vec<MessageRow>, inherited: Inherited) -> Result<(), Failure> {
    Conversation::default().inherit(change, messages).await?;
    inherit_checkpoint(change, inherited).await
}

/// A conversation that a session takes over, part by part.
#[derive(Default)]
pub struct Conversation {
    /// What each message of it is called here.
    ids: HashMap<MessageId, MessageId>,
}

impl Conversation {
    /// The next messages, in order.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn inherit(&mut self, change: &mut Change<'_>, messages: Vec<MessageRow>) -> Result<(), Failure> {
        for mut message in messages {
            let id = MessageId(change.tx().new_id());
            self.ids.insert(message.id, id);
            let from = (message.session_id != change.row.id).then_some(message.id);
            let (role, agent) = (message.role.into(), message.agent.clone());
            message.seq = change.log(MessageInherited { message_id: id, role, from, agent }).await?;
            message.id = id;
            message.session_id = change.row.id;
            message.reply_to = message.reply_to.and_then(|id| self.ids.get(&id).copied());
            message.started_seq = None;
            message.finished_seq = Some(message.seq);
            messages::insert(change.tx(), &message).await?;
        }
        Ok(())
    }
}

/// The first checkpoint of a session that starts from another one.
///
/// # Errors
/// Where the store fails.
pub async fn inherit_checkpoint(change: &mut Change<'_>, inherited: Inherited) -> Result<(), Failure> {
    let mut own = save::new_row(&mut change.row, Cause::Remix, inherited.label, &inherited.by, change.now);
    (own.status, own.layer_id) = (Status::Ready, change.row.layer_id);
    (own.bytes, own.files) = inherited.size;
    checkpoints::insert(change.tx(), &own).await?;
    backups::want(change);
    Ok(())
}

/// What a session is called that is made from one of this name, unless someone says.
pub fn another(name: &str) -> String {
    let suffix = &Uuid::new_v4().simple().to_string()[..8];
    let short: String = names::tidied(name).chars().take(NAME_CHARACTERS_MAX - suffix.len() - 1).collect();
    format!("{short}-{suffix}")
}

/// The session that an earlier request of this key made.
///
/// # Errors
/// Where the key was used for something else.
pub async fn made_before(
    connection: &mut Read,
    actor: &Actor,
    key: Option<&Key>,
) -> Result<Option<SessionRow>, Failure> {
    let Some(key) = key else { return Ok(None) };
    let Some(made) = key.made_before(connection, actor).await? else {
        return Ok(None);
    };
    let id: SessionId = made.parse().map_err(|_| Failure::not_found("session", &made))?;
    Ok(sessions::find(connection, id).await?)
}

/// Collects what is wrong with a body.
///
/// # Errors
/// 422.
pub fn check(body: &CreateSession, most: &Ceilings) -> Result<(), Failure> {
    let mut checks = Checks::default();
    if let Some(name) = &body.name {
        checks.check("name", names::check_title(name));
    }
    if body.starting_prompt.as_ref().is_some_and(|prompt| prompt.len() > MESSAGE_BYTES_MAX || prompt.contains('\0')) {
        checks.fault("starting_prompt", format!("must have at most {MESSAGE_BYTES_MAX} bytes, none of them NUL"));
    }
    checks.range("waiting_timeout_seconds", body.waiting_timeout_seconds, &WAITING_TIMEOUT_SECONDS);
    checks.range("ttl_seconds", body.ttl_seconds, &TTL_SECONDS);
    checks.metadata(body.metadata.as_ref());
    checks.env("env", body.env.as_ref());
    checks.resources(body.resources.as_ref(), most);
    checks.plan(body.checkpoints.as_ref());
    checks.backup(body.backup.as_ref());
    for (field, name) in [("image", &body.image), ("from", &body.from)] {
        if let Some(name) = name {
            checks.image(field, name);
        }
    }
    checks.done()
}

/// A session that is to be made, as the body wants it.
pub fn new_row(tx: &mut Tx, actor: &Actor, body: &CreateSession, most: &Ceilings, now: Time) -> SessionRow {
    let id = SessionId(tx.new_id());
    let resources = resources_or_default(body.resources, most);
    let waiting = body.waiting_timeout_seconds.map_or(WAITING_TIMEOUT_DEFAULT, Duration::from_secs);
    let text = id.to_string();
    SessionRow {
        id,
        name: body.name.clone().unwrap_or_else(|| format!("session-{}", &text[text.len() - 8..])),
        starting_prompt: body.starting_prompt.clone().unwrap_or_default(),
        owner_id: actor.account,
        owner_name: actor.name.clone(),
        settings: Settings {
            metadata: body.metadata.clone().unwrap_or_default(),
            cpu: resources.cpu,
            memory: Bytes(resources.memory_bytes),
            pids: resources.pids,
            disk: most.disk(disk(body.resources)),
            env: body.env.clone().unwrap_or_default(),
            background_activity: body.background_activity.unwrap_or(true),
            checkpoints: plan(Plan::default(), body.checkpoints),
            image: None,
            backup: backup(body.backup.clone()),
            from: None,
        },
        parent_id: None,
        parent_checkpoint: None,
        layer_id: None,
        image_layer_id: None,
        writable_id: LayerId(tx.new_id()),
        checkpoints: 0,
        rewinds: Vec::new(),
        purged_at: None,
        save_due: None,
        backup_at: None,
        backup: BackupState::default(),
        machine: session::Session::new(waiting, body.ttl_seconds.map(Duration::from_secs), now),
        last_seq: 0,
        host_received: 0,
        version: 1,
        edition: 1,
        messages_ended: 0,
        busy_micros: 0,
        created_at: now,
        updated_at: now,
    }
}
