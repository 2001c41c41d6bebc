//! The link between a container's host and the server: what the two say to each other.
//!
//! The host dials [`SOCKET_PATH`] and both sides send frames: one JSON object a line, at most
//! [`FRAME_BYTES_MAX`](crate::limits::FRAME_BYTES_MAX) bytes. The same frames will travel over any byte stream.
//!
//! ```text
//! host                                  server
//! hello {token, works}          →
//!                               ←       welcome {received}      (or refused: the host exits)
//! report n > received, again    →
//! poll                          →                               "give me a turn": the session is READY
//!                               ←       run {work}              the session is BUSY
//! report {n, output …}          →
//!                               ←       ack {n}                 stored: the host may forget up to n
//! report {n, finished …}        →
//! poll                          →
//! ```
//!
//! A report is stored exactly once: reports are numbered from 1 for the life of the container, the server stores the
//! highest number together with what it did about it, and after a broken connection the host sends again whatever is
//! not known to be stored. A `run` may be repeated after a broken connection; the host ignores work it already has.
//!
//! Terminals and commands whose streams are attached have a connection of their own for each attachment, so that a slow
//! reader holds up nobody else: the server sends `attach`, the host dials again and says `attached`, and what follows the
//! server's `welcome` there are the pieces of [`crate::pieces`].
//!
//! In the same way each connection of a program to the gateway has one of its own to the server, which begins with `gateway`.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::TurnId;

/// The versions of these frames that this build speaks, so that a server of another build goes on with the containers that run. Host and
/// server speak the newest one that both know. A version gains only fields that have a default, and frames that a side gets only where it
/// has named the feature for them; what cannot be said so is a new version.
pub const PROTOCOLS: RangeInclusive<u32> = 1..=1;
/// The read-only directory that the runtime mounts into every container.
pub const HOST_DIRECTORY: &str = "/run/raworc";
/// The host program in the container.
pub const HOST_PATH: &str = "/run/raworc/host";
/// The server's Unix stream socket in the container.
pub const SOCKET_PATH: &str = "/run/raworc/host.sock";
/// Longest token of a host, in bytes. The host reads it from standard input, as one line: it may wait for it, in a
/// container that is prepared for a session still to come. Where standard input ends first, there is none, and it exits.
pub const TOKEN_BYTES_MAX: usize = 512;
/// The user and group that agents run as inside; the host itself is 0.
pub const AGENT_UID: u32 = 1000;
/// Where the host puts scripts in the container: a directory in memory that agents can't write to. A script's path is among
/// the arguments of its shell, so it has nothing in it that a person would look for among the arguments of processes.
pub const SCRIPTS_PATH: &str = "/run/_";
/// Groups that the host gives to agents beside their own, one to each piece of work at a time: a process can't leave it, so
/// it tells which work a process belongs to, whatever that process does.
pub const WORK_GIDS: RangeInclusive<u32> = 61_000..=61_127;
/// The workspace in the container, which is also the agents' home and first working directory.
pub const WORKSPACE_PATH: &str = "/workspace";

/// Where, in the workspace, the host puts the whole output of work that writes more than is kept.
pub const OUTPUT_DIRECTORY: &str = ".raworc/output";

/// The feature of hosts that understand `attach`.
pub const FEATURE_ATTACH: &str = "attach";

/// The TCP port of 127.0.0.1 at which programs inside find the gateway: above the range from which the kernel takes ports by itself (ip(7)),
/// so that no program is there by chance.
pub const GATEWAY_PORT: u16 = 62_000;
/// What the key of programs begins with that run in a turn; the turn's id follows. Such a key is worth nothing outside of its container.
pub const TURN_KEY_PREFIX: &str = "raworc-turn-";
/// The key of other programs.
pub const SESSION_KEY: &str = "raworc-session";

/// Names one piece of work for the life of its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkId {
    /// A turn: an attempt at a message of the conversation; at most one at a time.
    ///
    /// The frames call it `message`, as they did when a host was told the message's id. To a host an id is only a name for what it
    /// runs, so hosts of every build run turns without a new version of the frames, and what one of an older build reports is as
    /// surely of one turn. A turn that such a build began has its message's id (see [`crate::session::Running`]).
    #[serde(rename = "message")]
    Turn(TurnId),
    /// A command from outside the conversation; any number side by side.
    Exec(Uuid),
}

/// What the host is to run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Which work this is.
    pub id: WorkId,
    /// How to run it.
    pub program: Program,
    /// Variables on top of the container's own (`PATH`, `HOME`, …).
    pub env: BTreeMap<String, String>,
    /// Directory to start in, in the container.
    pub directory: String,
    /// Ends the work (as a cancel does) after so long.
    pub timeout_seconds: Option<u64>,
    /// Output to forward, in bytes of text: of what is more, the first half and, at the end, the last, with a mark between them.
    pub output_bytes_max: usize,
}

