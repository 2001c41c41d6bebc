//! For how long a request may go on: until its token, its account or its session ends, or the server stops.
//!
//! A middleware (`http/leased.rs`) ends every request whose lease ends, as if its client had gone away, and what is still
//! being answered to it. What outlives a request, as a connection that was upgraded does, takes the [`Lease`] along (it is an
//! extractor) and waits for [`Lease::ended`].

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use raworc_api::problem::Code;
use raworc_core::ids::{AccountId, SessionId};
use raworc_core::permissions::Actor;
use raworc_core::session::Refused;
use raworc_core::time::Time;
use raworc_store::accounts;
use raworc_store::sessions;
use tokio::sync::watch;

use crate::app::Shared;
use crate::error::Failure;

/// A clock that is set meanwhile is noticed after this long.
const CLOCK_LOOK: Duration = Duration::from_secs(5);
/// A store that fails is asked again after this long.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// What a request gets to end by itself when the server stops; less than the server itself takes.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// The right of a request to go on. Cheap to clone.
#[derive(Clone)]
pub struct Lease(Arc<Inner>);

struct Inner {
    app: Shared,
    hash: String,
    actor: Actor,
    expires_at: Option<Time>,
    changes: watch::Receiver<()>,
    /// The request ends its own token, and is to hear that it did.
    is_last: AtomicBool,
    /// It has ended, and whoever waited for that has heard.
    is_over: AtomicBool,
}

impl Lease {
    /// The lease of the token with this hash.
    ///
    /// # Errors
    /// 401 where the token is of no use.
    pub async fn of(app: &Shared, hash: &str) -> Result<Self, Failure> {
        loop {
            let before = app.hub.revocations();
            let found = {
                let mut connection = app.store.read().await?;
                accounts::authenticate(&mut connection, hash, app.now()).await?
            };
            let accounts::Authenticated { actor, expires_at } = found.ok_or_else(unknown)?;
            let changes = app.hub.subscribe_revoked(actor.account);
            if app.hub.revocations() == before {
                let (app, hash) = (app.clone(), hash.to_owned());
                let (is_last, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
                return Ok(Self(Arc::new(Inner { app, hash, actor, expires_at, changes, is_last, is_over })));
            }
        }
    }

    /// Who sent the request.
    pub fn actor(&self) -> &Actor {
        &self.0.actor
    }

    /// Whose it is.
    pub fn account(&self) -> AccountId {
        self.0.actor.account
    }

    /// The request is about to end its own token: it may go on to its own end.
    pub fn let_end(&self) {
        self.0.is_last.store(true, Ordering::SeqCst);
    }

    /// Waits until the token or its account ends, or its role changes; or the server stops, and what it gives to requests is
    /// over. Why, as a problem.
    pub async fn ended(&self) -> Failure {
        let stopping = self.0.app.stopping.clone();
        let stops = async {
            stopping.cancelled_owned().await;
            tokio::time::sleep(STOP_GRACE).await;
        };
        let failure = tokio::select! {
            failure = self.revoked() => failure,
            () = stops => {
                let detail = "the server stops, and has ended this request; look whether it was carried out, and try again soon";
                Failure::new(Code::Unavailable, detail)
            }
        };
        self.0.is_over.store(true, Ordering::SeqCst);
        failure
    }

    /// Looks up whether it still holds.
    ///
    /// # Errors
    /// 401 where it does not; where the store fails.
    pub async fn confirm(&self) -> Result<(), Failure> {
        if self.check().await? { Ok(()) } else { Err(unknown()) }
    }

    /// Whether it has ended, as [`Lease::ended`] has told someone.
    pub fn is_over(&self) -> bool {
        self.0.is_over.load(Ordering::SeqCst)
    }

    /// As [`Lease::ended`], and until the session is deleted.
    pub async fn ended_on(&self, session: SessionId) -> Failure {
        tokio::select! {
            failure = self.ended() => failure,
            failure = deleted(&self.0.app, session) => failure,
        }
    }

    /// Does the work for as long as the session is there. Where it is deleted, the work is dropped, as if its client had gone away.
    ///
    /// # Errors
    /// The work's, or that the session is deleted.
    pub async fn on<T>(
        &self,
        session: SessionId,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            outcome = work => outcome,
            failure = deleted(&self.0.app, session) => Err(failure),
        }
    }

    async fn revoked(&self) -> Failure {
        let mut changes = self.0.changes.clone();
        loop {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { pending::<()>().await },
                () = self.may_expire() => {}
            }
            while !self.0.is_last.load(Ordering::SeqCst) {
                match self.check().await {
                    Ok(true) => break,
                    Ok(false) => return unknown(),
                    Err(error) => {
                        tracing::warn!(%error, "it could not be looked up whether a token still works");
                        tokio::time::sleep(STORE_PAUSE).await;
                    }
                }
            }
        }
    }

    async fn may_expire(&self) {
        match self.0.expires_at {
            Some(at) => tokio::time::sleep(at.since(self.0.app.now()).min(CLOCK_LOOK)).await,
            None => pending().await,
        }
    }

    /// Whether it holds.
    async fn check(&self) -> Result<bool, Failure> {
        let mut connection = self.0.app.store.read().await?;
        let found = accounts::authenticate(&mut connection, &self.0.hash, self.0.app.now()).await?;
        Ok(found.is_some_and(|found| found.actor == self.0.actor))
    }
}

impl FromRequestParts<Shared> for Lease {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Failure> {
        parts.extensions.get::<Lease>().cloned().ok_or_else(unknown)
    }
}

/// Waits until a session is deleted. Never ends for one that is deleted already: what is asked of one is allowed of it.
async fn deleted(app: &Shared, session: SessionId) -> Failure {
    let mut changes = app.hub.subscribe(session);
    let mut was_deleted = None;
    loop {
        match is_deleted(app, session).await {
            Ok(is) if is && was_deleted == Some(false) => return Refused::Deleted.into(),
            Ok(is) => was_deleted = Some(is),
            Err(error) => tracing::warn!(%session, %error, "it could not be looked up whether a session is deleted"),
        }
        if changes.changed().await.is_err() {
            pending::<()>().await;
        }
    }
}

async fn is_deleted(app: &Shared, session: SessionId) -> Result<bool, Failure> {
    let mut connection = app.store.read().await?;
    Ok(sessions::is_deleted(&mut connection, session).await?)
}

fn unknown() -> Failure {
    Failure::new(Code::Unauthenticated, "this token is unknown, expired or revoked")
}
