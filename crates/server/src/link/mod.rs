//! The server's side of the link to hosts: see [`raworc_core::link`] for what is said.

pub mod attachments;
pub mod hosts;

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, SinkExt, StreamExt};
use raworc_api::agent::AgentRuntime;
use raworc_core::ids::{ContainerId, TurnId};
use raworc_core::limits::FRAME_BYTES_MAX;
use raworc_core::link::{FEATURE_ATTACH, HostFrame, Report, ServerFrame, Versions, WorkId};
use raworc_core::session::{Container, Running, State};
use raworc_store::messages::MessageRow;
use raworc_store::sessions::SessionRow;
use raworc_store::{messages, sessions};
use tokio::net::UnixListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::codec::{Framed, LinesCodec, LinesCodecError};
use uuid::Uuid;

use self::attachments::{Stream, Way};
use crate::app::Shared;
use crate::error::Failure;
use crate::gateway;
use crate::gateway::connections::{GatewayConnection, GatewayConnections};
use crate::record::take_message::Task;
use crate::record::{observe, store_reports, streams, take_message, turn_end};
use crate::turns;
use crate::turns::drivers::Turn;

/// A connection says who it is by then.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that have not said yet whose they are. More wait to be accepted.
pub const HOSTS_PENDING_MAX: usize = 64;
/// How long a host is left waiting when its connection failed on our side.
const FAILED_PAUSE: Duration = Duration::from_secs(1);
/// Reports stored in one go.
const REPORTS_BATCH: usize = 64;

