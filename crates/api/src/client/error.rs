//! How a call can fail.

use reqwest::StatusCode;
use serde_json::Value;

use super::SHOWN_CHARACTERS_MAX;
use crate::problem::Problem;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ClientError {
    /// The server refused it and says why.
    #[error(transparent)]
    Problem(Box<Problem>),
    /// Nothing answers, or the connection broke.
    #[error("no answer from {url}: {reason}")]
    Unreachable {
        /// Where.
        url: String,
        /// What happened.
        reason: String,
    },
    /// Something answered, but not as a Raworc server of this version does.
    #[error("unexpected answer: {0}")]
    Protocol(String),
    /// The call can't be put into a request; nothing was sent.
    #[error("{0}")]
    Input(String),
}

impl ClientError {
    /// The server's problem document, where there is one.
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            ClientError::Problem(problem) => Some(problem),
            ClientError::Unreachable { .. } | ClientError::Protocol(_) | ClientError::Input(_) => None,
        }
    }
}

/// An answer that is not a success.
pub(super) fn refusal(status: StatusCode, body: &str) -> ClientError {
    if let Ok(problem) = serde_json::from_str::<Problem>(body) {
        return ClientError::Problem(Box::new(problem));
    }
    // A newer server may have codes that are unknown here; its text still helps.
    let detail = serde_json::from_str::<Value>(body).ok().and_then(|v| Some(v.get("detail")?.as_str()?.to_owned()));
    let shown: String = detail.unwrap_or_else(|| body.trim().to_owned()).chars().take(SHOWN_CHARACTERS_MAX).collect();
    ClientError::Protocol(if shown.is_empty() { status.to_string() } else { format!("{status}: {shown}") })
}

/// The error and what caused it, each said once. The outermost text of reqwest only repeats the URL.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let text = cause.to_string();
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        source = cause.source();
    }
    if error.is_timeout() {
        return "it took too long".into();
    }
    parts.pop().unwrap_or_else(|| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals() {
        let problem = Problem::field("name", "is taken");
        let body = serde_json::to_string(&problem).unwrap();
        assert_eq!(refusal(StatusCode::UNPROCESSABLE_ENTITY, &body), ClientError::Problem(Box::new(problem)));

        let newer = r#"{"type":"x","title":"T","status":418,"code":"teapot","detail":"no coffee"}"#;
        let expected = ClientError::Protocol("418 I'm a teapot: no coffee".into());
        assert_eq!(refusal(StatusCode::IM_A_TEAPOT, newer), expected);
        assert_eq!(refusal(StatusCode::BAD_GATEWAY, ""), ClientError::Protocol("502 Bad Gateway".into()));
        let ClientError::Protocol(text) = refusal(StatusCode::BAD_GATEWAY, &"x".repeat(1000)) else { panic!() };
        assert!(text.len() < 300);
    }
}
