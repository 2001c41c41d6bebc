//! What a session is made of, as far as its state machine cares.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{Generation, MessageId, TurnId};
use crate::time::Time;

/// The five states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// The container is being made: just created, or restarted after ERROR.
    Init,
    /// The host waits for messages.
    Ready,
    /// No container, or one that is being started or stopped; the workspace is kept.
    Idle,
    /// The host works on a message.
    Busy,
    /// Something failed; `error` says what.
    Error,
}

impl State {
    /// All of them.
    pub const ALL: [State; 5] = [State::Init, State::Ready, State::Idle, State::Busy, State::Error];

    /// The edges there are; no other change of state ever happens.
    pub fn may_become(self, to: State) -> bool {
        match self {
            State::Init => matches!(to, State::Ready | State::Error),
            State::Ready => matches!(to, State::Idle | State::Busy | State::Error),
            State::Idle => matches!(to, State::Ready | State::Error),
            State::Busy => matches!(to, State::Ready | State::Error),
            State::Error => matches!(to, State::Init | State::Ready),
        }
    }

    /// As written outside: `INIT`, `READY`, `IDLE`, `BUSY`, `ERROR`.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Init => "INIT",
            State::Ready => "READY",
            State::Idle => "IDLE",
            State::Busy => "BUSY",
            State::Error => "ERROR",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The container of the newest generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Container {
    /// There is none.
    None,
    /// It is to be started; its host has not polled yet.
    Starting,
    /// Its host has polled.
    Up,
    /// It is to be stopped and removed.
    Stopping,
}

/// The session as the machine sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Where it stands.
    pub state: State,
    /// The newest container's number; 0 before the first.
    pub generation: Generation,
    /// What is wanted of the newest container.
    pub container: Container,
    /// The turn that is going on: in BUSY there is one, elsewhere none.
    pub running: Option<Running>,
    /// Messages that wait.
    pub queued: u32,
    /// Someone asked for a running container although no message waits.
    pub wake: bool,
    /// Since when messages queue without waking it.
    pub paused_at: Option<Time>,
    /// Takes no more messages.
    pub terminated: Option<Termination>,
    /// Hidden unless asked for.
    pub deleted_at: Option<Time>,
    /// Rest after so long without activity.
    pub waiting_timeout: Duration,
    /// How long a session lives, counted from its creation or restoration.
    pub ttl: Option<Duration>,
    /// When it ends because of `ttl`.
    pub expires_at: Option<Time>,
    /// The newest message, result, or other sign of use.
    pub last_activity_at: Time,
    /// When the newest container became ready.
    pub started_at: Option<Time>,
    /// Why the state is ERROR.
    pub error: Option<Fault>,
    /// The checkpoint it is to go back to, as soon as no container is there.
    #[serde(default)]
    pub rewind: Option<u64>,
    /// Restarts since it last worked.
    pub restarts: u32,
    /// INIT, IDLE: when a start counts as failed. ERROR: when to restart; `None` there: a person must.
    pub due_at: Option<Time>,
}

impl Session {
    /// A session just created: its first container is wanted.
    pub fn new(waiting_timeout: Duration, ttl: Option<Duration>, now: Time) -> Self {
        Self {
            state: State::Init,
            generation: 1,
            container: Container::Starting,
            running: None,
            queued: 0,
            wake: false,
            paused_at: None,
            terminated: None,
            deleted_at: None,
            waiting_timeout,
            ttl,
            expires_at: ttl.map(|ttl| now + ttl),
            last_activity_at: now,
            started_at: None,
            error: None,
            rewind: None,
            restarts: 0,
            due_at: Some(now + crate::limits::START_TIMEOUT),
        }
    }
}

/// The turn that a host works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredRunning")]
pub struct Running {
    /// Which: the one that the host knows it by. One attempt, so that what is reported of it is never taken for another's.
    pub turn: TurnId,
    /// The message that it is to answer.
    pub message: MessageId,
    /// The number of the attempt, from 1. Attempts that someone interrupted do not count.
    pub attempt: u32,
}

/// As it is stored. Before turns had ids, a host knew one by its message's id, and goes on doing so.
#[derive(Deserialize)]
struct StoredRunning {
    turn: Option<TurnId>,
    message: MessageId,
    attempt: u32,
}

impl From<StoredRunning> for Running {
    fn from(StoredRunning { turn, message, attempt }: StoredRunning) -> Self {
        Self { turn: turn.unwrap_or(TurnId(message.0)), message, attempt }
    }
}

