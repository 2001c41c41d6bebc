//! A simulated container with its host, which may die, hang, lose its connection, and report late.

use std::collections::VecDeque;
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use raworc_core::ids::{ContainerId, MessageId};
use raworc_core::limits::{FRAME_BYTES_MAX, HEARTBEAT_INTERVAL};
use raworc_core::link::{Ending, HostFrame, OutputStream, PROTOCOLS, Report, ServerFrame, Versions, Work, WorkId};
use raworc_runtime::ExitReason;
use raworc_workspace::LayerStack;
use tokio::io::DuplexStream;
use tokio::time::Instant;
use tokio_util::codec::{Framed, LinesCodec};
use tokio_util::sync::CancellationToken;

use crate::agent;
use crate::world::World;

/// How often a frozen host checks whether it was thawed.
const THAW_POLL_INTERVAL: Duration = Duration::from_millis(1);

type Frames = Framed<DuplexStream, LinesCodec>;

/// The state of a host, independent of connections.
pub struct Model {
    token: String,
    /// Its layer stack.
    pub workspace: LayerStack,
    gone: CancellationToken,
    next: u64,
    unacknowledged: VecDeque<(u64, Report)>,
    job: Option<Job>,
    /// How often a background process still writes.
    background: usize,
    /// It is frozen.
    pub is_frozen: bool,
    /// It is being stopped and does no work any more.
    pub is_stopping: bool,
}

struct Job {
    id: WorkId,
    message: MessageId,
    outputs: usize,
    ending: Ending,
}

impl Model {
    /// A new host.
    pub fn new(token: String, workspace: LayerStack) -> Self {
        Self {
            token,
            workspace,
            gone: CancellationToken::new(),
            next: 1,
            unacknowledged: VecDeque::new(),
            job: None,
            background: 0,
            is_frozen: false,
            is_stopping: false,
        }
    }

    /// Whether it is running.
    pub fn is_alive(&self) -> bool {
        !self.gone.is_cancelled()
    }

    /// Whether it is running and not being stopped.
    pub fn is_there(&self) -> bool {
        self.is_alive() && !self.is_stopping
    }

    /// Ends it.
    pub fn end(&self) {
        self.gone.cancel();
    }

    /// Whether any process besides the host runs.
    pub fn is_working(&self) -> bool {
        self.job.is_some() || self.background > 0
    }

    fn works(&self) -> Vec<WorkId> {
        let finished = self.unacknowledged.iter().filter_map(|(_, report)| match report {
            Report::Finished { work, .. } => Some(*work),
            Report::Output { .. } => None,
        });
        self.job.iter().map(|job| job.id).chain(finished).collect()
    }

    fn report(&mut self, report: Report) -> HostFrame {
        let n = self.next;
        self.next += 1;
        self.unacknowledged.push_back((n, report.clone()));
        HostFrame::Report { n, report }
    }

    fn forget(&mut self, acknowledged: u64) {
        self.unacknowledged.retain(|(n, _)| *n > acknowledged);
    }
}

/// Why a connection ended.
enum ConnectionEnd {
    /// The connection was lost; the host reconnects.
    Lost,
    /// The host has ended.
    Over,
}

/// Runs the host of container `id` during the life of one server.
pub async fn run_host(world: World, id: ContainerId) {
    let gone = match world.state().containers.get(&id) {
        Some(model) => model.gone.clone(),
        None => return,
    };
    loop {
        let engine = world.state().engine.clone();
        let Some(engine) = engine else { return };
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        engine.accept_host(theirs);
        drop(engine);
        let frames = Framed::new(ours, LinesCodec::new_with_max_length(FRAME_BYTES_MAX));
        let mut host = Host { world: world.clone(), id, frames, is_welcome: false, has_polled: false };
        tokio::select! {
            biased;
            () = gone.cancelled() => return,
            run_connection = host.run_connection() => if matches!(run_connection, ConnectionEnd::Over) { return },
        }
        world.pass(200).await;
    }
}

struct Host {
    world: World,
    id: ContainerId,
    frames: Frames,
    is_welcome: bool,
    has_polled: bool,
}

impl Host {
    async fn run_connection(&mut self) -> ConnectionEnd {
        self.world.pass(3).await;
        let (token, works) = self.model(|model| (model.token.clone(), model.works()));
        // Every other container has a newer protocol that is still compatible.
        let versions = Versions::new(*PROTOCOLS.start()..=*PROTOCOLS.end() + self.id.generation % 2);
        if self.send(HostFrame::Hello { versions, token, works, features: Vec::new() }).await.is_none() {
            return ConnectionEnd::Lost;
        }
        let mut heartbeat = Instant::now();
        loop {
            while self.model(|model| model.is_frozen) {
                tokio::time::sleep(THAW_POLL_INTERVAL).await;
            }
            let work = self.model(|model| Model::is_working(model));
            let progress = self.world.millis(if self.world.chance(0.05) { 3_000 } else { 40 });
            tokio::select! {
                biased;
                line = self.frames.next() => {
                    let Some(Ok(line)) = line else { return ConnectionEnd::Lost };
                    match self.handle_frame(&line).await {
                        Some(None) => {}
                        Some(Some(run_connection)) => return run_connection,
                        None => return ConnectionEnd::Lost,
                    }
                }
                () = tokio::time::sleep(progress), if work => {
                    self.write();
                    if self.work().await.is_none() { return ConnectionEnd::Lost }
                }
                () = tokio::time::sleep_until(heartbeat), if self.is_welcome => {
                    heartbeat = Instant::now() + HEARTBEAT_INTERVAL;
                    let background_processes = self.model(|model| u32::from(model.background > 0));
                    if self.send(HostFrame::Heartbeat { background_processes }).await.is_none() { return ConnectionEnd::Lost }
                }
            }
            if let Some(run_connection) = self.random_fault().await {
                return run_connection;
            }
        }
    }

