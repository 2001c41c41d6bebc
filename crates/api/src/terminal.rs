//! WebSocket frames of terminals and of commands with attached streams.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::problem::Problem;
use crate::workspace::Exec;

/// Prefix of a WebSocket subprotocol that contains the token in base64url without padding, for browsers, which cannot
/// send an `Authorization` header.
pub const TOKEN_SUBPROTOCOL: &str = "base64url.bearer.authorization.raworc.";
/// The subprotocol that the server selects. Browsers offer it besides the one with the token.
pub const SUBPROTOCOL: &str = "raworc.v0";

/// Channel of binary frames with a command's standard input.
pub const CHANNEL_STDIN: u8 = 0;
/// Channel of a command's standard output.
pub const CHANNEL_STDOUT: u8 = 1;
/// Channel of a command's standard error.
pub const CHANNEL_STDERR: u8 = 2;

/// Close code if the client was too slow; it may attach again.
pub const CLOSE_TOO_SLOW: u16 = 4008;
/// Close code if the connection to the container was lost; the client may attach again if the terminal still exists.
pub const CLOSE_LOST: u16 = 1012;

/// The query of `GET …/terminal`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OpenTerminal {
    /// Columns of the terminal; default 80.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<u16>,
    /// Rows of the terminal; default 24.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u16>,
    /// `TERM` in a new terminal; default `xterm-256color`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<String>,
    /// The command of a new terminal: a JSON list for a program with arguments, any other text for a shell script.
    /// Absent: an interactive shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Environment variables that override the session's, for a new terminal: a JSON object of strings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    /// Working directory of a new terminal; default `/workspace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// Attach to this terminal instead of opening one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<String>,
    /// With `terminal`: only receive its output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch: Option<bool>,
}

/// An open terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Terminal {
    /// Its id.
    pub id: String,
    /// Its command.
    pub command: String,
    /// Who opened it.
    pub opened_by: String,
    /// When it was opened.
    #[schema(value_type = String, format = DateTime)]
    pub opened_at: Timestamp,
}

/// A text frame from the client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ClientFrame {
    /// The first frame for a command: what to run. `stdin` must be empty.
    Start(Exec),
    /// The new size of the client's terminal.
    Resize {
        /// Characters per line.
        columns: u16,
        /// Lines.
        rows: u16,
    },
    /// The end of a command's standard input.
    EndOfInput {},
}

/// A text frame from the server, with one field that gives its kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Notice {
    /// The first frame of a terminal: its id, for attaching again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<String>,
    /// In the last frame: the program's exit status. 128 plus the signal's number if it was killed, 124 for a
    /// timeout, 127 or 126 if it was not found or could not be run, 130 if it was closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// With `exit_code`: the signal that killed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// With `exit_code`: the reason, if the program did not end by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// In the last frame: why the connection ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}
