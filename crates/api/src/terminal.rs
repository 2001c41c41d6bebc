//! Terminals, and commands whose streams are attached: what goes over their WebSockets.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::problem::Problem;
use crate::workspace::Exec;

/// Begins the subprotocol in which a browser, which cannot send headers of its own, names its token:
/// this, and the token in base64url without padding.
pub const TOKEN_SUBPROTOCOL: &str = "base64url.bearer.authorization.raworc.";
/// The subprotocol that the server agrees to. A browser offers it beside the one with the token.
pub const SUBPROTOCOL: &str = "raworc.v0";

/// The channel of a command's binary frames from the client: standard input.
pub const CHANNEL_STDIN: u8 = 0;
/// The channel of a command's standard output.
pub const CHANNEL_STDOUT: u8 = 1;
/// The channel of a command's standard error.
pub const CHANNEL_STDERR: u8 = 2;

/// Closes a WebSocket whose client was too slow: it may attach again.
pub const CLOSE_TOO_SLOW: u16 = 4008;
/// Closes a WebSocket whose way to the container was lost: where the terminal is still there, it may be attached again.
pub const CLOSE_LOST: u16 = 1012;

/// The query of `GET …/terminal`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OpenTerminal {
    /// The terminal's size, 80 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<u16>,
    /// The terminal's size, 24 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u16>,
    /// `TERM` in a new terminal, `xterm-256color` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<String>,
    /// What runs in a new terminal: a JSON list is a program with its arguments, anything else a script for the shell.
    /// Absent: an interactive shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Variables in a new terminal on top of the session's: a JSON object of texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    /// Where a new terminal's program starts, `/workspace` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// Attach to this terminal instead of opening a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<String>,
    /// With `terminal`: see its output only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch: Option<bool>,
}

/// A terminal that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Terminal {
    /// Its id.
    pub id: String,
    /// What runs in it.
    pub command: String,
    /// Who opened it.
    pub opened_by: String,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub opened_at: Timestamp,
}

/// A text frame from the client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ClientFrame {
    /// The first frame of a command: what to run. `stdin` has to be empty.
    Start(Exec),
    /// The client's terminal has this size now.
    Resize {
        /// Characters in a line.
        columns: u16,
        /// Lines.
        rows: u16,
    },
    /// A command's standard input ends here.
    EndOfInput {},
}

/// A text frame from the server. One field says what it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Notice {
    /// The first frame of a terminal: its id, for attaching again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<String>,
    /// The last frame: the program's exit status. 128 and the signal's number where a signal ended it, 124 where it took
    /// longer than `timeout_seconds`, 127 or 126 where the program was not found or could not be run, 130 where it was
    /// closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Beside `exit_code`: the signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Beside `exit_code`: why, where the program did not end by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The last frame: why it does not go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}
