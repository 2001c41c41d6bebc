//! What containers run on. [`Runtime`] is all that the rest of Raworc knows of it; each backend is a room of its own.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use async_trait::async_trait;
use raworc_core::ids::{ContainerId, LayerId};
use raworc_workspace::LayerStack;
use tokio::sync::mpsc;

pub mod native;

/// What to start.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    /// Names the container for ever.
    pub id: ContainerId,
    /// The image it runs; `None`: the machine's own programs.
    pub image: Option<Root>,
    /// What the session's workspace is made of; appears as `/workspace`.
    pub workspace: LayerStack,
    /// What it may use; always enforced.
    pub resources: Resources,
    /// The host's token, given to the container's first process only.
    pub token: String,
    /// Name shown inside as host name (letters, digits and dashes).
    pub hostname: String,
}

/// What a container's root filesystem is made of. What is written to it goes with the container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// Layers of the image, the topmost first.
    pub layers: Vec<LayerId>,
    /// `NAME=VALUE`, as the image wants its programs' environment.
    pub env: Vec<String>,
}

/// A container that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Which.
    pub id: ContainerId,
    /// What its workspace is made of, as far as is known.
    pub workspace: Option<LayerStack>,
    /// The layers of its image that are mounted, or about to be, as far as is known.
    pub image: Vec<LayerId>,
    /// Whether it runs; otherwise something of it is left over.
    pub is_running: bool,
}

/// Whether anything but its host runs in a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupancy {
    /// Only the host, which has nothing open in the workspace.
    HostOnly,
    /// Other processes, which may write to the workspace at any time.
    OtherProcesses,
}

/// Limits of one container.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resources {
    /// CPU time per time: 1.5 is one and a half processors.
    pub cpu: f64,
    /// Bytes of memory; there is no swap on top.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
}

/// A container that ended by itself, or was found to have ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Which.
    pub id: ContainerId,
    /// Why, as truly as can be told.
    pub reason: ExitReason,
}

/// Why a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// Its first process exited with this status.
    Exited(i32),
    /// A signal ended its first process.
    Signalled(i32),
    /// The kernel killed its first process because the memory limit was reached.
    OutOfMemory,
    /// It is gone and nobody saw how (the server was away).
    Unknown,
}

/// Why a runtime could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The container could not be started; nothing of it is left.
    #[error("the container could not be started: {0}")]
    Start(String),
    /// The backend does not answer; worth trying again.
    #[error("the container runtime is away: {0}")]
    Unavailable(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// Bytes on the disk that a container uses and its workspace does not list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hidden {
    /// What was written outside of its workspace.
    pub elsewhere: u64,
    /// Files of its workspace that were removed, and that something in it has open.
    pub removed: u64,
}

/// Runs containers. Every call may be repeated, also after a crash between any two of its steps.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Starts the container; returns once its host has been started. `Ok` too where it runs already.
    async fn start(&self, spec: &ContainerSpec) -> Result<(), RuntimeError>;

    /// Ends the container: SIGTERM to its first process, everything in it killed after `grace`. Returns when no process,
    /// mount or cgroup of it is left. `Ok` where there is none. No [`Exit`] is sent for a container that was stopped.
    async fn stop(&self, id: ContainerId, grace: std::time::Duration) -> Result<(), RuntimeError>;

    /// Every container there is, running or with something of it left over.
    async fn list(&self) -> Result<Vec<Listed>, RuntimeError>;

    /// What a container takes on the disk that its workspace does not show. It blocks, since it may take long.
    ///
    /// # Errors
    /// Where something cannot be looked through, such as directories without end.
    fn hidden(&self, id: ContainerId) -> io::Result<Hidden>;

    /// What the workspace of a container that runs is made of; `None` where it does not run.
    fn workspace(&self, id: ContainerId) -> Option<LayerStack>;

    /// The root of that workspace, to read and write through, as long as the container runs.
    async fn open_workspace(&self, id: ContainerId) -> Result<OwnedFd, RuntimeError>;

    /// Makes everything in a container stand still, until [`Runtime::thaw`].
    async fn freeze(&self, id: ContainerId) -> Result<Occupancy, RuntimeError>;

    /// Lets everything in a container go on; also one that was frozen by a server that is no more.
    async fn thaw(&self, id: ContainerId) -> Result<(), RuntimeError>;

    /// Puts another workspace in the place of the present one, in a container that is frozen and in which its host is alone.
    async fn remount(&self, id: ContainerId, workspace: &LayerStack) -> Result<(), RuntimeError>;

    /// Containers that end by themselves, from those that were found at start as well. Taken once, by the loop of exits.
    fn exits(&self) -> mpsc::Receiver<Exit>;

    /// Containers that are prepared for sessions to come.
    fn spares(&self) -> usize;

    /// Gives back what no container of a session needs; the server is about to end. Containers go on.
    async fn close(&self);

    /// What the backend can and cannot do right now; keys are short names such as `cgroup_version`.
    async fn check(&self) -> Result<BTreeMap<String, String>, RuntimeError>;
}
