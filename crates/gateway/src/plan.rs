//! How an admitted call is carried out: in which dialect its provider is spoken to, and what is sent to it.
//!
//! The URL of a request is the provider's `base_url`, a path, and what query `base_url` has (`?api-version=…`):
//! - openai: `/chat/completions` or `/responses` is appended to `base_url` as it is, as the official clients do with `OPENAI_BASE_URL`;
//! - anthropic: `/v1/messages` is appended; a `/v1` at the end of `base_url` counts as part of that;
//! - gemini: `/v1beta/models/MODEL:ACTION` is appended; a `/v1beta` at the end counts as part of that.

use bytes::Bytes;
use http::{HeaderMap, StatusCode, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use raworc_core::models::ProviderKind;

use crate::dialect::Dialect;
use crate::dialect::translate::{self, Exchange};
use crate::failure::{Failure, Problem};
use crate::headers;
use crate::ports::{Call, Operation, Target};
use crate::route::CallRoute;

/// What a model's name keeps in a path.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');
/// Bytes of a request for one token, where nobody counts.
const BYTES_PER_TOKEN: usize = 4;

/// How a call is carried out.
pub enum Plan {
    /// By the provider.
    Forward { outgoing: Outgoing, answers: Answers },
    /// From a recording; the request as chat completions has it.
    Replay { request: Bytes, answers: Answers },
    /// The provider counts no tokens: so many, estimated from the length of the request.
    Estimate(usize),
}

/// A request to a provider.
pub struct Outgoing {
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// A stream of events is expected.
    pub is_streaming: bool,
}

/// How answers are read.
pub struct Answers {
    /// What the provider speaks.
    pub dialect: Dialect,
    /// What becomes of them.
    pub way: Way,
}

/// What becomes of the bytes of an answer.
pub enum Way {
    /// They pass as they are.
    Same,
    /// They pass, without the usage that only the gateway has asked for.
    WithoutUsage,
    /// They are translated.
    Translated(Exchange),
}

/// Decides how a call is carried out.
pub fn plan(target: &Target, route: &CallRoute, call: &Call, body: &Bytes, head: &HeaderMap) -> Result<Plan, Problem> {
    let Some(dialect) = spoken(target.kind, call.dialect) else {
        let message = format!("the provider {} cannot be spoken to in this API; name another model", target.provider);
        return Err(Problem::new(StatusCode::BAD_REQUEST, "wrong_dialect", message));
    };
    let is_same = dialect == call.dialect;
    if call.operation == Operation::CountTokens && (!is_same || target.kind == ProviderKind::Replay) {
        return Ok(Plan::Estimate(body.len().div_ceil(BYTES_PER_TOKEN)));
    }
    let (body, way) = if is_same { same(target, call, body)? } else { translated(target, call, dialect, body)? };
    let answers = Answers { dialect, way };
    if target.kind == ProviderKind::Replay {
        return Ok(Plan::Replay { request: body, answers });
    }
    let misconfigured = |failure: Failure| failure.problem(&target.provider);
    let query = route.query.filter(|_| is_same);
    let uri = uri(&target.base_url, &path(target, route, dialect), query).map_err(misconfigured)?;
    let headers = headers::to_provider(head, target, is_same).map_err(misconfigured)?;
    Ok(Plan::Forward { outgoing: Outgoing { uri, headers, body, is_streaming: call.is_streaming }, answers })
}

/// The dialect in which a provider serves programs that speak another, or the same.
fn spoken(kind: ProviderKind, program: Dialect) -> Option<Dialect> {
    match (kind, program) {
        (ProviderKind::Openai, Dialect::ChatCompletions | Dialect::Responses) => Some(program),
        (ProviderKind::Openai, Dialect::Messages) => Some(Dialect::ChatCompletions),
        (ProviderKind::Anthropic, Dialect::ChatCompletions | Dialect::Responses | Dialect::Messages) => {
            Some(Dialect::Messages)
        }
        (ProviderKind::Gemini, Dialect::Gemini) => Some(Dialect::Gemini),
        (ProviderKind::Replay, Dialect::ChatCompletions | Dialect::Responses | Dialect::Messages) => {
            Some(Dialect::ChatCompletions)
        }
        (ProviderKind::Openai | ProviderKind::Anthropic | ProviderKind::Replay, Dialect::Gemini)
        | (ProviderKind::Gemini, _) => None,
    }
}

fn same(target: &Target, call: &Call, body: &Bytes) -> Result<(Bytes, Way), Problem> {
    let malformed = |error: crate::dialect::Malformed| malformed(&error);
    // Gemini has the model in its path.
    let is_named = call.dialect == Dialect::Gemini || call.model.as_deref() == Some(&target.model);
    let body = match is_named {
        true => body.clone(),
        false => call.dialect.with_model(body, &target.model).map_err(malformed)?.into(),
    };
    if call.dialect == Dialect::ChatCompletions && call.is_streaming {
        // Without it, nobody would know what the call costs.
        if let Some(asked) = call.dialect.with_usage_asked(&body).map_err(malformed)? {
            return Ok((asked.into(), Way::WithoutUsage));
        }
    }
    Ok((body, Way::Same))
}

fn translated(target: &Target, call: &Call, to: Dialect, body: &Bytes) -> Result<(Bytes, Way), Problem> {
    let translated = translate::request(call.dialect, to, body, &target.model, target.max_output_tokens);
    let translated =
        translated.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "untranslatable", error.to_string()))?;
    Ok((translated.body.into(), Way::Translated(translated.exchange)))
}

