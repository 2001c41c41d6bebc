//! Files of a workspace, and commands.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// The type of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A pipe, socket or device.
    Other,
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileEntry {
    /// Its name; bytes that are not UTF-8 appear as U+FFFD.
    pub name: String,
    /// Its name in base64, if it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_bytes: Option<String>,
    /// Its type.
    pub kind: FileKind,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits, such as 420 for `0644`.
    pub mode: u32,
    /// When its content was last changed.
    #[schema(value_type = String, format = DateTime)]
    pub modified_at: Timestamp,
    /// Target of a symbolic link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The target in base64, if it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_bytes: Option<String>,
}

impl FileEntry {
    /// The bytes of its name.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        exact(&self.name, self.name_bytes.as_deref())
    }

    /// The bytes of its target.
    #[must_use]
    pub fn target_bytes(&self) -> Option<Vec<u8>> {
        Some(exact(self.target.as_deref()?, self.target_bytes.as_deref()))
    }
}

fn exact(text: &str, bytes: Option<&str>) -> Vec<u8> {
    bytes.and_then(|bytes| STANDARD.decode(bytes).ok()).unwrap_or_else(|| text.as_bytes().to_vec())
}

/// `GET …/files/{path}` of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Listing {
    /// The directory, relative to the workspace.
    pub path: String,
    /// The path in base64, if it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<String>,
    /// Its entries, sorted by the bytes of their names.
    pub entries: Vec<FileEntry>,
    /// Whether there are further entries.
    pub truncated: bool,
    /// The `cursor` of the next page, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Query of `GET …/files` and `GET …/files/{path}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ReadFile {
    /// `false`: return the target of a symbolic link. Default: follow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<bool>,
    /// Page size of a directory, 1 to 10000; default 10000. A page with long names has fewer entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// The `next_cursor` of the directory's page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Query of `PUT …/files` and `PUT …/files/{path}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WriteFile {
    /// Permission bits in octal, such as `0755`. Absent: those of an existing file, or `0644`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// `false`: replace a symbolic link. Default: write to its target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<bool>,
}

/// The result of unpacking an archive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Unpacked {
    /// Number of files, directories and links.
    pub entries: u64,
    /// Size of the files in bytes.
    pub size_bytes: u64,
    /// Number of devices and attributes that cannot be stored.
    pub left_out: u64,
}

/// `POST …/exec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// A string is a shell script; a list is a program with its arguments.
    pub command: ExecCommand,
    /// Standard input of a program.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stdin: String,
    /// Environment variables that override the session's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Working directory; default `/workspace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// Time limit in seconds, 1 to 3600; default 60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
}

/// A command to execute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a text, or a list of texts")]
pub enum ExecCommand {
    /// A shell script.
    Script(String),
    /// A program with its arguments.
    Words(Vec<String>),
}

impl Default for ExecCommand {
    fn default() -> Self {
        ExecCommand::Script(String::new())
    }
}

/// The result of an exec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExecResult {
    /// Its exit status; 127 if the program was not found, 126 if it could not be run. Absent after a signal or a
    /// timeout.
    pub exit_code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// Whether it exceeded `timeout_seconds`.
    pub timed_out: bool,
    /// Standard output: all of it, or its beginning and end.
    pub stdout: String,
    /// Standard error, up to 1 MiB together with `stdout`.
    pub stderr: String,
    /// Seconds from start to end.
    pub duration_seconds: f64,
    /// Bytes of output that were dropped.
    pub output_bytes_dropped: u64,
    /// The file in the workspace with the complete output, if some was dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_file: Option<String>,
}
