//! Tell how the server is, part by part.

use std::collections::BTreeMap;
use std::time::Duration;

use raworc_api::health::{DamagedRecord, Health, HealthProblem, LoopHealth, LoopList, LoopStatus};
use raworc_core::permissions::{Action, Actor, Decision, allow};
use raworc_store::{StoreError, sessions};

use crate::app::Shared;
use crate::encryption::{KEY_FILE, Undecryptable};
use crate::error::Failure;
use crate::loops::outcomes::LoopState;
use crate::policy::permit;
use crate::record::damages;
use crate::reserve::Room;
use crate::sync::blocking;

/// A part that does not answer for so long does not work.
const PATIENCE: Duration = Duration::from_secs(5);
/// So many damaged records, and missing layers, are named at most.
const NAMED_MAX: usize = 100;

/// The words of all parts, and what is wrong with them.
#[derive(Default)]
struct Report {
    parts: BTreeMap<String, String>,
    problems: Vec<HealthProblem>,
}

impl Report {
    fn part(&mut self, name: &str, word: &str) {
        self.parts.insert(name.to_owned(), word.to_owned());
    }

    fn problem(&mut self, part: &str, problem: impl Into<String>, remedy: &str) {
        let (part, problem, remedy) = (part.to_owned(), problem.into(), remedy.to_owned());
        self.problems.push(HealthProblem { part, problem, remedy });
    }

    fn wrong(&mut self, part: &str, word: &str, problem: impl Into<String>, remedy: &str) {
        self.part(part, word);
        self.problem(part, problem, remedy);
    }
}

/// How the server is. What exactly is wrong is told to administrators.
pub async fn health(app: &Shared, actor: Option<&Actor>) -> Health {
    let mut report = Report::default();
    let (store, runtime) = (store(app, &mut report).await, runtime(app, &mut report).await);
    let damaged = if store { records(app, &mut report).await } else { Vec::new() };
    if store {
        secrets(app, &mut report).await;
    }
    disk(app, &mut report).await;
    let loops = loops(app, &mut report);
    let status = match (store && runtime, report.parts.values().all(|word| word == "ok")) {
        (false, _) => "unavailable",
        (true, false) => "degraded",
        (true, true) => "ok",
    };
    let Report { parts, problems } = report;
    let told =
        Health { status: status.to_owned(), parts, problems: Vec::new(), damaged: Vec::new(), loops: BTreeMap::new() };
    let may_know = |actor: &Actor| matches!(allow(actor, Action::ReadServer), Decision::Allow);
    if actor.is_some_and(may_know) { Health { problems, damaged, loops, ..told } } else { told }
}

async fn store(app: &Shared, report: &mut Report) -> bool {
    // Something is asked of those that read, and of the one that writes.
    let check = async {
        app.store.check().await?;
        app.store.version_elsewhere().await
    };
    let found = tokio::time::timeout(PATIENCE, check).await;
    let found = found.unwrap_or_else(|_| Err(StoreError::Unavailable("it does not answer".into())));
    match found {
        Ok(_) => report.part("store", "ok"),
        Err(StoreError::Corrupt(_)) => report.wrong(
            "store",
            "damaged",
            "the database file is damaged",
            "stop the server and put a copy of raworc.db back; see docs/troubleshooting.md",
        ),
        // Reading goes on.
        Err(StoreError::DiskFull) => report.part("store", "ok"),
        Err(error) => {
            tracing::error!(%error, "the store does not work");
            report.wrong("store", "unavailable", "the database does not answer", "see the server's log; restart it");
        }
    }
    report.parts.get("store").is_some_and(|word| word == "ok")
}

async fn runtime(app: &Shared, report: &mut Report) -> bool {
    let found = tokio::time::timeout(PATIENCE, app.runtime.check()).await;
    let Ok(Ok(facts)) = found else {
        report.wrong(
            "runtime",
            "unavailable",
            "the container runtime does not answer",
            "`raworc doctor` says what it lacks",
        );
        return false;
    };
    report.part("runtime", "ok");
    match facts.get("launcher").map(String::as_str) {
        None | Some("running") => report.part("launcher", "ok"),
        Some("starting") => {
            report.wrong("launcher", "starting", "what starts containers is being started", "wait a moment")
        }
        Some(_) => {
            let problem = "what starts containers has ended, and is started again; containers that run go on";
            report.wrong("launcher", "unavailable", problem, "if it does not come back, see the server's log");
        }
    }
    true
}

