//! Tells sessions that their time has come: to rest, to restart, to end.

use std::time::Duration;

use raworc_core::time::Time;
use raworc_store::sessions;

use crate::app::Shared;
use crate::error::Failure;
use crate::verbs::observe;

/// Deadlines are looked at this long after a change, so that many changes cost one look.
const COALESCE: Duration = Duration::from_millis(20);
/// And at least this often, should the clock have jumped.
const LOOK_AT_LEAST: Duration = Duration::from_secs(30);
/// Wait after something failed.
const RETRY: Duration = Duration::from_secs(1);
/// Sessions told in one round.
const ROUND: u32 = 256;

/// Runs until the server stops.
pub async fn run(app: Shared) {
    loop {
        let wait = match round(&app).await {
            Ok(next) => next.map_or(LOOK_AT_LEAST, |at| at.since(app.now())).min(LOOK_AT_LEAST),
            Err(error) => {
                tracing::error!(%error, "deadlines could not be looked at");
                RETRY
            }
        };
        tokio::select! {
            biased;
            () = app.stopping.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            () = app.hub.deadlines_changed() => tokio::time::sleep(COALESCE).await,
        }
    }
}

/// Tells everyone whose time has come; the next deadline after that.
async fn round(app: &Shared) -> Result<Option<Time>, Failure> {
    let (due, next) = {
        let mut connection = app.store.read().await?;
        let due = sessions::due(&mut connection, app.now(), ROUND).await?;
        (due, sessions::next_deadline(&mut connection).await?)
    };
    if due.is_empty() {
        return Ok(next);
    }
    let mut has_failed = false;
    for session in due {
        if let Err(error) = observe::tick(app, session).await {
            tracing::error!(%session, %error, "a session could not be told that its time has come");
            has_failed = true;
        }
    }
    if has_failed {
        return Ok(Some(app.now() + RETRY));
    }
    let mut connection = app.store.read().await?;
    Ok(sessions::next_deadline(&mut connection).await?)
}
