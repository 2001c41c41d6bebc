//! Asks a provider once, to find out whether it is there, takes the key, and has the model.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::Full;
use raworc_core::models::ProviderKind;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::client::{Client, ConnectFailure};
use crate::failure::Failure;
use crate::headers;
use crate::plan;
use crate::ports::Target;
use crate::relay::message;
use crate::replay::Recordings;
use crate::scrub::Scrub;
use crate::upstream;

/// Time for the whole question.
const PROBE_MAX: Duration = Duration::from_secs(30);
/// Tokens that the model may answer: some APIs refuse fewer.
const TOKENS: u64 = 16;

/// What a provider answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeReport {
    /// The time it took.
    pub duration: Duration,
    /// How many models it lists, where that was asked.
    pub models: Option<usize>,
}

/// What is wrong with a provider. Each is one sentence, without a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Its name cannot be resolved.
    #[error("the host of base_url has no address: correct base_url")]
    Name,
    /// Nothing listens there, or it cannot be reached from here.
    #[error("there is no connection to base_url: {0}")]
    Connect(String),
    /// TLS fails.
    #[error(
        "TLS fails: its certificate is not trusted by this machine, or base_url is http:// in truth; the server's log has more"
    )]
    Tls,
    /// Nothing came in time.
    #[error("nothing came within {} seconds", .0.as_secs())]
    Timeout(Duration),
    /// It refuses the key, or wants one.
    #[error("it does not take the key (status {0})")]
    Key(u16),
    /// It has no such model, or base_url leads elsewhere.
    #[error("it has no model {model:?}, or base_url leads elsewhere (status 404)")]
    NotFound {
        /// What was asked for.
        model: String,
    },
    /// It limits, or has no credit.
    #[error("it takes the key but allows no call now (status 429){0}")]
    Limited(String),
    /// Any other status.
    #[error("it answered with status {status}{said}")]
    Status {
        /// The status.
        status: u16,
        /// What it says, after a colon.
        said: String,
    },
    /// Anything else.
    #[error("it {0}")]
    Other(String),
}

impl From<Failure> for ProbeError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Connect(ConnectFailure::Name) => Self::Name,
            Failure::Connect(ConnectFailure::Tls) => Self::Tls,
            Failure::Connect(ConnectFailure::Timeout) => Self::Timeout(crate::client::CONNECT_MAX),
            Failure::Connect(why) => Self::Connect(why.to_string()),
            Failure::Silent(time) => Self::Timeout(time),
            other => Self::Other(other.what().1),
        }
    }
}

/// Asks a provider: for one answer of [`Target::model`], which proves key and model; or for its list of models, where none is named.
pub(crate) async fn probe(
    client: &Client,
    recordings: &Recordings,
    target: &Target,
) -> Result<ProbeReport, ProbeError> {
    let begun = Instant::now();
    if target.kind == ProviderKind::Replay {
        let recording = recordings.recording(&target.base_url).await?;
        return Ok(ProbeReport { duration: begun.elapsed(), models: Some(usize::from(recording.len() > 0)) });
    }
    let is_listing = target.model.is_empty();
    let (path, body) = if is_listing { (list_path(target.kind), None) } else { question(target, "max_tokens") };
    let (mut status, mut answer) = ask(client, target, &path, body).await?;
    let wants_other_name =
        |answer: &[u8]| message(answer).is_some_and(|message| message.contains("max_completion_tokens"));
    if status == StatusCode::BAD_REQUEST && !is_listing && wants_other_name(&answer) {
        let (path, body) = question(target, "max_completion_tokens");
        (status, answer) = ask(client, target, &path, body).await?;
    }
    judge(target, status, &answer)?;
    let list: Value = serde_json::from_slice(&answer).map_err(|_| ProbeError::Other("sent no JSON".into()))?;
    let models = || list["data"].as_array().or(list["models"].as_array()).map_or(0, Vec::len);
    Ok(ProbeReport { duration: begun.elapsed(), models: is_listing.then(models) })
}

async fn ask(
    client: &Client,
    target: &Target,
    path: &str,
    body: Option<Value>,
) -> Result<(StatusCode, Bytes), ProbeError> {
    let mut request = Request::new(Full::default());
    *request.uri_mut() = plan::uri(&target.base_url, path, None)?;
    *request.headers_mut() = headers::to_provider(&HeaderMap::new(), target, false)?;
    if let Some(body) = body {
        *request.method_mut() = Method::POST;
        *request.body_mut() = Full::from(body.to_string());
    }
    let (status, answer) = upstream::ask(client, request, PROBE_MAX.min(target.timeout)).await?;
    Ok((status, Scrub::new(target.key.as_ref()).whole(answer)))
}

fn list_path(kind: ProviderKind) -> String {
    match kind {
        ProviderKind::Openai | ProviderKind::Replay => "/models",
        ProviderKind::Anthropic => "/v1/models",
        ProviderKind::Gemini => "/v1beta/models",
    }
    .into()
}

fn question(target: &Target, limit: &str) -> (String, Option<Value>) {
    let messages = json!([{ "role": "user", "content": "Answer with one word." }]);
    let model = &target.model;
    match target.kind {
        ProviderKind::Openai | ProviderKind::Replay => {
            ("/chat/completions".into(), Some(json!({ "model": model, "messages": messages, limit: TOKENS })))
        }
        ProviderKind::Anthropic => {
            ("/v1/messages".into(), Some(json!({ "model": model, "messages": messages, "max_tokens": TOKENS })))
        }
        ProviderKind::Gemini => {
            let contents = json!([{ "role": "user", "parts": [{ "text": "Answer with one word." }] }]);
            let body = json!({ "contents": contents, "generationConfig": { "maxOutputTokens": TOKENS } });
            (plan::gemini_path(model, "generateContent"), Some(body))
        }
    }
}

fn judge(target: &Target, status: StatusCode, answer: &[u8]) -> Result<(), ProbeError> {
    let said = || message(answer).map(|said| format!(": {said}")).unwrap_or_default();
    match status.as_u16() {
        200..300 => Ok(()),
        code @ (401 | 403) => Err(ProbeError::Key(code)),
        404 => Err(ProbeError::NotFound { model: target.model.clone() }),
        429 => Err(ProbeError::Limited(said())),
        status => Err(ProbeError::Status { status, said: said() }),
    }
}
