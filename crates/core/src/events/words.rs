//! The words that fields of events hold.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Described;
use crate::checkpoints::Cause;
use crate::link::OutputStream;
use crate::models::CallEnd;
use crate::quantity::Bytes;
use crate::session::{FaultCode, Reason, State, TerminationReason};

/// Who speaks in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Speaker {
    /// A person or program.
    User,
    /// An agent.
    Agent,
    /// Raworc.
    System,
}

/// How a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was answered.
    Done,
    /// It was tried and did not work.
    Failed,
    /// Someone stopped it.
    Cancelled,
}

/// What holds a session to its disk limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnforcedBy {
    /// What ran was ended.
    Stopping,
    /// The file system takes no more, and whatever writes goes on.
    FileSystem,
}

/// Why a command or a terminal has no exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamError {
    /// It could not be started.
    NotStarted,
    /// The client that asked for it went away, so it was ended.
    Abandoned,
    /// Its container ended first, or nobody saw its end.
    Lost,
    /// A client, or the end of the container, ended it.
    Closed,
    /// It ran longer than its `timeout_seconds`.
    TimedOut,
}

words!(Speaker: User, Agent, System);
words!(Outcome: Done, Failed, Cancelled);
words!(EnforcedBy: Stopping, FileSystem);
words!(StreamError: NotStarted, Abandoned, Lost, Closed, TimedOut);
words!(CallEnd: Complete, Cut, Failed, ClientGone, Cancelled);
words!(OutputStream: Stdout, Stderr);
words!(Cause: Message, Stop, Every, Start, Request, Rewind, Remix);
words!(State: Init, Ready, Idle, Busy, Error);
words!(TerminationReason: Manual, Ttl, Deleted);
words!(FaultCode: StartFailed, StartTimeout, HostLost, ContainerExited, ContainerKilled, OutOfMemory, ContainerGone, DiskQuotaExceeded);

impl Described for Reason {
    fn schema() -> Value {
        let words: std::collections::BTreeSet<&str> = Reason::all().map(Reason::as_str).collect();
        json!({ "type": "string", "enum": words })
    }
}

impl Described for Bytes {
    fn schema() -> Value {
        u64::schema()
    }
}

impl Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        let known = Reason::all().find(|reason| reason.as_str() == word);
        known.ok_or_else(|| serde::de::Error::custom("no reason that is known here"))
    }
}

impl Reason {
    /// Every reason there is.
    fn all() -> impl Iterator<Item = Reason> {
        // One that is missing below does not compile here.
        let _exhaustive = |reason: Reason| match reason {
            Reason::HostReady
            | Reason::HostBack
            | Reason::MessageTaken
            | Reason::MessageFinished
            | Reason::WaitingTimeout
            | Reason::Paused
            | Reason::Terminated
            | Reason::Restarted
            | Reason::Rewound
            | Reason::DiskQuota
            | Reason::Fault(_) => (),
        };
        let own = [
            Reason::HostReady,
            Reason::HostBack,
            Reason::MessageTaken,
            Reason::MessageFinished,
            Reason::WaitingTimeout,
            Reason::Paused,
            Reason::Terminated,
            Reason::Restarted,
            Reason::Rewound,
            Reason::DiskQuota,
        ];
        own.into_iter().chain(FaultCode::ALL.map(Reason::Fault))
    }
}