/// When and why a session was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Termination {
    /// When.
    pub at: Time,
    /// Why.
    pub reason: TerminationReason,
}

/// Why a session was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TerminationReason {
    /// Someone terminated it.
    Manual,
    /// Its `ttl_seconds` ran out.
    Ttl,
    /// Someone deleted it.
    Deleted,
}

/// Why a session is in ERROR, for people: a stable code and a sentence.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fault {
    /// What kind.
    pub code: FaultCode,
    /// What happened; no internals.
    pub message: String,
}

/// The kinds of faults; each has a page in `docs/errors/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultCode {
    /// The runtime could not start the container.
    StartFailed,
    /// The container started but its host did not report in time.
    StartTimeout,
    /// The host was not heard of for too long.
    HostLost,
    /// The container's first process exited.
    ContainerExited,
    /// A signal ended the container's first process.
    ContainerKilled,
    /// The container went over its memory limit.
    OutOfMemory,
    /// The container is gone and nobody saw why.
    ContainerGone,
    /// The session takes so much more of the disk than it may that it is not started.
    DiskQuotaExceeded,
}

impl FaultCode {
    /// All of them.
    pub const ALL: [FaultCode; 8] = [
        FaultCode::StartFailed,
        FaultCode::StartTimeout,
        FaultCode::HostLost,
        FaultCode::ContainerExited,
        FaultCode::ContainerKilled,
        FaultCode::OutOfMemory,
        FaultCode::ContainerGone,
        FaultCode::DiskQuotaExceeded,
    ];

    /// As written outside.
    pub fn as_str(self) -> &'static str {
        match self {
            FaultCode::StartFailed => "start_failed",
            FaultCode::StartTimeout => "start_timeout",
            FaultCode::HostLost => "host_lost",
            FaultCode::ContainerExited => "container_exited",
            FaultCode::ContainerKilled => "container_killed",
            FaultCode::OutOfMemory => "out_of_memory",
            FaultCode::ContainerGone => "container_gone",
            FaultCode::DiskQuotaExceeded => "disk_quota_exceeded",
        }
    }
}

impl Fault {
    pub(super) fn host_lost() -> Self {
        let message = "the container's host was not heard of for too long".to_owned();
        Self { code: FaultCode::HostLost, message }
    }

    pub(super) fn start_timeout() -> Self {
        let message = format!("no host reported within {} seconds", crate::limits::START_TIMEOUT.as_secs());
        Self { code: FaultCode::StartTimeout, message }
    }
}

/// Everything that can happen to a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message was sent to it.
    MessageQueued,
    /// Its container is needed (for an exec).
    Wake,
    /// A command or a terminal has ended, which counts as activity.
    Used,
    /// How long it rests and lives was changed; what is left out stays.
    Configured {
        /// Rest after so long without activity.
        waiting_timeout: Option<Duration>,
        /// Live so long from now on.
        ttl: Option<Duration>,
    },
    /// Wish: rest, and do not wake for messages.
    Pause,
    /// Wish: take up work again, and have a container now.
    Resume,
    /// End it.
    Terminate(TerminationReason),
    /// Wish: end and hide it.
    Delete,
    /// Wish: undo a termination or deletion.
    Restore,
    /// Wish: a new container.
    Restart,
    /// Wish: end the running message.
    Cancel,
    /// A message that waited was taken out of the queue.
    MessageWithdrawn,
    /// Wish: go back to a checkpoint.
    Rewind {
        /// Which.
        checkpoint: u64,
    },
    /// The workspace is that of the checkpoint it was to go back to.
    Rewound,
    /// A host asks for work.
    HostPolled {
        /// Of this container.
        generation: Generation,
    },
    /// The first queued message was given to the host.
    MessageTaken {
        /// Of this container.
        generation: Generation,
        /// The turn that begins.
        running: Running,
    },
    /// The host reported the end of its turn, and with it the message ended.
    MessageFinished {
        /// Of this container.
        generation: Generation,
        /// The turn.
        turn: TurnId,
    },
    /// Its container is not being started yet: others are, or something else is done with its workspace.
    StartWaits {
        /// Of this container.
        generation: Generation,
    },
    /// The runtime could not start the container; nothing of it is left.
    StartFailed {
        /// Of this container.
        generation: Generation,
        /// Why.
        fault: Fault,
    },
    /// The container is gone: it was stopped, or it ended by itself and then `fault` says why.
    ContainerGone {
        /// Of this container.
        generation: Generation,
        /// Why, where nobody wished it.
        fault: Fault,
    },
    /// Its disk limit is exceeded: whatever writes has to end.
    OverQuota {
        /// Of this container.
        generation: Generation,
    },
    /// The host's lease ran out.
    HostLost {
        /// Of this container.
        generation: Generation,
    },
    /// A [`deadline`](super::deadline) may have come, or the clock has been set back.
    Tick {
        /// An exec or a background process keeps the session from resting.
        active_inside: bool,
    },
}

