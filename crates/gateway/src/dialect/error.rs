//! Errors, as the official SDKs of each dialect read them.

use http::StatusCode;
use serde_json::{Value, json};

use super::Dialect;
use crate::sse;

impl Dialect {
    /// The body of an answer of that status. Every SDK picks its exception by the status and shows the message.
    #[must_use]
    pub fn error(self, status: StatusCode, code: &str, message: &str) -> Vec<u8> {
        self.error_value(status, code, message).to_string().into_bytes()
    }

    /// An error as an event of a stream that has begun; it is the last one.
    #[must_use]
    pub fn error_event(self, status: StatusCode, code: &str, message: &str) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Responses => {
                let event = json!({
                    "type": "error", "code": code, "message": message, "param": null, "sequence_number": 0,
                });
                sse::write(&mut out, Some("error"), &event.to_string());
            }
            Self::Messages => {
                sse::write(&mut out, Some("error"), &self.error_value(status, code, message).to_string());
            }
            Self::ChatCompletions | Self::Gemini => {
                sse::write(&mut out, None, &self.error_value(status, code, message).to_string());
            }
        }
        out
    }

    fn error_value(self, status: StatusCode, code: &str, message: &str) -> Value {
        match self {
            Self::ChatCompletions | Self::Responses => {
                json!({"error": {"message": message, "type": openai_type(status), "param": null, "code": code}})
            }
            Self::Messages => {
                json!({"type": "error", "error": {"type": anthropic_type(status), "message": message, "code": code}})
            }
            Self::Gemini => {
                json!({"error": {"code": status.as_u16(), "message": message, "status": google_status(status)}})
            }
        }
    }
}

fn openai_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    }
}

fn anthropic_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        408 | 504 => "timeout_error",
        503 | 529 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

fn google_status(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        409 => "ABORTED",
        429 => "RESOURCE_EXHAUSTED",
        499 => "CANCELLED",
        501 => "UNIMPLEMENTED",
        503 | 529 => "UNAVAILABLE",
        408 | 504 => "DEADLINE_EXCEEDED",
        500.. => "INTERNAL",
        _ => "INVALID_ARGUMENT",
    }
}
