//! Objects that the data of several kinds of events has in it.

use super::words::StreamError;
use crate::ids::MessageId;

object! {
    /// An image that a session uses.
    ImageName {
        /// Its name.
        name: String,
        /// The digest of its manifest, `sha256:…`.
        digest: String,
    }
}

object! {
    /// Why a message did not end well.
    MessageError {
        /// `exit_status`, `signal`, `timeout`, `not_started`, `model_failed`, `step_limit`, `cancelled`, `session_ended`, `host_died`, `out_of_memory`,
        /// `disk_quota_exceeded` or `record_damaged`.
        code: String,
        /// What happened, for people.
        message: String,
    }
}

object! {
    /// What became of a turn whose host reported its end.
    TurnResult {
        /// The agent's message.
        reply_id: MessageId,
        /// The exit status, 0 to 255; null where it did not exit.
        exit_code: Option<i32>,
        /// The signal that ended it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
        /// From start to end.
        duration_seconds: f64,
        /// Bytes of output that were left out because there was too much.
        output_bytes_dropped: u64,
        /// The file of the workspace that has all of the output, where some was left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output_file: Option<String>,
    }
}

object! {
    /// How a command or a terminal ended.
    StreamEnd {
        /// The exit status, 0 to 255; null where it did not exit, or nobody saw it.
        exit_code: Option<i32>,
        /// From start to end, where its host reported it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        duration_seconds: Option<f64>,
        /// The signal that ended it, where its streams were attached.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
        /// Why there is no exit status.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<StreamError>,
    }
}

object! {
    /// What a terminal, or a command with its streams attached, begins with.
    StreamStart {
        /// Its streams are attached: true, or left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attached: Option<bool>,
        /// Characters in a line, 1 to 4096, where there is a terminal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        columns: Option<u16>,
        /// Lines, 1 to 4096, where there is a terminal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rows: Option<u16>,
    }
}
