//! Files and commands.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// What a path is.
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
    /// The bytes of its name in base64, where they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_bytes: Option<String>,
    /// What it is.
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// Permission bits, such as 420 for `0644`.
    pub mode: u32,
    /// When its content last changed.
    #[schema(value_type = String, format = DateTime)]
    pub modified_at: Timestamp,
    /// Where a symbolic link points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The same in base64, where it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_bytes: Option<String>,
}

impl FileEntry {
    /// The bytes of its name.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        exact(&self.name, self.name_bytes.as_deref())
    }

    /// The bytes of where it points.
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
    /// The bytes of the path in base64, where they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<String>,
    /// Its entries, by the bytes of their names.
    pub entries: Vec<FileEntry>,
    /// There are more than shown.
    pub truncated: bool,
    /// Where the next page goes on, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Query of `GET …/files` and `GET …/files/{path}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ReadFile {
    /// `false`: where the path is a symbolic link, the answer is where it points. Absent: what it leads to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<bool>,
    /// Entries of a page of a directory, 1 to 10000; 10000 where absent. A page of long names has fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Where to go on in a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Query of `PUT …/files` and `PUT …/files/{path}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WriteFile {
    /// Permission bits of a file in octal digits, such as `0755`. Absent: those of the file that is replaced; `0644` of a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// `false`: where the path is a symbolic link, the file takes its place. Absent: what it leads to is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<bool>,
}

/// What `PUT …/files/{path}` of an archive has unpacked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Unpacked {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of the files.
    pub size_bytes: u64,
    /// Devices and attributes that cannot be kept.
    pub left_out: u64,
}

/// `POST …/exec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// A text is a script for the shell; a list is a program with its arguments.
    pub command: ExecCommand,
    /// Given on standard input of a program.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stdin: String,
    /// Variables on top of the session's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Where to start; absent: `/workspace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// Ends it after so long; 1 to 3600, 60 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
}

/// What to execute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a text, or a list of texts")]
pub enum ExecCommand {
    /// A script.
    Script(String),
    /// A program and its arguments.
    Words(Vec<String>),
}

impl Default for ExecCommand {
    fn default() -> Self {
        ExecCommand::Script(String::new())
    }
}

/// How an exec ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExecResult {
    /// Its exit status; 127 where the program was not found, 126 where it could not be run. Absent where a signal or the
    /// timeout ended it.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// It took longer than `timeout_seconds`.
    pub timed_out: bool,
    /// Standard output: all of it, or its beginning and its end.
    pub stdout: String,
    /// Standard error, up to 1 MiB together with `stdout`.
    pub stderr: String,
    /// From start to end.
    pub duration_seconds: f64,
    /// Bytes of output that were left out.
    pub output_bytes_dropped: u64,
    /// The file of the workspace that has all of the output, where some was left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_file: Option<String>,
}