    /// A random fault, if one is due.
    async fn random_fault(&mut self) -> Option<ConnectionEnd> {
        if self.world.fault(0.006) {
            self.world.exit(self.id, ExitReason::Signalled(9));
            return Some(ConnectionEnd::Over);
        }
        if self.world.fault(0.01) {
            self.world.log(&format!("{} loses its connection", self.id));
            return Some(ConnectionEnd::Lost);
        }
        if self.world.fault(0.004) {
            self.world.log(&format!("{} hangs", self.id));
            tokio::time::sleep(Duration::from_secs(self.world.below(20) as u64)).await;
        }
        None
    }

    async fn handle_frame(&mut self, line: &str) -> Option<Option<ConnectionEnd>> {
        let frame: ServerFrame = serde_json::from_str(line).ok()?;
        match frame {
            ServerFrame::Welcome { received, .. } => {
                self.is_welcome = true;
                let again = self.model(|model| {
                    model.forget(received);
                    model.unacknowledged.clone()
                });
                for (n, report) in again {
                    self.send(HostFrame::Report { n, report }).await?;
                }
            }
            ServerFrame::Refused { code } => {
                self.world.log(&format!("{} is refused: {code}", self.id));
                self.world.exit(self.id, ExitReason::Exited(3));
                return Some(Some(ConnectionEnd::Over));
            }
            ServerFrame::Ack { n } => self.model(|model| model.forget(n)),
            ServerFrame::Run(work) => self.start(&work),
            ServerFrame::Cancel(work) => self.model(|model| {
                if let Some(job) = model.job.as_mut().filter(|job| job.id == work) {
                    (job.outputs, job.ending) = (0, Ending::Cancelled);
                }
            }),
            // Reports that it cannot.
            ServerFrame::Attach(_) => {}
            ServerFrame::Stop => {
                self.world.exit(self.id, ExitReason::Exited(0));
                return Some(Some(ConnectionEnd::Over));
            }
        }
        self.poll().await?;
        Some(None)
    }

    fn start(&mut self, work: &Work) {
        let WorkId::Turn(turn) = work.id else { return };
        let Some(message) = work.env.get("RAWORC_MESSAGE_ID").and_then(|id| id.parse::<MessageId>().ok()) else {
            return;
        };
        if self.model(|model| model.works().contains(&work.id) || model.job.is_some()) {
            return;
        }
        let (outputs, ending) = (self.world.below(4), Ending::Exited(i32::from(self.world.chance(0.1))));
        self.world.log(&format!("{} begins {message}", self.id));
        {
            let mut state = self.world.state();
            *state.executions.entry(message).or_default() += 1;
            *state.turns.entry(turn).or_default() += 1;
            state.oracle.begun(&self.id.session.to_string(), &message.to_string());
        }
        self.has_polled = false;
        self.model(|model| model.job = Some(Job { id: work.id, message, outputs, ending }));
    }

    /// Changes some files, unless it is frozen.
    fn write(&self) {
        let session = self.id.session.to_string();
        if self.model(|model| model.is_frozen || !model.is_alive()) || self.world.chance(0.3) {
            return;
        }
        let tree = self.world.state().oracle.tree_of(&session);
        let changes = agent::changes(&self.world, tree);
        let mut state = self.world.state();
        let Some(stack) = state.containers.get(&self.id).map(|model| model.workspace.clone()) else { return };
        let told = format!("{changes:?}");
        let written = state.oracle.write(&session, &stack, changes);
        state.oracle.expect(&format!("what {} writes", self.id), written);
        let now = state.oracle.state_of(&session);
        state.log(&format!("{} has written: state {now}, {told}", self.id));
    }

    /// The next report of the job.
    async fn work(&mut self) -> Option<()> {
        let (is_frozen, message) = self.model(|model| (model.is_frozen, model.job.as_ref().map(|job| job.message)));
        let left = if self.world.chance(0.2) { 1 + self.world.below(3) } else { 0 };
        let frame = self.model(|model| {
            if is_frozen {
                return None;
            }
            let Some(job) = model.job.as_mut() else {
                model.background = model.background.saturating_sub(1);
                return None;
            };
            let work = job.id;
            if job.outputs == 0 {
                let ending = job.ending;
                model.job = None;
                model.background += left;
                let finished =
                    Report::Finished { work, ending, duration_micros: 1, dropped_bytes: 0, output_file: None };
                return Some(model.report(finished));
            }
            job.outputs -= 1;
            let text = format!("{}\n", job.outputs);
            Some(model.report(Report::Output { work, stream: OutputStream::Stdout, text }))
        });
        let Some(frame) = frame else { return Some(()) };
        if let (HostFrame::Report { report: Report::Finished { .. }, .. }, Some(message)) = (&frame, message) {
            self.world.state().oracle.done(&self.id.session.to_string(), &message.to_string());
        }
        if self.is_welcome {
            self.send(frame).await?;
        }
        self.poll().await
    }

    async fn poll(&mut self) -> Option<()> {
        let works = self.model(|model| model.job.is_some());
        if self.is_welcome && !works && !self.has_polled {
            self.has_polled = true;
            self.send(HostFrame::Poll).await?;
        }
        Some(())
    }

    async fn send(&mut self, frame: HostFrame) -> Option<()> {
        self.world.pass(2).await;
        self.frames.send(serde_json::to_string(&frame).ok()?).await.ok()
    }

    fn model<T>(&self, with: impl FnOnce(&mut Model) -> T) -> T
    where
        T: Default,
    {
        self.world.state().containers.get_mut(&self.id).map(with).unwrap_or_default()
    }
}
