//! Change what a session is like.

use std::time::Duration;

use raworc_api::session::UpdateSession;
use raworc_core::checkpoints::Cause;
use raworc_core::events::SessionUpdated;
use raworc_core::limits::{TTL_SECONDS, WAITING_TIMEOUT_SECONDS};
use raworc_core::names;
use raworc_core::permissions::Actor;
use raworc_core::session::Event;
use raworc_store::audit;
use raworc_store::sessions::{BackupState, SessionRow};

use super::check::{Checks, backup, disk, plan};
use super::find::{self, Purpose};
use crate::app::Shared;
use crate::change::Change;
use crate::conditions::Conditions;
use crate::error::Failure;
use crate::policy::ceilings::Ceilings;

/// Changes the fields that the body names.
///
/// # Errors
/// 412 where the session is not what the conditions say; 422 where the body is wrong.
pub async fn update_session(
    app: &Shared,
    actor: &Actor,
    id_or_name: String,
    body: UpdateSession,
    conditions: Conditions,
) -> Result<SessionRow, Failure> {
    check(&body, &app.ceilings)?;
    let has_plan = body.checkpoints.is_some() || body.resources.is_some();
    let (actor, now, app_in_job) = (actor.clone(), app.now(), app.clone());
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let row = find::session(tx, &actor, &id_or_name, Purpose::Use).await?;
                conditions.check_edition(row.edition, row.version)?;
                audit::append(tx, now, &actor, "session.update", &row.id.to_string()).await?;
                let mut change = Change::begin(tx, row, now, actor.name.clone());
                let lasting = Event::Configured {
                    waiting_timeout: body.waiting_timeout_seconds.map(Duration::from_secs),
                    ttl: body.ttl_seconds.map(Duration::from_secs),
                };
                change.step(&lasting).await?;
                let fields = apply(&mut change.row, body, now);
                if !fields.is_empty() {
                    change.configure().await?;
                }
                let fields = fields.into_iter().map(str::to_owned).collect();
                change.log(SessionUpdated { fields, agents: None }).await?;
                if has_plan {
                    // Whoever takes checkpoints learns of the plan when it looks.
                    let session = change.row.id;
                    change.tx().after_commit(move || app_in_job.checkpoint_queue.enqueue(session, Cause::Request));
                }
                Ok(change.save().await?)
            })
        })
        .await
}

fn check(body: &UpdateSession, most: &Ceilings) -> Result<(), Failure> {
    let mut checks = Checks::default();
    if let Some(name) = &body.name {
        checks.check("name", names::check_title(name));
    }
    checks.range("waiting_timeout_seconds", body.waiting_timeout_seconds, &WAITING_TIMEOUT_SECONDS);
    checks.range("ttl_seconds", body.ttl_seconds, &TTL_SECONDS);
    checks.metadata(body.metadata.as_ref());
    checks.env("env", body.env.as_ref());
    checks.resources(body.resources.as_ref(), most);
    checks.plan(body.checkpoints.as_ref());
    checks.backup(body.backup.as_ref());
    checks.done()
}

fn apply(row: &mut SessionRow, body: UpdateSession, now: raworc_core::time::Time) -> Vec<&'static str> {
    let mut fields = Vec::new();
    if let Some(name) = body.name {
        row.name = name;
        fields.push("name");
    }
    if body.waiting_timeout_seconds.is_some() {
        fields.push("waiting_timeout_seconds");
    }
    if body.ttl_seconds.is_some() {
        fields.push("ttl_seconds");
    }
    if let Some(metadata) = body.metadata {
        row.settings.metadata = metadata;
        fields.push("metadata");
    }
    if let Some(wanted) = body.resources {
        row.settings.cpu = wanted.cpu.unwrap_or(row.settings.cpu);
        row.settings.memory = wanted.memory.unwrap_or(row.settings.memory);
        if wanted.disk.is_some() {
            row.settings.disk = disk(Some(wanted));
        }
        row.settings.pids = wanted.pids.unwrap_or(row.settings.pids);
        fields.push("resources");
    }
    if let Some(env) = body.env {
        row.settings.env = env;
        fields.push("env");
    }
    if let Some(counts) = body.background_activity {
        row.settings.background_activity = counts;
        fields.push("background_activity");
    }
    if let Some(wanted) = body.checkpoints {
        row.settings.checkpoints = plan(row.settings.checkpoints, Some(wanted));
        fields.push("checkpoints");
    }
    if let Some(wanted) = body.backup {
        let wanted = backup(Some(wanted));
        let is_new =
            wanted.as_ref().map(|plan| &plan.registry) != row.settings.backup.as_ref().map(|plan| &plan.registry);
        if is_new {
            row.backup = BackupState::default();
        }
        row.settings.backup = wanted;
        // What is there already is sent as well; where there is nothing, that is found out then.
        row.backup_at = row.settings.backup.as_ref().map(|_| now);
        fields.push("backup");
    }
    fields
}
