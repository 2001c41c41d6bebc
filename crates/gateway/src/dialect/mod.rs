//! The APIs of models that programs inside speak and that providers speak.

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