/// The ways of running work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// A script for bash, or sh where there is no bash.
    Shell {
        /// The script's text, up to [`MESSAGE_BYTES_MAX`](crate::limits::MESSAGE_BYTES_MAX) bytes.
        script: String,
    },
    /// A program and its arguments, looked up in `PATH`.
    Command {
        /// The words; never empty.
        argv: Vec<String>,
        /// Given on standard input, then closed.
        stdin: String,
    },
}

/// A terminal's size, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// One more client of an interactive work, which is started where it is new.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attach {
    /// Names the attachment.
    pub attachment: Uuid,
    /// The interactive work, by its [`WorkId::Exec`].
    pub work: Uuid,
    /// How it is started. Absent: it runs already.
    pub start: Option<Interactive>,
    /// The client sees the output only.
    pub watch: bool,
    /// The size of the client's terminal, where it has one.
    pub size: Option<Size>,
}

/// Work whose streams go to clients as they come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interactive {
    /// What runs; an interactive shell where absent. Its `stdin` is not used.
    pub program: Option<Program>,
    /// Variables on top of the container's own.
    pub env: BTreeMap<String, String>,
    /// Directory to start in, in the container.
    pub directory: String,
    /// Ends the work (as a cancel does) after so long.
    pub timeout_seconds: Option<u64>,
    /// The terminal's first size. Absent: there is no terminal, but a pipe for each stream.
    pub terminal: Option<Size>,
    /// A terminal that no client is attached to ends after so long.
    pub linger_seconds: u64,
}

/// Which output a text came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a piece of work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It exited with this status (0 to 255).
    Exited(i32),
    /// This signal ended it.
    Signalled(i32),
    /// It was cancelled, whatever its status then was.
    Cancelled,
    /// It ran longer than its `timeout_seconds`.
    TimedOut,
    /// It could not be started; the reason went out as stderr output.
    NotStarted,
}

/// What a host reports; each is stored once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The work wrote something. Invalid UTF-8 arrives as U+FFFD; a character is never split between two reports.
    Output {
        /// Whose output.
        work: WorkId,
        /// Where from.
        stream: OutputStream,
        /// At most [`OUTPUT_CHUNK_BYTES_MAX`](crate::limits::OUTPUT_CHUNK_BYTES_MAX) bytes.
        text: String,
    },
    /// The work has ended; nothing more of it follows.
    Finished {
        /// Which work.
        work: WorkId,
        /// How.
        ending: Ending,
        /// From start to end.
        duration_micros: u64,
        /// Output bytes that were dropped because there was more than `output_bytes_max`.
        dropped_bytes: u64,
        /// The file in the workspace that has what was dropped, too; with as much as could be written.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output_file: Option<String>,
    },
}

/// The versions that one side speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The newest.
    protocol: u32,
    /// The oldest; a side that is older than this field speaks one version only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    oldest_protocol: Option<u32>,
}

impl Versions {
    /// Those of this build: [`PROTOCOLS`].
    pub const OURS: Self = Self::new(PROTOCOLS);

    /// Those of a range.
    #[must_use]
    pub const fn new(range: RangeInclusive<u32>) -> Self {
        Self { protocol: *range.end(), oldest_protocol: Some(*range.start()) }
    }

    /// The newest version that this build speaks, too.
    #[must_use]
    pub fn common(self) -> Option<u32> {
        let newest = self.protocol.min(*PROTOCOLS.end());
        let oldest = self.oldest_protocol.unwrap_or(self.protocol).max(*PROTOCOLS.start());
        (oldest <= newest).then_some(newest)
    }
}

/// From the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostFrame {
    /// The first frame of a connection.
    Hello {
        /// Which frames it understands.
        #[serde(flatten)]
        versions: Versions,
        /// Names session and generation, and proves them.
        token: String,
        /// Work that runs, or whose `finished` may not be stored yet.
        works: Vec<WorkId>,
        /// What it can do beyond running works; a host that is older than this field can do nothing of it.
        #[serde(default)]
        features: Vec<String>,
    },
    /// The first frame of a connection that carries one attachment.
    Attached {
        /// Which frames it understands.
        #[serde(flatten)]
        versions: Versions,
        /// As in `hello`.
        token: String,
        /// The attachment that was asked for.
        attachment: Uuid,
    },
    /// The first frame of a connection that one program inside has to the gateway. What follows it, and the server's `welcome`, is theirs.
    Gateway {
        /// Which frames it understands.
        #[serde(flatten)]
        versions: Versions,
        /// As in `hello`.
        token: String,
    },
    /// No turn is going on: send one. Sent once after `welcome` (where none runs) and after each turn.
    Poll,
    /// Something to store.
    Report {
        /// 1, 2, 3, … for the life of the container.
        n: u64,
        /// What happened.
        report: Report,
    },
    /// The host lives. Sent every [`HEARTBEAT_INTERVAL`](crate::limits::HEARTBEAT_INTERVAL).
    Heartbeat {
        /// Live processes that are neither the host nor part of running work.
        background_processes: u32,
    },
}

