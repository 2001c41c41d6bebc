//! A provider that answers from a recording: no key, no network, the same answers each time.
//!
//! A recording is a file of JSON lines. Each line is an exchange: the conditions of `match`, and the `answer` to a request for which
//! all of them hold. Requests are matched by their content and never by their order, so that any number of calls may run side by side.
//!
//! ```json
//! {"match": {"user": "Fix the tests", "tool_results": 0}, "answer": {"text": "I look.", "tool_calls": [{"name": "list_files", "arguments": {"path": "."}}]}}
//! {"match": {"user": "Fix the tests", "tool_results": 1, "result_contains": ["sum.py"]}, "answer": {"text": "Done.", "usage": {"input_tokens": 900, "output_tokens": 12}}}
//! {"match": {"tools": []}, "answer": {"text": "A title"}}
//! ```
//!
//! Conditions; the texts of a message are joined with a newline each:
//!
//! | condition | holds if |
//! | --- | --- |
//! | `user` | the last text of the user is exactly this, without space around it |
//! | `user_contains` | the last text of the user contains all of these |
//! | `contains` | each of these is in some text of the request: instructions, conversation, or results of tools |
//! | `result_contains` | the last result of a tool contains all of these |
//! | `tool_results` | the conversation has so many results of tools |
//! | `user_texts` | the conversation has so many texts of the user |
//! | `tools` | all of these tools are offered; `[]`: none is |
//!
//! Of several exchanges that match, one with `user` comes before one without; then the one with more conditions, where each text of a
//! list counts; then the one that is earlier in the file. An exchange without conditions matches everything.
//!
//! An answer has `text`, `tool_calls` (`name`, `arguments`, and `id` if it matters), `usage` (`input_tokens`, `output_tokens`; estimated
//! otherwise), and `finish` (`stop`, `tool_calls`, `length`, `content_filter`; from its content otherwise). Empty lines, and lines that
//! begin with `#`, are skipped.

mod asked;
mod recording;
mod render;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderMap, StatusCode};

use crate::failure::Failure;
use crate::ports::Target;
use crate::upstream::Reply;
use asked::Asked;
use recording::Recording;

/// Longest recording, in bytes.
const RECORDING_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Recordings that are kept in memory.
const KEPT_MAX: usize = 16;
/// What a `base_url` begins with that names a recording of the program's own.
pub const BUILTIN: &str = "builtin:";
/// The recordings of the program's own.
const BUILTINS: [(&str, &[u8]); 1] =
    [("fix-the-tests", include_bytes!("../../recordings/fix-the-tests.jsonl").as_slice())];

/// The names of the recordings that the program has in itself.
pub const BUILTIN_NAMES: [&str; BUILTINS.len()] = [BUILTINS[0].0];

/// A recording that the program has in itself.
#[must_use]
pub fn builtin(name: &str) -> Option<&'static [u8]> {
    BUILTINS.iter().find(|(known, _)| *known == name).map(|(_, bytes)| *bytes)
}

struct Kept {
    changed: Option<SystemTime>,
    length: u64,
    recording: Arc<Recording>,
}

/// The recordings that were read lately.
#[derive(Default)]
pub struct Recordings {
    kept: Mutex<HashMap<PathBuf, Kept>>,
}

impl Recordings {
    /// Answers a request, which is one of chat completions.
    pub(crate) async fn answer(&self, target: &Target, request: Bytes, is_streaming: bool) -> Result<Reply, Failure> {
        let recording = self.recording(&target.base_url).await?;
        let asked = Asked::read(&request);
        let found = recording.find(&asked).ok_or_else(|| Failure::NotRecorded(asked.to_string()))?;
        let rendered = render::Rendered::new(found, &asked, &target.model);
        let mut headers = HeaderMap::new();
        if !is_streaming {
            headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
            return Ok(Reply::Whole { status: StatusCode::OK, headers, body: rendered.whole() });
        }
        let mut pieces = rendered.pieces().into_iter();
        let first = pieces.next().unwrap_or_default();
        Ok(Reply::Stream { headers, first, rest: futures::stream::iter(pieces.map(Ok)).boxed() })
    }

    /// A recording by its path.
    pub(crate) async fn recording(&self, base_url: &str) -> Result<Arc<Recording>, Failure> {
        if let Some(name) = base_url.strip_prefix(BUILTIN) {
            let bytes = builtin(name).ok_or_else(none)?;
            return Recording::read(bytes).map(Arc::new).map_err(Failure::BadRecording);
        }
        let path = PathBuf::from(base_url);
        let metadata = tokio::fs::metadata(&path).await.map_err(|error| unreadable(&error))?;
        let (changed, length) = (metadata.modified().ok(), metadata.len());
        if let Some(recording) = self.kept(&path, changed, length) {
            return Ok(recording);
        }
        if !metadata.is_file() || length > RECORDING_BYTES_MAX {
            return Err(Failure::BadRecording("has a recording that is too long, or no file".into()));
        }
        let bytes = tokio::fs::read(&path).await.map_err(|error| unreadable(&error))?;
        let recording = Arc::new(Recording::read(&bytes).map_err(Failure::BadRecording)?);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(path, Kept { changed, length, recording: recording.clone() });
        Ok(recording)
    }

    fn kept(&self, path: &Path, changed: Option<SystemTime>, length: u64) -> Option<Arc<Recording>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.get(path).filter(|found| found.changed == changed && found.length == length)?;
        Some(found.recording.clone())
    }
}

fn none() -> Failure {
    Failure::BadRecording("has no such recording".into())
}

fn unreadable(error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::NotFound => none(),
        kind => Failure::BadRecording(format!("has a recording that cannot be read ({kind})")),
    }
}