/// The request is none.
pub fn malformed(error: &crate::dialect::Malformed) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "malformed_request", error.to_string())
}

fn path(target: &Target, route: &CallRoute, dialect: Dialect) -> String {
    match dialect {
        Dialect::ChatCompletions => "/chat/completions".into(),
        Dialect::Responses => "/responses".into(),
        Dialect::Messages if route.operation == Operation::CountTokens => "/v1/messages/count_tokens".into(),
        Dialect::Messages => "/v1/messages".into(),
        Dialect::Gemini => {
            gemini_path(&target.model, route.gemini.as_ref().map_or("generateContent", |path| path.action))
        }
    }
}

/// The path of an action of Gemini.
pub fn gemini_path(model: &str, action: &str) -> String {
    format!("/v1beta/models/{}:{action}", utf8_percent_encode(model, IN_PATH))
}

/// The URL for a path of a provider.
pub fn uri(base_url: &str, path: &str, query: Option<&str>) -> Result<Uri, Failure> {
    let (base, base_query) = match base_url.split_once('?') {
        Some((base, query)) => (base, Some(query)),
        None => (base_url, None),
    };
    let mut base = base.trim_end_matches('/');
    for version in ["/v1", "/v1beta"] {
        if path.strip_prefix(version).is_some_and(|rest| rest.starts_with('/')) {
            base = base.strip_suffix(version).unwrap_or(base);
        }
    }
    let queries: Vec<&str> = base_query.into_iter().chain(query).filter(|query| !query.is_empty()).collect();
    let mark = if queries.is_empty() { "" } else { "?" };
    let uri: Uri = format!("{base}{path}{mark}{}", queries.join("&")).parse().map_err(|_| Failure::BadUrl)?;
    let is_usable = matches!(uri.scheme_str(), Some("http" | "https"))
        && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    if is_usable { Ok(uri) } else { Err(Failure::BadUrl) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let chat = "/chat/completions";
        for (base, path, query, expected) in [
            ("https://a.example/v1", chat, None, Some("https://a.example/v1/chat/completions")),
            ("https://a.example/v1/", chat, None, Some("https://a.example/v1/chat/completions")),
            ("http://127.0.0.1:11434", chat, None, Some("http://127.0.0.1:11434/chat/completions")),
            (
                "https://a.example/x?api-version=1",
                chat,
                None,
                Some("https://a.example/x/chat/completions?api-version=1"),
            ),
            ("https://a.example", "/v1/messages", Some("beta=true"), Some("https://a.example/v1/messages?beta=true")),
            ("https://a.example/v1", "/v1/messages", None, Some("https://a.example/v1/messages")),
            ("https://a.example/p/v1", "/v1/messages", None, Some("https://a.example/p/v1/messages")),
            ("https://a.example/v1beta/", "/v1beta/models/g:x", None, Some("https://a.example/v1beta/models/g:x")),
            ("https://u:p@a.example/v1", chat, None, None),
            ("ftp://a.example", chat, None, None),
            ("a.example/v1", chat, None, None),
            ("", chat, None, None),
        ] {
            let found = uri(base, path, query).ok().map(|uri| uri.to_string());
            assert_eq!(found.as_deref(), expected, "{base} {path}");
        }
    }
}
