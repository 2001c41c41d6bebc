//! Make a session from another one's checkpoint.

use raworc_api::session::{CreateSession, RemixSession};
use raworc_core::conversation::standing;
use raworc_core::events::SessionCreated;
use raworc_core::limits::{CONVERSATION_SEGMENTS_MAX, PAGE_BYTES_MAX, PAGE_ROWS_MAX};
use raworc_core::permissions::{Action, Actor};
use raworc_store::conversation::{self, Segment};
use raworc_store::sessions::{self, SessionRow};
use raworc_store::{agents, audit, checkpoints};

use super::checkpoints as versions;
use super::create_session::{
    Conversation, Inherited, another, check, inherit_checkpoint, made_before, new_row, run_image,
};
use super::find::{self, Purpose};
use super::idempotent::Key;
use super::images::{self, Use};
use super::portable::as_wanted;
use super::send_message::{NewMessage, queue};
use crate::app::Shared;
use crate::change::Change;
use crate::error::Failure;
use crate::layers::workspace_access::refuse_purged;
use crate::policy::ceilings::Ceilings;
use crate::policy::permit;

/// Makes it: the parent's configuration with what the body changes, its conversation up to the checkpoint, its workspace as
/// of then. Tokens and secrets are not taken over.
///
/// # Errors
/// 404 where there is no such session or checkpoint, 422 where the body is wrong.
pub async fn remix(
    app: &Shared,
    actor: &Actor,
    id_or_name: String,
    body: RemixSession,
    key: Option<Key>,
) -> Result<SessionRow, Failure> {
    permit(actor, Action::CreateSession, "session", "")?;
    let parent = {
        let mut connection = app.store.read().await?;
        if let Some(made) = made_before(&mut connection, actor, key.as_ref()).await? {
            return Ok(made);
        }
        find::session(&mut connection, actor, &id_or_name, Purpose::Use).await?
    };
    refuse_purged(parent.purged_at)?;
    let (from, agent_ids) = (body.checkpoint, body.agent_ids.clone());
    let name = body.name.clone().unwrap_or_else(|| another(&parent.name));
    let wanted = CreateSession { name: Some(name), ..body.into() };
    check(&wanted, &app.ceilings)?;
    let wanted = wanted.with_defaults_from(as_wanted(&parent));
    check(&wanted, &Ceilings::default())?;
    let image = match &wanted.image {
        Some(name) => Some(images::resolve(app, actor, name, Use::Run).await?.id),
        None => None,
    };
    let from = match from {
        Some(n) => versions::usable(app, parent.id, n).await?,
        None => versions::fresh(app, actor, &parent).await?,
    };
    let (actor, now, most) = (actor.clone(), app.now(), app.ceilings);
    app.store
        .write(move |tx| {
            Box::pin(async move {
                if let Some(made) = made_before(tx, &actor, key.as_ref()).await? {
                    return Ok(made);
                }
                // It may have gone back to another checkpoint, or lost its files, since it was looked at.
                let parent = sessions::find(tx, parent.id).await?;
                let parent = parent.ok_or_else(|| Failure::not_found("session", &id_or_name))?;
                refuse_purged(parent.purged_at)?;
                // The same of the checkpoint, which may have been given up or moved to another layer.
                let found = checkpoints::find(tx, parent.id, from.n).await?;
                let from = found.ok_or_else(|| Failure::not_found("checkpoint", &from.n.to_string()))?;
                let agents = match agent_ids {
                    Some(names) => find::agents(tx, &names).await?,
                    None => agents::of_session(tx, parent.id).await?,
                };
                let mut row = new_row(tx, &actor, &wanted, &most, now);
                row.parent_id = Some(parent.id);
                row.parent_checkpoint = Some(from.n);
                row.layer_id = from.layer_id;
                match image {
                    Some(id) => run_image(tx, &mut row, id).await?,
                    None => {
                        // It may have been merged with the layers below it.
                        row.image_layer_id = parent.image_layer_id;
                        row.settings.image = parent.settings.image.clone();
                    }
                }
                sessions::insert(tx, &row).await?;
                let ids: Vec<_> = agents.iter().map(|agent| agent.id).collect();
                agents::assign(tx, row.id, &ids).await?;
                audit::append(tx, now, &actor, "session.remix", &parent.id.to_string()).await?;
                if let Some(key) = &key {
                    key.remember(tx, &actor, row.id.to_string(), now).await?;
                }
                let mut change = Change::begin(tx, row, now, actor.name.clone());
                let created = SessionCreated {
                    name: change.row.name.clone(),
                    agents: agents.iter().map(|agent| agent.definition.name.clone()).collect(),
                    image: None,
                    from: None,
                    parent_session_id: Some(parent.id),
                    parent_checkpoint: Some(from.n),
                };
                change.log(created).await?;
                let ranges = standing(from.seq, &parent.rewinds);
                let spoken = conversation::segments_in(change.tx(), parent.id, &ranges).await?;
                if spoken.len() <= CONVERSATION_SEGMENTS_MAX {
                    share(&mut change, spoken).await?;
                } else {
                    copy(&mut change, &spoken).await?;
                }
                let size = (from.bytes, from.files);
                let inherited = Inherited { label: from.label.clone(), by: from.created_by.clone(), size };
                inherit_checkpoint(&mut change, inherited).await?;
                if !change.row.starting_prompt.is_empty() {
                    let content = change.row.starting_prompt.clone();
                    queue(&mut change, NewMessage { content, ..NewMessage::default() }).await?;
                }
                Ok(change.save().await?)
            })
        })
        .await
}

/// Has the remix share these parts of conversations. Each message gets its place in the log, and nothing is written for it.
async fn share(change: &mut Change<'_>, spoken: Vec<Segment>) -> Result<(), Failure> {
    for segment in spoken {
        let (seq, count) = (change.row.last_seq + 1, segment.count());
        let row = change.segment(seq, segment);
        conversation::insert(change.tx(), &row).await?;
        change.row.last_seq += count;
    }
    Ok(())
}

/// Copies the messages of these parts, a page at a time. The remix's own remixes then share one part.
async fn copy(change: &mut Change<'_>, spoken: &[Segment]) -> Result<(), Failure> {
    let mut conversation = Conversation::default();
    for segment in spoken {
        let mut after = 0;
        loop {
            let bounds = (PAGE_ROWS_MAX, PAGE_BYTES_MAX);
            let batch = segment.messages(change.tx(), after, bounds).await?;
            after = batch.rows.last().map_or(after, |(n, _)| *n);
            let messages = batch.rows.into_iter().map(|(_, message)| message).collect();
            conversation.inherit(change, messages).await?;
            if !batch.has_more {
                break;
            }
        }
    }
    Ok(())
}
