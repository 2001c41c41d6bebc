//! Tells sessions that their time has come: to rest, to restart, to end.

use std::time::Duration;

use futures::StreamExt as _;
use raworc_core::ids::SessionId;
use raworc_core::time::Time;
use raworc_store::{sessions, set_aside};
use tokio::time::Instant;

use super::TOLD_AT_ONCE;
use crate::app::Shared;
use crate::error::Failure;
use crate::loops::supervise::Loop;
use crate::record::observe;

/// Deadlines are looked at this long after a change, so that many changes cost one look.
const COALESCE: Duration = Duration::from_millis(20);
/// And at least this often, should the clock have jumped.
const LOOK_AT_LEAST: Duration = Duration::from_secs(5);
/// A clock that is behind by more than this has been set back.
const SET_BACK: Duration = Duration::from_secs(1);
/// Wait after something failed.
const RETRY: Duration = Duration::from_secs(1);
/// Sessions told in one round.
const ROUND: u32 = 256;

/// Tells sessions that their time has come.
pub struct Deadlines;

impl Loop for Deadlines {
    const NAME: &'static str = "deadlines";
    const TRIGGER: &'static str = "a session that changed, the next deadline, 5 seconds";

    fn bound() -> String {
        format!("{ROUND} sessions in one go, {TOLD_AT_ONCE} at once")
    }

    async fn run(app: Shared) {
        // It may have been set back while no server ran.
        let mut doubt = true;
        loop {
            let (began, at) = (Instant::now(), app.now());
            let result = if doubt { tell_all(&app).await } else { round(&app).await };
            doubt &= result.is_err();
            app.loops.ran(Deadlines::NAME, result.is_ok());
            let wait = match result {
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
            doubt |= app.now() + SET_BACK < at + began.elapsed();
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
    if due.is_empty() { Ok(next) } else { tell(app, due).await }
}

/// Tells everyone who waits for something that cannot be far away, whatever the records say; the next deadline after that.
async fn tell_all(app: &Shared) -> Result<Option<Time>, Failure> {
    let waiting = {
        let mut connection = app.store.read().await?;
        sessions::waiting(&mut connection).await?
    };
    tell(app, waiting).await
}

/// Has nobody look at a session any more whose record is damaged, until it is mended.
async fn set_aside(app: &Shared, session: SessionId) -> Result<(), Failure> {
    let write = app.store.write(move |tx| {
        Box::pin(async move {
            set_aside::set_aside(tx, &session.to_string()).await?;
            Ok::<_, Failure>(())
        })
    });
    write.await
}

/// Tells each of them. Where one could not be told, the others are, and it fails.
async fn tell(app: &Shared, waiting: Vec<SessionId>) -> Result<Option<Time>, Failure> {
    let told = futures::stream::iter(waiting).map(async |session| tell_one(app, session).await);
    let told: Vec<Result<(), Failure>> = told.buffer_unordered(TOLD_AT_ONCE).collect().await;
    told.into_iter().collect::<Result<(), Failure>>()?;
    let mut connection = app.store.read().await?;
    Ok(sessions::next_deadline(&mut connection).await?)
}

async fn tell_one(app: &Shared, session: SessionId) -> Result<(), Failure> {
    let told = match observe::tick(app, session).await {
        // Nothing comes of it before it is mended.
        Err(error) if error.damage().is_some() => set_aside(app, session).await,
        told => told.map(|_| ()),
    };
    if let Err(error) = &told {
        tracing::error!(%session, %error, "a session could not be told that its time has come");
    }
    told
}
