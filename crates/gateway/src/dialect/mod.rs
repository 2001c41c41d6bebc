//! The APIs of models that programs inside speak and that providers speak.
//!
//! Everything here is pure: bytes in, bytes out. Where program and provider speak the same dialect, bytes pass as they are, save the
//! model's name ([`Dialect::with_model`]), and an [`Observer`] reads beside them.

mod error;
mod intake;
mod json;
mod neutral;
mod observe;
mod read;
mod splice;
#[cfg(test)]
mod tests;
pub mod translate;

pub use intake::ANSWER_BYTES_MAX;
pub use observe::{HELD_BYTES_MAX, Observed, Observer, TEXT_BYTES_MAX, UsageFilter};
pub use splice::Ask;

/// An API of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// OpenAI's `POST /v1/chat/completions`.
    ChatCompletions,
    /// OpenAI's `POST /v1/responses`.
    Responses,
    /// Anthropic's `POST /v1/messages`, and `/v1/messages/count_tokens`.
    Messages,
    /// Google's `POST /v1beta/models/MODEL:generateContent`, `:streamGenerateContent` and `:countTokens`.
    Gemini,
}

/// A request that can't be read, in one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);
