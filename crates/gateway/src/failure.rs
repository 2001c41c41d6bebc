//! What goes wrong, as programs are told it: in their own dialect, with the provider's name and nothing else of it.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;

use crate::client::{ConnectFailure, RequestFailure};
use crate::ports::Refusal;

/// The status of a call that was cancelled from outside; clients do not try it again.
const CANCELLED: u16 = 499;

/// An error for a program.
#[derive(Clone, Debug)]
pub struct Problem {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: Cow<'static, str>,
    pub retry_after: Option<Duration>,
}

impl Problem {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, message: message.into(), retry_after: None }
    }

    pub fn retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let Refusal { status, code, message, retry_after } = refusal;
        Self { status, code, message: message.into(), retry_after }
    }
}

/// Why there is no answer of a provider, or no whole one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is no connection.
    Connect(ConnectFailure),
    /// The connection ended before the answer began.
    Closed,
    /// The answer broke off.
    Cut,
    /// Nothing came for so long.
    Silent(Duration),
    /// What came is no answer.
    Garbage(&'static str),
    /// It redirects.
    Redirect(StatusCode),
    /// The answer is too long, in bytes or in time.
    TooLong,
    /// Its key has characters that no header may have.
    BadKey,
    /// Its URL is none.
    BadUrl,
    /// [`crate::ports::Admission::cancelled`].
    Cancelled,
    /// A recording has no answer to it.
    NotRecorded(String),
    /// A recording cannot be used.
    BadRecording(String),
}

impl From<RequestFailure> for Failure {
    fn from(failure: RequestFailure) -> Self {
        match failure {
            RequestFailure::Connect(why) => Self::Connect(why),
            RequestFailure::Closed => Self::Closed,
            RequestFailure::NotHttp => Self::Garbage("it is no HTTP"),
        }
    }
}

impl Failure {
    /// Whether another attempt may help.
    pub fn is_transient(&self) -> bool {
        match self {
            // A certificate, or a name, gets no better within seconds.
            Self::Connect(why) => !matches!(why, ConnectFailure::Tls),
            Self::Closed | Self::Cut | Self::Garbage(_) => true,
            _ => false,
        }
    }

    /// The error for the program.
    pub fn problem(&self, provider: &str) -> Problem {
        let (code, what) = self.what();
        if *self == Self::Cancelled {
            return Problem::new(self.status(), code, what);
        }
        Problem::new(self.status(), code, format!("the provider {provider} {what}"))
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Silent(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::NotRecorded(_) | Self::BadRecording(_) => StatusCode::NOT_FOUND,
            Self::Cancelled => StatusCode::from_u16(CANCELLED).unwrap_or(StatusCode::CONFLICT),
            _ => StatusCode::BAD_GATEWAY,
        }
    }

    /// Its code, and what the provider does, as the rest of a sentence.
    pub fn what(&self) -> (&'static str, String) {
        match self {
            Self::Connect(why) => ("provider_unreachable", format!("cannot be reached: {why}")),
            Self::Closed => ("provider_unreachable", "closed the connection without an answer".into()),
            Self::Cut => ("provider_cut", "broke its answer off".into()),
            Self::Silent(time) => ("provider_timeout", format!("has sent nothing for {} seconds", time.as_secs_f32())),
            Self::Garbage(why) => ("provider_bad_answer", format!("sent what is no answer: {why}")),
            Self::Redirect(status) => {
                let status = status.as_u16();
                let what = "which is not followed; an administrator has to correct its base_url";
                ("provider_redirects", format!("redirects (status {status}), {what}"))
            }
            Self::TooLong => ("provider_bad_answer", "sends more, or for longer, than an answer may".into()),
            Self::BadKey => {
                let what = "has a key that cannot be sent; an administrator has to set it again";
                ("provider_misconfigured", what.into())
            }
            Self::BadUrl => {
                let what = "has a base_url that cannot be used; an administrator has to correct it";
                ("provider_misconfigured", what.into())
            }
            Self::Cancelled => ("call_cancelled", "the call was cancelled".into()),
            Self::NotRecorded(what) => ("not_recorded", format!("has no answer to {what}")),
            Self::BadRecording(why) => ("bad_recording", why.clone()),
        }
    }
}