type Frames = Framed<Box<dyn Stream>, LinesCodec>;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the host went away")]
    Gone,
    #[error("the host sent something that is no frame: {0}")]
    Malformed(String),
    #[error("refused: {0}")]
    Refused(&'static str),
    #[error("{0}")]
    Failed(#[from] Failure),
    #[error("the server stops")]
    Stopping,
}

impl From<raworc_store::StoreError> for Ended {
    fn from(error: raworc_store::StoreError) -> Self {
        Ended::Failed(error.into())
    }
}

/// Listens for hosts at `path`. Only the containers' root may connect, so that agents cannot speak for their host.
///
/// # Errors
/// Where the socket cannot be made.
pub fn listen(path: &Path, owner: Option<u32>) -> std::io::Result<UnixListener> {
    // Whatever is there: a socket that is left, or worse.
    let is_directory = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    match if is_directory { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) } {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    if owner.is_some() {
        chown(path, owner, owner)?;
    }
    Ok(listener)
}

/// Accepts hosts until the server stops.
pub async fn accept(app: Shared, listener: UnixListener) {
    let pending = Arc::new(Semaphore::new(HOSTS_PENDING_MAX));
    loop {
        let accept = async {
            let place = Arc::clone(&pending).acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = app.stopping.cancelled() => return,
            accepted = accept => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                app.tasks.spawn(introduce(app.clone(), Box::new(stream), place));
            }
            Err(error) => {
                tracing::error!(%error, "a host could not be accepted");
                // Out of descriptors, most likely: give others time to close theirs.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Talks to the host at the other end of `stream` until one of the two goes.
pub async fn serve(app: Shared, stream: Box<dyn Stream>) {
    introduce(app, stream, None).await;
}

/// The same; `place` is given back when the host has said whose it is.
async fn introduce(app: Shared, stream: Box<dyn Stream>, place: Option<OwnedSemaphorePermit>) {
    let mut frames = Framed::new(stream, LinesCodec::new_with_max_length(FRAME_BYTES_MAX));
    let first = match hello(&app, &mut frames).await {
        Ok(first) => first,
        Err(ended) => {
            if let Ended::Refused(code) = ended {
                let _ = send(&mut frames, &ServerFrame::Refused { code: code.into() }).await;
            }
            tracing::debug!(%ended, "a host was not let in");
            return;
        }
    };
    drop(place);
    let (container, works) = match first {
        First::Host(container, works) => (container, works),
        First::Attachment(container, attachment) => {
            let parts = frames.into_parts();
            app.attachments.arrived(container, attachment, Way { stream: parts.io, read: parts.read_buf });
            return;
        }
        First::Gateway(container, connection) => {
            let parts = frames.into_parts();
            gateway::serve(&app, container, Way { stream: parts.io, read: parts.read_buf }).await;
            drop(connection);
            return;
        }
    };
    let (number, outgoing) = app.hosts.connect(container);
    let mut link = Link { app: app.clone(), container, frames, polled: false, cancelled: BTreeSet::new() };
    let ended = link.run(works, outgoing).await;
    app.hosts.disconnect(container, number);
    match ended {
        Err(Ended::Gone | Ended::Stopping) | Ok(()) => {
            tracing::debug!(%container, "a host's connection ended")
        }
        Err(ended) => {
            tracing::warn!(%container, %ended, "a host's connection ended");
            // A host dials again at once. Where the disk is full, for example, once a second is enough.
            tokio::time::sleep(FAILED_PAUSE).await;
        }
    }
}

/// What a connection is for.
enum First {
    /// A host's own, with the works that it has.
    Host(ContainerId, Vec<WorkId>),
    /// One client's of a stream.
    Attachment(ContainerId, Uuid),
    /// One of a program in the container to the gateway.
    Gateway(ContainerId, GatewayConnection),
}

async fn hello(app: &Shared, frames: &mut Frames) -> Result<First, Ended> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, receive(frames)).await.map_err(|_| Ended::Gone)??;
    match first {
        HostFrame::Hello { versions, token, works, features } => {
            let (protocol, container, row) = check(app, versions, &token).await?;
            let can_attach = features.iter().any(|feature| feature == FEATURE_ATTACH);
            let known = streams::reconcile_streams(app, container, &works).await?;
            app.hosts.describe(container, can_attach, known);
            send(frames, &ServerFrame::Welcome { received: row.host_received, protocol }).await?;
            Ok(First::Host(container, works))
        }
        HostFrame::Attached { versions, token, attachment } => {
            let (protocol, container, _) = check(app, versions, &token).await?;
            if !app.attachments.is_expected(container, attachment) {
                return Err(Ended::Refused("unknown_attachment"));
            }
            send(frames, &ServerFrame::Welcome { received: 0, protocol }).await?;
            Ok(First::Attachment(container, attachment))
        }
        HostFrame::Gateway { versions, token } => {
            let (protocol, container, _) = check(app, versions, &token).await?;
            let connection = GatewayConnections::open(&app.gateway_connections, container);
            let connection = connection.ok_or(Ended::Refused("too_many_connections"))?;
            send(frames, &ServerFrame::Welcome { received: 0, protocol }).await?;
            Ok(First::Gateway(container, connection))
        }
        _ => Err(Ended::Malformed("the first frame is not a hello".into())),
    }
}

/// Who dials, where it is a session's current host, and the version of frames that is spoken with it.
async fn check(app: &Shared, versions: Versions, token: &str) -> Result<(u32, ContainerId, SessionRow), Ended> {
    let protocol = versions.common().ok_or(Ended::Refused("unknown_protocol"))?;
    let container = app.host_tokens.check(token).ok_or(Ended::Refused("unknown_token"))?;
    Ok((protocol, container, load(app, container).await?))
}

/// The session, where this container is its current one.
async fn load(app: &Shared, container: ContainerId) -> Result<SessionRow, Ended> {
    let mut connection = app.store.read().await?;
    let row = sessions::find(&mut connection, container.session).await?.ok_or(Ended::Refused("unknown_token"))?;
    let is_current = row.machine.generation == container.generation;
    if is_current && matches!(row.machine.container, Container::Starting | Container::Up) {
        Ok(row)
    } else {
        Err(Ended::Refused("fenced"))
    }
}

async fn receive(frames: &mut Frames) -> Result<HostFrame, Ended> {
    frame(frames.next().await)
}

fn frame(line: Option<Result<String, LinesCodecError>>) -> Result<HostFrame, Ended> {
    match line {
        Some(Ok(line)) => serde_json::from_str(&line).map_err(|error| Ended::Malformed(error.to_string())),
        Some(Err(error)) => Err(Ended::Malformed(error.to_string())),
        None => Err(Ended::Gone),
    }
}

async fn send(frames: &mut Frames, frame: &ServerFrame) -> Result<(), Ended> {
    let line = serde_json::to_string(frame).map_err(|error| Ended::Malformed(error.to_string()))?;
    frames.send(line).await.map_err(|_| Ended::Gone)
}

struct Link {
    app: Shared,
    container: ContainerId,
    frames: Frames,
    /// The host waits for a message.
    polled: bool,
    /// Turns it was told to end.
    cancelled: BTreeSet<TurnId>,
}

impl Link {
    async fn run(
        &mut self,
        works: Vec<WorkId>,
        mut outgoing: tokio::sync::mpsc::Receiver<ServerFrame>,
    ) -> Result<(), Ended> {
        let mut changes = self.app.hub.subscribe(self.container.session);
        self.cancel_unknown(works).await?;
        self.look().await?;
        let stopping = self.app.stopping.clone();
        loop {
            // What the host sends comes last: it may send without end.
            tokio::select! {
                biased;
                () = stopping.cancelled() => return Err(Ended::Stopping),
                frame = outgoing.recv() => match frame {
                    Some(frame) => send(&mut self.frames, &frame).await?,
                    // A newer connection of the same host took over.
                    None => return Ok(()),
                },
                changed = changes.changed() => {
                    changed.map_err(|_| Ended::Stopping)?;
                    self.look().await?;
                }
                frame = receive(&mut self.frames) => self.handle(frame?).await?,
            }
        }
    }

    /// Ends work that the host still does but that nobody wants any more.
    async fn cancel_unknown(&mut self, works: Vec<WorkId>) -> Result<(), Ended> {
        let running = load(&self.app, self.container).await?.machine.running.map(|running| running.turn);
        for work in works {
            let wanted = match work {
                WorkId::Turn(id) => running == Some(id),
                WorkId::Exec(id) => {
                    self.app.hosts.exec_reports(self.container, id).is_some()
                        || self.app.hosts.has_stream(self.container, id)
                }
            };
            if !wanted {
                send(&mut self.frames, &ServerFrame::Cancel(work)).await?;
            }
        }
        Ok(())
    }

    async fn handle(&mut self, frame: HostFrame) -> Result<(), Ended> {
        self.app.hosts.heard(self.container, None);
        match frame {
            HostFrame::Hello { .. } | HostFrame::Attached { .. } | HostFrame::Gateway { .. } => {
                Err(Ended::Malformed("a second hello".into()))
            }
            HostFrame::Heartbeat { background_processes } => {
                self.app.hosts.heard(self.container, Some(background_processes));
                Ok(())
            }
            HostFrame::Poll => self.poll().await,
            HostFrame::Report { n, report } => self.reports(n, report).await,
        }
    }

    /// Stores this report together with those that have arrived behind it; also where the connection ends behind them.
    async fn reports(&mut self, n: u64, report: Report) -> Result<(), Ended> {
        let mut batch = vec![(n, report)];
        let mut next = None;
        while batch.len() < REPORTS_BATCH {
            let Some(line) = self.frames.next().now_or_never() else {
                break;
            };
            match frame(line) {
                Ok(HostFrame::Report { n, report }) => batch.push((n, report)),
                other => {
                    next = Some(other);
                    break;
                }
            }
        }
        let last = batch.last().map_or(n, |(n, _)| *n);
        let (of_turn, of_execs): (Vec<_>, Vec<_>) = batch.into_iter().partition(|(_, report)| {
            let (Report::Output { work, .. } | Report::Finished { work, .. }) = report;
            matches!(work, WorkId::Turn(_))
        });
        if !of_turn.is_empty() {
            self.store(of_turn).await?;
        }
        for (n, report) in of_execs {
            self.pass_on(n, report).await?;
        }
        send(&mut self.frames, &ServerFrame::Ack { n: last }).await?;
        match next {
            Some(frame) => Box::pin(self.handle(frame?)).await,
            None => Ok(()),
        }
    }

    async fn store(&self, reports: Vec<(u64, Report)>) -> Result<(), Ended> {
        let session = self.container.session;
        if !reports.iter().any(|(_, report)| matches!(report, Report::Finished { .. })) {
            return Ok(store_reports::store_reports(&self.app, self.container, reports, false).await.map(|_| ())?);
        }
        let stored = |has_changed| store_reports::store_reports(&self.app, self.container, reports, has_changed);
        Ok(turn_end::then_save(&self.app, session, stored).await?)
    }

    async fn pass_on(&self, n: u64, report: Report) -> Result<(), Ended> {
        let (Report::Output { work, .. } | Report::Finished { work, .. }) = &report;
        // One that is waited for is told of, and recorded, by who waits.
        if let (WorkId::Exec(id), Report::Finished { ending, duration_micros, .. }) = (work, &report)
            && self.app.hosts.exec_reports(self.container, *id).is_none()
            && self.app.hosts.has_stream(self.container, *id)
        {
            streams::ended(&self.app, self.container, *id, *ending, *duration_micros).await?;
            return Ok(());
        }
        if let WorkId::Exec(id) = work
            && self.app.hosts.is_new_report(self.container, n)
            && let Some(sink) = self.app.hosts.exec_reports(self.container, *id)
        {
            // Whoever asked may have gone; then nobody misses it.
            let _ = sink.send(report).await;
        }
        Ok(())
    }

    /// The host wants a turn: the session is READY, or the host never got the one it is to work on.
    async fn poll(&mut self) -> Result<(), Ended> {
        let row = load(&self.app, self.container).await?;
        let is_known =
            matches!(row.machine.state, State::Ready | State::Busy) && row.machine.container == Container::Up;
        if !is_known && !observe::host_polled(&self.app, self.container).await? {
            return Err(Ended::Refused("fenced"));
        }
        self.polled = true;
        self.look().await
    }

    /// What is to be done in the turn that the session is in; none where its agent is gone.
    async fn task_of(&self, row: &SessionRow, running: Running, message: &MessageRow) -> Result<Option<Task>, Ended> {
        let mut connection = self.app.store.read().await?;
        let Some(started) = take_message::beginning(&mut connection, message).await? else { return Ok(None) };
        if started.runtime.as_deref() == Some(AgentRuntime::Model.as_str()) {
            return Ok(Some(Task::Server(running)));
        }
        let agent = take_message::agent_of(&mut connection, &started).await?;
        Ok(agent.map(|agent| take_message::host_task(row, running, message, &agent)))
    }

    /// A turn is going on. Where the host runs it and waits for one, it was given to it, and the connection or the server broke in between,
    /// or an earlier connection took it at the same time and could not pass it on.
    async fn go_on(&mut self, row: &SessionRow, running: Running, message: &MessageRow) -> Result<(), Ended> {
        match self.task_of(row, running, message).await? {
            Some(Task::Server(running)) => turns::ensure(&self.app, Turn { container: self.container, running }),
            Some(Task::Host(work)) if self.polled => {
                self.polled = false;
                send(&mut self.frames, &ServerFrame::Run(work)).await?;
                // A host that did not have it has not heard that it is to end, either.
                self.cancelled.remove(&running.turn);
            }
            Some(Task::Host(_)) | None => {}
        }
        Ok(())
    }

    /// Something may have changed: a message to work on, or one to end.
    async fn look(&mut self) -> Result<(), Ended> {
        let (row, running) = {
            let mut connection = self.app.store.read().await?;
            let row = sessions::find(&mut connection, self.container.session).await?.ok_or(Ended::Gone)?;
            let running = match row.machine.running {
                Some(running) => {
                    messages::find(&mut connection, row.id, running.message).await?.map(|message| (running, message))
                }
                None => None,
            };
            (row, running)
        };
        if row.machine.generation != self.container.generation {
            return Err(Ended::Refused("fenced"));
        }
        if let Some((running, message)) = running {
            let turn = running.turn;
            if row.machine.state == State::Busy {
                self.go_on(&row, running, &message).await?;
            }
            if message.cancel_wanted && self.cancelled.insert(turn) {
                send(&mut self.frames, &ServerFrame::Cancel(WorkId::Turn(turn))).await?;
                // A program may take its time to end; what it asked of a model goes on costing.
                self.app.running_calls.cancel(self.container, turn);
            }
        } else if self.polled
            && row.machine.state == State::Ready
            && row.machine.queued > 0
            && self.is_saved(&row)
            && let Some(task) = take_message::take_message(&self.app, self.container).await?
        {
            match task {
                Task::Host(work) => {
                    self.polled = false;
                    send(&mut self.frames, &ServerFrame::Run(work)).await?;
                }
                Task::Server(running) => turns::ensure(&self.app, Turn { container: self.container, running }),
            }
        }
        Ok(())
    }

    /// Whether what the message before has written is saved. Otherwise its checkpoint would have some of the next one's: a change of the
    /// session tells when it is.
    fn is_saved(&self, row: &SessionRow) -> bool {
        let is_asked = self.app.checkpoint_queue.is_pending(row.id);
        if let Some(cause) = row.save_due
            && !is_asked
        {
            self.app.checkpoint_queue.enqueue(row.id, cause);
        }
        row.save_due.is_none() && !is_asked
    }
}
