//! Errors of calls.

use reqwest::StatusCode;
use serde_json::Value;

use super::SHOWN_CHARACTERS_MAX;
use crate::problem::Problem;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ClientError {
    /// The server answered with a problem.
    #[error(transparent)]
    Problem(Box<Problem>),
    /// The server cannot be reached, or the connection broke.
    #[error("no answer from {url}: {reason}")]
    Unreachable {
        /// The server's URL.
        url: String,
        /// The cause.
        reason: String,
    },
    /// The answer is not that of a Raworc server of this version.
    #[error("unexpected answer: {0}")]
    Protocol(String),
    /// The arguments cannot be sent as a request.
    #[error("{0}")]
    Input(String),
}

impl ClientError {
    /// The server's problem document, if there is one.
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            ClientError::Problem(problem) => Some(problem),
            ClientError::Unreachable { .. } | ClientError::Protocol(_) | ClientError::Input(_) => None,
        }
    }
}

/// The error for an answer that is not a success.
pub(super) fn refusal(status: StatusCode, body: &str) -> ClientError {
    if let Ok(problem) = serde_json::from_str::<Problem>(body) {
        return ClientError::Problem(Box::new(problem));
    }
    // The code may be unknown here because the server is newer; its text still helps.
    let detail = serde_json::from_str::<Value>(body).ok().and_then(|v| Some(v.get("detail")?.as_str()?.to_owned()));
    let shown: String = detail.unwrap_or_else(|| body.trim().to_owned()).chars().take(SHOWN_CHARACTERS_MAX).collect();
    ClientError::Protocol(if shown.is_empty() { status.to_string() } else { format!("{status}: {shown}") })
}

/// An error with its causes, without repetitions. The outermost text of reqwest only repeats the URL.
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