async fn records(app: &Shared, report: &mut Report) -> Vec<DamagedRecord> {
    // What is not known by then is told the next time.
    let news = tokio::time::timeout(damages::NEWS_MAX, damages::look(app)).await;
    if let Ok(Err(error)) = news {
        tracing::error!(%error, "the records could not be looked through");
    }
    let damages = app.store.damages();
    if damages.is_empty() {
        report.part("records", "ok");
    } else {
        let problem = format!("{} records of the database are damaged, and set aside", damages.len());
        report.wrong("records", "damaged", problem, "mend them: docs/errors/record_damaged.md");
    }
    match tokio::time::timeout(damages::NEWS_MAX, damages::missing_layers(app)).await {
        Ok(Ok(missing)) if !missing.is_empty() => {
            let names: Vec<String> = missing.iter().take(NAMED_MAX).map(ToString::to_string).collect();
            let problem = format!("directories in layers/ are missing: {}", names.join(", "));
            report.wrong("layers", "missing", problem, "put them back from a copy: docs/errors/workspace_damaged.md");
        }
        Ok(Ok(_)) | Err(_) => report.part("layers", "ok"),
        Ok(Err(error)) => {
            tracing::error!(%error, "the layers could not be listed");
            report.wrong("layers", "unavailable", "the directory layers/ cannot be read", "see the server's log");
        }
    }
    match unheard(app).await {
        Ok(0) | Err(_) => report.part("hosts", "ok"),
        Ok(count) => {
            let problem = format!("{count} containers that are recorded as running have no host");
            report.wrong(
                "hosts",
                "missing",
                problem,
                "wait: the next sweep, within a minute, gives their sessions new ones",
            );
        }
    }
    let named = damages.into_iter().take(NAMED_MAX).map(|damage| DamagedRecord {
        table: damage.table.to_owned(),
        id: damage.id,
        column: damage.column,
        reason: damage.reason,
    });
    named.collect()
}

/// Whether what is encrypted in the records can be decrypted.
async fn secrets(app: &Shared, report: &mut Report) {
    let found = match app.catalog.inspect(&app.store).await {
        Ok(found) => found,
        Err(error) => {
            tracing::error!(%error, "what is encrypted could not be read");
            return report.wrong("secrets", "unavailable", "what is encrypted cannot be read", "see the server's log");
        }
    };
    let locked = found.models.locked();
    let mut whose: Vec<&str> = locked.iter().map(|(name, _)| *name).take(NAMED_MAX).collect();
    whose.extend(found.has_locked_secrets.then_some("secrets of accounts"));
    let whose = whose.join(", ");
    let remedy = "put the file back from a copy, or give keys and values anew: docs/errors/key_file_unusable.md";
    match (found.key_file, whose.is_empty()) {
        (_, true) => report.part("secrets", "ok"),
        (Some(error), false) => {
            let problem = format!("{KEY_FILE} in the data directory {error}; without it nobody can decrypt: {whose}");
            report.wrong("secrets", "key_file_unusable", problem, remedy);
        }
        (None, false) => {
            let reason = locked.first().map_or(Undecryptable::OtherKey, |(_, reason)| *reason);
            let problem = format!("what is encrypted {reason}: {whose}");
            report.wrong("secrets", "undecryptable", problem, remedy);
        }
    }
}

/// How many containers are up without anyone who would miss their hosts.
async fn unheard(app: &Shared) -> Result<usize, Failure> {
    let read = app.scan(|connection| Box::pin(async move { Ok(sessions::containers_up(connection).await?) }));
    let (up, _place) = read.await?;
    Ok(up.into_iter().filter(|container| !app.hosts.is_expected(*container)).count())
}

async fn disk(app: &Shared, report: &mut Report) {
    let Some(reserve) = app.reserve.clone() else { return report.part("disk", "ok") };
    let remedy = "`raworc system df` says what takes space, `raworc system prune` gives some back";
    match blocking(move || reserve.room()).await.flatten() {
        Ok(Room::Enough) => report.part("disk", "ok"),
        Ok(Room::Little) => report.wrong("disk", "low", "the disk of the data directory is almost full", remedy),
        Ok(Room::None) => report.wrong("disk", "full", "the disk of the data directory is full", remedy),
        Ok(Room::FewFiles) => {
            report.wrong("disk", "low", "the file system of the data directory has almost no inodes left", remedy);
        }
        Ok(Room::NoFiles) => {
            report.wrong("disk", "full", "the file system of the data directory has no inodes left", remedy);
        }
        Ok(Room::Refused) => {
            let problem = "the file system of the data directory refuses to write, though it has room";
            report.wrong(
                "disk",
                "full",
                problem,
                "raise the quota of the server's user, or give back what `raworc system prune` can",
            );
        }
        Err(error) => {
            tracing::error!(%error, "the disk cannot be looked at");
            report.wrong("disk", "unavailable", "the data directory cannot be looked at", "see the server's log");
        }
    }
}

fn loops(app: &Shared, report: &mut Report) -> BTreeMap<String, LoopHealth> {
    let all = app.loops.all();
    let bad: Vec<&str> = all.iter().filter(|(_, state)| state.status() != "ok").map(|(name, _)| *name).collect();
    if bad.is_empty() {
        report.part("loops", "ok");
    } else {
        let problem = format!("what the server does by itself does not work: {}", bad.join(", "));
        report.wrong("loops", "failing", problem, "see the server's log; a fault that stays is one to report");
    }
    all.into_iter().map(|(name, state)| (name.to_owned(), loop_health(&state))).collect()
}

fn loop_health(state: &LoopState) -> LoopHealth {
    let last_run_seconds = state.ran_before().map(|before| before.as_secs());
    LoopHealth { status: state.status().to_owned(), restarts: state.restarts, last_run_seconds }
}

/// All that the server does by itself.
///
/// # Errors
/// 403 for those who are no administrators.
pub fn loop_list(app: &Shared, actor: &Actor) -> Result<LoopList, Failure> {
    permit(actor, Action::ReadServer, "loops", "")?;
    let items = app.loops.all().into_iter().map(|(name, state)| LoopStatus {
        name: name.to_owned(),
        trigger: state.trigger.to_owned(),
        bound: state.bound.clone(),
        health: loop_health(&state),
    });
    Ok(LoopList { items: items.collect() })
}