/// From the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerFrame {
    /// The hello was accepted.
    Welcome {
        /// The highest report that is stored (0: none).
        received: u64,
        /// The version that is spoken from here on; 1 where a server is older than this field.
        #[serde(default = "first_protocol")]
        protocol: u32,
    },
    /// The hello was refused: the token is unknown or of an older generation. The host ends.
    Refused {
        /// `fenced`, `unknown_token` or `unknown_protocol`.
        code: String,
    },
    /// Reports up to here are stored.
    Ack {
        /// The highest stored report.
        n: u64,
    },
    /// Run this.
    Run(Work),
    /// End this work: SIGTERM to its processes, SIGKILL after [`CANCEL_GRACE`](crate::limits::CANCEL_GRACE).
    Cancel(WorkId),
    /// Dial a connection for an attachment. Sent only to hosts with the feature [`FEATURE_ATTACH`].
    Attach(Attach),
    /// End everything and exit with status 0, within [`STOP_GRACE`](crate::limits::STOP_GRACE).
    Stop,
}

fn first_protocol() -> u32 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_speak_the_newest_version_that_both_know() {
        let newest = *PROTOCOLS.end();
        let common = |range| Versions::new(range).common();
        assert_eq!(Versions::OURS.common(), Some(newest));
        assert_eq!(common(*PROTOCOLS.start()..=newest + 5), Some(newest), "a newer build that still knows ours");
        assert_eq!(common(newest + 1..=newest + 5), None, "a newer build that no longer does");
        assert_eq!(common(0..=0), None, "one that is too old");
        // As builds from before there was a range say it.
        let old = r#"{"hello":{"protocol":1,"token":"t","works":[]}}"#;
        let HostFrame::Hello { versions, features, .. } = serde_json::from_str(old).unwrap() else { panic!() };
        assert_eq!((versions.common(), features), (Some(1), Vec::new()));
        let welcome: ServerFrame = serde_json::from_str(r#"{"welcome":{"received":3}}"#).unwrap();
        assert_eq!(welcome, ServerFrame::Welcome { received: 3, protocol: 1 });
    }

    /// To the letter what hosts of earlier builds say and understand: containers outlive the build that started them.
    #[test]
    fn hosts_of_earlier_builds_run_turns() {
        let (text, turn) = ("00000000-0000-0000-0000-000000000001", WorkId::Turn(TurnId(Uuid::from_u128(1))));
        let said = [
            format!(r#"{{"hello":{{"protocol":1,"oldest_protocol":1,"token":"t","works":[{{"message":"{text}"}}]}}}}"#),
            format!(
                r#"{{"report":{{"n":1,"report":{{"output":{{"work":{{"message":"{text}"}},"stream":"stdout","text":"a"}}}}}}}}"#
            ),
            format!(
                r#"{{"report":{{"n":2,"report":{{"finished":{{"work":{{"message":"{text}"}},"ending":{{"exited":0}},"duration_micros":1,"dropped_bytes":0}}}}}}}}"#
            ),
        ];
        let of = |line: &String| match serde_json::from_str(line).unwrap() {
            HostFrame::Hello { works, .. } => works[0],
            HostFrame::Report { report: Report::Output { work, .. } | Report::Finished { work, .. }, .. } => work,
            other => panic!("{other:?}"),
        };
        assert_eq!(said.each_ref().map(of), [turn; 3]);
        let cancel = serde_json::to_string(&ServerFrame::Cancel(turn)).unwrap();
        assert_eq!(cancel, format!(r#"{{"cancel":{{"message":"{text}"}}}}"#));
        let program = Program::Shell { script: "ls".into() };
        let (env, directory) = (BTreeMap::new(), "/workspace".to_owned());
        let run = Work { id: turn, program, env, directory, timeout_seconds: None, output_bytes_max: 9 };
        assert_eq!(
            serde_json::to_string(&ServerFrame::Run(run)).unwrap(),
            format!(
                r#"{{"run":{{"id":{{"message":"{text}"}},"program":{{"shell":{{"script":"ls"}}}},"env":{{}},"directory":"/workspace","timeout_seconds":null,"output_bytes_max":9}}}}"#
            )
        );
    }

    #[test]
    fn frames_look_like_this() {
        let id = WorkId::Turn(TurnId(Uuid::from_u128(1)));
        let frames = [
            serde_json::to_string(&HostFrame::Hello {
                versions: Versions::OURS,
                token: "t".into(),
                works: vec![id],
                features: vec![FEATURE_ATTACH.into()],
            }),
            serde_json::to_string(&HostFrame::Poll),
            serde_json::to_string(&HostFrame::Report {
                n: 1,
                report: Report::Output { work: id, stream: OutputStream::Stdout, text: "a\nb".into() },
            }),
            serde_json::to_string(&HostFrame::Heartbeat { background_processes: 0 }),
            serde_json::to_string(&ServerFrame::Cancel(id)),
            serde_json::to_string(&ServerFrame::Stop),
        ];
        let text: Vec<String> = frames.into_iter().map(|frame| frame.unwrap()).collect();
        insta::assert_snapshot!(text.join("\n"));
    }
}
