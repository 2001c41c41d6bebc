//! The server's side of the launcher: starts it, asks it, starts it again when it dies.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use raworc_core::limits::START_TIMEOUT;
use raworc_launcher::protocol::{Action, Event, Outcome, Process, Request, Setup, Status};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use tokio::process::Command;
use tokio::sync::{mpsc, oneshot, watch};

use super::layout::{Layout, Slot, write_file};
use super::process::Handle;
use super::seccomp;
use socket::Socket;

mod socket;

use crate::RuntimeError;

/// Requests that wait for the launcher.
const REQUESTS_MAX: usize = 64;
/// How long the launcher may take to get ready.
const READY_MAX: Duration = Duration::from_secs(20);
/// Pause between two looks whether an earlier one has ended.
const LOCK_PAUSE: Duration = Duration::from_millis(5);
/// Pause before a launcher that died is started again; doubles up to the second while it keeps dying.
const RESTART_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// A launcher that lived so long has worked.
const STABLE: Duration = Duration::from_secs(30);

/// How a container ended, as far as its launcher has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Not yet.
    Running,
    /// So.
    Seen(Status),
    /// The launcher that would have seen it has died.
    Unseen,
}

#[derive(Clone, Debug)]
enum State {
    Starting,
    Ready(PathBuf),
    Away(String),
}

struct Job {
    action: Action,
    descriptor: Option<OwnedFd>,
    answer: oneshot::Sender<Outcome>,
}

type Endings = Arc<Mutex<HashMap<String, watch::Sender<Ending>>>>;

/// The launcher; it ends when this is dropped.
pub struct Launcher {
    jobs: mpsc::Sender<Job>,
    state: watch::Receiver<State>,
    endings: Endings,
}

impl Launcher {
    /// Starts it, and waits until it is ready.
    pub async fn start(layout: &Layout) -> Result<Self, RuntimeError> {
        let (jobs, jobs_receiver) = mpsc::channel(REQUESTS_MAX);
        let (state_sender, state) = watch::channel(State::Starting);
        let endings = Endings::default();
        let setup = Setup {
            rootfs: layout.rootfs(),
            host: layout.host(),
            views: layout.views.root().to_owned(),
            empty: layout.empty(),
            state: layout.state(),
            cgroup_parent: layout.cgroup_parent.clone(),
            oci_runtime: layout.oci_runtime.clone(),
            seccomp: seccomp::profile(),
        };
        let (program, record) = (layout.launcher.clone(), layout.launcher_record());
        // A server that was killed may have left one that is still starting containers. Its workers end with it.
        let failed = |error: io::Error| RuntimeError::Other(format!("the launcher before this one: {error}"));
        if let Some(earlier) = Handle::of_record(&record).map_err(failed)? {
            earlier.kill().await.map_err(failed)?;
        }
        // Without its record, it ends by itself: its server has.
        let lock = alone(layout.data_dir()).await.map_err(failed)?;
        let (jobs_waiting, told) = (jobs_receiver, Arc::clone(&endings));
        let keeper =
            LauncherSupervisor { program, record, lock, setup, jobs: jobs_waiting, state: state_sender, endings: told };
        tokio::spawn(keeper.keep());
        let launcher = Self { jobs, state, endings };
        launcher.stage().await?;
        Ok(launcher)
    }

    /// Where the launcher has mounted the parts of containers; waits for one that is being started.
    pub async fn stage(&self) -> Result<PathBuf, RuntimeError> {
        let mut state = self.state.clone();
        let settled = state.wait_for(|state| !matches!(state, State::Starting)).await;
        match settled.as_deref() {
            Ok(State::Ready(stage)) => Ok(stage.clone()),
            Ok(State::Away(message)) => Err(RuntimeError::Unavailable(message.clone())),
            Ok(State::Starting) | Err(_) => Err(RuntimeError::Unavailable("the launcher has gone".into())),
        }
    }

    /// Has the launcher do something.
    pub async fn request(&self, action: Action, descriptor: Option<OwnedFd>) -> Result<Outcome, RuntimeError> {
        let (answer, receiver) = oneshot::channel();
        let gone = || RuntimeError::Unavailable("the launcher died".into());
        self.jobs.send(Job { action, descriptor, answer }).await.map_err(|_| gone())?;
        match tokio::time::timeout(START_TIMEOUT, receiver).await {
            Ok(outcome) => outcome.map_err(|_| gone()),
            Err(_) => Err(RuntimeError::Unavailable("the launcher does not answer".into())),
        }
    }

    /// Will tell how a container that is about to be started ended.
    pub fn expect(&self, slot: &Slot) -> watch::Receiver<Ending> {
        let (sender, receiver) = watch::channel(Ending::Running);
        self.endings.lock().unwrap_or_else(PoisonError::into_inner).insert(slot.to_string(), sender);
        receiver
    }

    /// Nobody wants to know any more.
    pub fn forget(&self, slot: &Slot) {
        self.endings.lock().unwrap_or_else(PoisonError::into_inner).remove(slot.as_str());
    }

    /// In a few words, for an operator.
    pub fn state(&self) -> String {
        match &*self.state.borrow() {
            State::Starting => "starting".into(),
            State::Ready(_) => "running".into(),
            State::Away(message) => format!("away: {message}"),
        }
    }
}