/// What has to be recorded (in the transaction that stores the session) or told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The state changed.
    StateChanged {
        /// Before.
        from: State,
        /// After.
        to: State,
        /// Why.
        reason: Reason,
    },
    /// Something that is not a change of state is to be seen in the log.
    Noted(Note),
    /// The session failed; to be seen in the log.
    Failed(Fault),
    /// The turn has ended, and its message goes back to the head of the queue.
    Requeue {
        /// Which turn.
        running: Running,
        /// Its container died under it; otherwise someone wished it.
        is_lost: bool,
    },
    /// The turn has ended and its message failed: its host died under it too often.
    GiveUp(Running),
    /// The turn has ended and its message failed: the session took more of the disk than it may.
    FailRunning(Running),
    /// The turn has ended and its message is cancelled.
    CancelRunning(Running),
    /// All queued messages are cancelled.
    CancelQueued,
    /// The host is to be told to end this turn. A hint: whoever reconnects a host tells it again.
    TellCancel(Running),
}

/// Notes in the log; each becomes the event `session.…` of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// Paused.
    Paused,
    /// Resumed.
    Resumed,
    /// Terminated.
    Terminated(TerminationReason),
    /// Deleted.
    Deleted,
    /// Restored.
    Restored,
    /// A restart was asked for.
    Restarted,
    /// Its container waits to be started.
    StartWaits,
}

/// Why a state changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The host polls.
    HostReady,
    /// A host that was thought lost polls again.
    HostBack,
    /// A message was taken.
    MessageTaken,
    /// A message ended.
    MessageFinished,
    /// Nothing happened for `waiting_timeout_seconds`.
    WaitingTimeout,
    /// Paused.
    Paused,
    /// Terminated or deleted.
    Terminated,
    /// Restarted, by itself or by someone.
    Restarted,
    /// It goes back to a checkpoint.
    Rewound,
    /// It took more of the disk than it may.
    DiskQuota,
    /// Something failed.
    Fault(FaultCode),
}

impl Reason {
    /// As written in `session.state_changed`.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::HostReady => "host_ready",
            Reason::HostBack => "host_back",
            Reason::MessageTaken => "message_taken",
            Reason::MessageFinished => "message_finished",
            Reason::WaitingTimeout => "waiting_timeout",
            Reason::Paused => "paused",
            Reason::Terminated => "terminated",
            Reason::Restarted => "restarted",
            Reason::Rewound => "rewound",
            Reason::DiskQuota => "disk_quota_exceeded",
            Reason::Fault(code) => code.as_str(),
        }
    }
}

/// Why an event is not possible. Nothing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// An older container's, or one that is being stopped.
    #[error("the container is not the session's current one")]
    Fenced,
    /// It is deleted.
    #[error("the session is deleted")]
    Deleted,
    /// It is terminated.
    #[error("the session is terminated")]
    Terminated,
    /// It is paused.
    #[error("the session is paused")]
    Paused,
    /// It failed too often and waits for a person.
    #[error("the session is in ERROR and has used up its restarts")]
    GivenUp,
    /// Its queue is full.
    #[error("the session's queue is full")]
    QueueFull,
    /// It is neither terminated nor deleted.
    #[error("the session is neither terminated nor deleted")]
    NothingToRestore,
    /// It is going back to another checkpoint.
    #[error("the session is going back to a checkpoint")]
    Rewinding,
    /// It was not told to go back, or its container is still there.
    #[error("the session is not to go back to a checkpoint")]
    NothingToRewind,
    /// It is being started already.
    #[error("the session is being started already")]
    Starting,
    /// No message is being worked on, or another one.
    #[error("no message is being worked on")]
    NothingRuns,
    /// No message waits.
    #[error("no message waits")]
    NothingWaits,
    /// A message is being worked on.
    #[error("a message is being worked on")]
    Running,
    /// It has no host that waits, or no message.
    #[error("the session is not ready")]
    NotReady,
}
