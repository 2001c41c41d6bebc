//! Tell a session what was observed of its container. What comes too late is dropped.

use raworc_core::events::{EnforcedBy, SessionDiskQuotaExceeded};
use raworc_core::ids::{ContainerId, SessionId};
use raworc_core::session::{Event, Fault, FaultCode, Session};
use raworc_runtime::ExitReason;

use crate::app::Shared;
use crate::change::{Change, SYSTEM};
use crate::error::Failure;

/// The host asks for work. False where it is not the session's current host.
///
/// # Errors
/// Where the store fails.
pub async fn host_polled(app: &Shared, container: ContainerId) -> Result<bool, Failure> {
    observe(app, container.session, Event::HostPolled { generation: container.generation }).await
}

/// The container is still to be started, when it is its turn.
///
/// # Errors
/// Where the store fails.
pub async fn start_waits(app: &Shared, container: ContainerId) -> Result<bool, Failure> {
    observe(app, container.session, Event::StartWaits { generation: container.generation }).await
}

/// The container could not be started.
///
/// # Errors
/// Where the store fails.
pub async fn start_failed(
    app: &Shared,
    container: ContainerId,
    code: FaultCode,
    message: String,
) -> Result<bool, Failure> {
    let fault = Fault { code, message };
    observe(app, container.session, Event::StartFailed { generation: container.generation, fault }).await
}

/// The container is gone.
///
/// # Errors
/// Where the store fails.
pub async fn container_gone(app: &Shared, container: ContainerId, reason: ExitReason) -> Result<bool, Failure> {
    let (code, message) = match reason {
        ExitReason::Exited(status) => {
            (FaultCode::ContainerExited, format!("the container's first process exited with status {status}"))
        }
        ExitReason::Signalled(signal) => {
            (FaultCode::ContainerKilled, format!("signal {signal} ended the container's first process"))
        }
        ExitReason::OutOfMemory => {
            (FaultCode::OutOfMemory, "the container was killed because it went over its memory limit".to_owned())
        }
        ExitReason::Unknown => (FaultCode::ContainerGone, "the container ended while nobody was watching".to_owned()),
    };
    let fault = Fault { code, message };
    observe(app, container.session, Event::ContainerGone { generation: container.generation, fault }).await
}

/// The session takes so many bytes of the disk, which is more than it may; none where they are too many to be counted.
///
/// # Errors
/// Where the store fails.
pub async fn over_quota(app: &Shared, container: ContainerId, used_bytes: Option<u64>) -> Result<bool, Failure> {
    let now = app.now();
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let mut change = Change::load(tx, container.session, now, SYSTEM).await?;
                let limit_bytes = change.row.settings.disk;
                if !apply(&mut change, Event::OverQuota { generation: container.generation }).await? {
                    return Ok(false);
                }
                let enforced_by = EnforcedBy::Stopping;
                change.log(SessionDiskQuotaExceeded { used_bytes, limit_bytes, enforced_by }).await?;
                change.save().await?;
                Ok(true)
            })
        })
        .await
}

/// The file system refuses what is written, since it would be more than the session may take. Whoever writes goes on.
///
/// # Errors
/// Where the store fails.
pub async fn at_quota(app: &Shared, container: ContainerId, used_bytes: u64) -> Result<(), Failure> {
    let now = app.now();
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let mut change = Change::load(tx, container.session, now, SYSTEM).await?;
                if change.row.machine.generation != container.generation {
                    return Ok(());
                }
                let limit_bytes = change.row.settings.disk;
                let (used_bytes, enforced_by) = (Some(used_bytes), EnforcedBy::FileSystem);
                change.log(SessionDiskQuotaExceeded { used_bytes, limit_bytes, enforced_by }).await?;
                change.save().await?;
                Ok(())
            })
        })
        .await
}

/// The host was not heard of for too long.
///
/// # Errors
/// Where the store fails.
pub async fn host_lost(app: &Shared, container: ContainerId) -> Result<bool, Failure> {
    observe(app, container.session, Event::HostLost { generation: container.generation }).await
}

/// A deadline of the session may have come.
///
/// # Errors
/// Where the store fails.
pub async fn tick(app: &Shared, session: SessionId) -> Result<bool, Failure> {
    let now = app.now();
    let app_in_job = app.clone();
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let mut change = Change::load(tx, session, now, SYSTEM).await?;
                let container = ContainerId { session, generation: change.row.machine.generation };
                let counts = change.row.settings.background_activity;
                let active_inside = app_in_job.hosts.is_active(container, counts);
                apply(&mut change, Event::Tick { active_inside }).await?;
                change.save().await?;
                Ok(true)
            })
        })
        .await
}

async fn observe(app: &Shared, session: SessionId, event: Event) -> Result<bool, Failure> {
    let now = app.now();
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let mut change = Change::load(tx, session, now, SYSTEM).await?;
                let before: Session = change.row.machine.clone();
                if !apply(&mut change, event).await? {
                    return Ok(false);
                }
                if change.row.machine != before {
                    change.save().await?;
                }
                Ok(true)
            })
        })
        .await
}

async fn apply(change: &mut Change<'_>, event: Event) -> Result<bool, Failure> {
    match change.step(&event).await {
        Ok(()) => Ok(true),
        Err(Failure::Refused(refused)) => {
            tracing::debug!(session = %change.row.id, ?event, %refused, "an observation came too late");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