/// Keeps a launcher running.
struct LauncherSupervisor {
    program: PathBuf,
    record: PathBuf,
    /// Locked; each launcher has it, too, and so have its workers that give containers to sessions.
    lock: OwnedFd,
    setup: Setup,
    jobs: mpsc::Receiver<Job>,
    state: watch::Sender<State>,
    endings: Endings,
}

impl LauncherSupervisor {
    async fn keep(mut self) {
        let mut pause = RESTART_PAUSES.0;
        loop {
            let born = Instant::now();
            match self.live().await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(%error, "the launcher has ended; starting another one");
                    self.state.send_replace(State::Away(error.to_string()));
                }
            }
            self.lose();
            if born.elapsed() > STABLE {
                pause = RESTART_PAUSES.0;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.state.closed() => return,
            }
            pause = (pause * 2).min(RESTART_PAUSES.1);
            self.state.send_replace(State::Starting);
        }
    }

    /// One launcher's life. `Ok` when nobody needs one any more.
    async fn live(&mut self) -> io::Result<()> {
        let (socket, theirs) = Socket::pair()?;
        let mut command = Command::new(&self.program);
        // Nothing of the server's environment, which may hold secrets; an external runtime wants to find programs.
        command.arg("launcher").env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(theirs).stdout(std::process::Stdio::null());
        let mut child = command.spawn()?;
        drop(command);
        if let Some(process) = child.id().and_then(|pid| Process::find(i32::try_from(pid).ok()?)) {
            write_file(&self.record, process.to_string().as_bytes(), 0o600)?;
        }
        let result = self.serve(&socket).await;
        // It ends when the socket closes.
        drop(socket);
        child.wait().await?;
        result
    }

    async fn serve(&mut self, socket: &Socket) -> io::Result<()> {
        socket.send(&self.setup, Some(&self.lock)).await?;
        match tokio::time::timeout(READY_MAX, socket.receive()).await?? {
            Event::Ready { stage } => drop(self.state.send_replace(State::Ready(stage))),
            Event::Failed { message } => return Err(io::Error::other(message)),
            other => {
                return Err(io::Error::other(format!("the launcher began with {other:?}")));
            }
        }
        let mut asked: HashMap<u64, oneshot::Sender<Outcome>> = HashMap::new();
        let mut waiting: Option<(Request, Option<OwnedFd>)> = None;
        let mut next = 0;
        loop {
            tokio::select! {
                event = socket.receive() => self.hear(event?, &mut asked),
                // Sending never keeps this loop from receiving: the two sides could wait for each other.
                sent = send(socket, waiting.as_ref()), if waiting.is_some() => {
                    sent?;
                    waiting = None;
                }
                job = self.jobs.recv(), if waiting.is_none() => {
                    let Some(job) = job else { return Ok(()) };
                    if job.answer.is_closed() {
                        // Whoever asked has given up, and cleaned up.
                        continue;
                    }
                    self.expect_again(&job.action);
                    next += 1;
                    asked.insert(next, job.answer);
                    waiting = Some((Request { id: next, action: job.action }, job.descriptor));
                }
            }
        }
    }

    fn hear(&self, event: Event, asked: &mut HashMap<u64, oneshot::Sender<Outcome>>) {
        match event {
            Event::Done { request, outcome } => {
                if let Some(answer) = asked.remove(&request) {
                    let _ = answer.send(outcome);
                }
            }
            Event::Exited { container, status } => {
                let endings = self.endings.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(ending) = endings.get(&container) {
                    ending.send_replace(Ending::Seen(status));
                }
            }
            Event::Ready { .. } | Event::Failed { .. } => {}
        }
    }

    /// A request that waited while one launcher died and another came up will be seen by the new one.
    fn expect_again(&self, action: &Action) {
        let Action::Prepare(prepare) = action else { return };
        let endings = self.endings.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ending) = endings.get(&prepare.container) {
            ending.send_replace(Ending::Running);
        }
    }

    /// The launcher died: nobody will see how its containers end.
    fn lose(&self) {
        let endings = self.endings.lock().unwrap_or_else(PoisonError::into_inner);
        for ending in endings.values() {
            ending.send_if_modified(|ending| {
                let running = *ending == Ending::Running;
                if running {
                    *ending = Ending::Unseen;
                }
                running
            });
        }
    }
}

/// Opens and locks the data directory, once no launcher of an earlier server, and none of its workers, holds it any more.
async fn alone(data_dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(data_dir, flags, Mode::empty())?;
    let deadline = Instant::now() + READY_MAX;
    loop {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => tokio::time::sleep(LOCK_PAUSE).await,
            Err(Errno::WOULDBLOCK) => return Err(io::Error::other("it still runs, and does not end")),
            other => return other.map(|()| directory).map_err(Into::into),
        }
    }
}

async fn send(socket: &Socket, request: Option<&(Request, Option<OwnedFd>)>) -> io::Result<()> {
    match request {
        Some((request, descriptor)) => socket.send(request, descriptor.as_ref()).await,
        None => Ok(()),
    }
}
