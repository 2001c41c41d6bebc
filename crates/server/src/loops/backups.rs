//! Sends new checkpoints to the registries of sessions that want it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raworc_core::ids::{AccountId, SessionId};
use raworc_core::permissions::Actor;
use raworc_oci::{AddressPolicy, Reference};
use raworc_store::sessions::BackupDue;
use raworc_store::{accounts, checkpoints, sessions};
use tokio::time::Instant;

use crate::app::Shared;
use crate::error::Failure;
use crate::loops::supervise::Loop;
use crate::record::backups;
use crate::sync::lock;
use crate::transfers::images::Tell;
use crate::transfers::registries::Login;
use crate::verbs::push;

/// How exactly times are kept.
const TICK: Duration = Duration::from_secs(1);
/// So many times what a look takes lies between two.
const REST: u32 = 10;
/// Backups of one account on their way to one registry at the same time: a slow one holds up no other.
const PER_REGISTRY: usize = 2;
/// Backups of one account on their way at the same time.
const PER_ACCOUNT: usize = 4;

/// What is on its way.
#[derive(Clone, Default)]
struct Running(Arc<Mutex<HashMap<SessionId, Target>>>);

/// Whose a backup is, and where it goes.
type Target = (AccountId, Option<String>);

/// One of them, until it is dropped.
struct Place {
    running: Running,
    session: SessionId,
}

impl Running {
    fn enter(&self, due: &BackupDue) -> Option<Place> {
        let mut running = lock(&self.0);
        let of_account = || running.values().filter(|(owner, _)| *owner == due.owner);
        let to_registry = of_account().filter(|(_, registry)| *registry == due.registry).count();
        if running.contains_key(&due.session) || to_registry >= PER_REGISTRY || of_account().count() >= PER_ACCOUNT {
            return None;
        }
        running.insert(due.session, (due.owner, due.registry.clone()));
        Some(Place { running: self.clone(), session: due.session })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.running.0).remove(&self.session);
    }
}

/// Sends checkpoints to their registries by themselves.
pub struct Backups;

impl Loop for Backups {
    const NAME: &'static str = "backups";
    const TRIGGER: &'static str = "every second; less often where very many wait";

    fn bound() -> String {
        format!("{PER_REGISTRY} at once for each account and registry, {PER_ACCOUNT} for each account")
    }

    async fn run(app: Shared) {
        let (running, mut pause) = (Running::default(), TICK);
        while app.sleep(pause).await {
            let began = Instant::now();
            let found = due(&app).await;
            app.loops.ran(Backups::NAME, found.is_ok());
            let due = match found {
                Ok(due) => due,
                Err(error) => {
                    tracing::error!(%error, "the backups that are due could not be looked up; trying again");
                    continue;
                }
            };
            for due in due {
                let Some(place) = running.enter(&due) else { continue };
                let app = app.clone();
                app.tasks.clone().spawn(async move {
                    let _place = place;
                    run_backup(&app, due.session).await;
                });
            }
            // Where very many wait, looking them up takes its time.
            pause = TICK.max(began.elapsed() * REST);
        }
    }
}

async fn due(app: &Shared) -> Result<Vec<BackupDue>, Failure> {
    let mut connection = app.store.read().await?;
    Ok(sessions::with_backup_due(&mut connection, app.now()).await?)
}

async fn run_backup(app: &Shared, session: SessionId) {
    let result = tokio::select! {
        biased;
        // What has been sent is not sent again by the next server.
        () = app.stopping.cancelled() => return,
        result = back_up(app, session) => result,
    };
    if let Err(error) = result {
        tracing::error!(%session, %error, "a backup could not be looked after; trying again");
    }
}

async fn back_up(app: &Shared, session: SessionId) -> Result<(), Failure> {
    let (row, newest, owner) = {
        let mut connection = app.store.read().await?;
        let Some(row) = sessions::find(&mut connection, session).await? else { return Ok(()) };
        let newest = checkpoints::newest(&mut connection, session).await?;
        let owner = accounts::find(&mut connection, &row.owner_id.to_string()).await?;
        (row, newest, owner)
    };
    // Credentials are the server's, but where a backup goes is what the session's owner says.
    let address_policy = owner.map(|owner| Actor { account: owner.id, name: owner.name, role: owner.role });
    let address_policy =
        address_policy.map_or_else(|| AddressPolicy::Public(Vec::new()), |owner| app.registries.address_policy(&owner));
    let newest = newest.filter(|newest| Some(newest.n) > row.backup.checkpoint);
    let (Some(plan), Some(newest)) = (&row.settings.backup, newest) else {
        return backups::nothing(app, session).await;
    };
    let tell: Tell = Arc::new(|_| {});
    let named = |tag: String| format!("{}:{tag}", plan.registry).parse::<Reference>();
    // One tag for each, and one that always means the newest.
    let sent = async {
        let own = named(format!("{session}-{}", newest.n))?;
        let to = [
            app.registries.registry(&own, Login::Servers, address_policy.clone()).await?,
            app.registries.registry(&named(session.to_string())?, Login::Servers, address_policy).await?,
        ];
        let (digest, _) = push::send(app, row.owner_id, (&row, &newest), &to, &tell).await?;
        Ok::<_, Failure>((own.to_string(), digest.to_string()))
    };
    match sent.await {
        Ok(sent) => backups::done(app, session, (newest.n, &plan.registry), sent).await,
        Err(failure) => {
            tracing::warn!(%session, n = newest.n, error = %failure, "a backup failed; it is tried again");
            backups::failed(app, session, (newest.n, &plan.registry), failure.into_problem().detail).await
        }
    }
}
