//! Translates between dialects, for a program that speaks one and a provider that speaks another.
//!
//! Each dialect is read into and written from one form in the middle ([`conversation`] for requests, `neutral` for answers). What the
//! other dialect does not have is left out where it is only an offer or a hint (sampling hints, cache marks, reasoning of earlier
//! turns, tools that the provider itself would run beside others); it is [`Untranslatable`] where the answer would mean something else.

mod answers;
mod conversation;
mod exchange;
mod freeform;
mod requests;
mod stream;
#[cfg(test)]
mod tests;

use std::time::{SystemTime, UNIX_EPOCH};

use http::StatusCode;

use freeform::Freeform;

use super::Dialect;
use super::intake::ANSWER_BYTES_MAX;
use super::json::Json;
use super::neutral::{Answer, Delta};
use super::read;

pub use super::neutral::Failure;
pub use exchange::{Exchange, Untranslatable};
pub use stream::StreamTranslator;

/// A request in the provider's dialect.
#[derive(Clone, Debug)]
pub struct Translated {
    /// Its body.
    pub body: Vec<u8>,
    /// What its answer needs.
    pub exchange: Exchange,
}

/// Translates a request, for this model of the provider. Where the provider's dialect demands a bound of the answer and the request has
/// none, it is `max_output_tokens`.
///
/// # Errors
/// If the body can't be read, or says what the provider's dialect can't.
pub fn request(
    from: Dialect,
    to: Dialect,
    body: &[u8],
    model: &str,
    max_output_tokens: Option<u64>,
) -> Result<Translated, Untranslatable> {
    let body = Json::read(body).map_err(|error| Untranslatable::new("body", format!("it is no JSON: {error}")))?;
    if !body.is_object() {
        return Err(Untranslatable::new("body", "it is to be a JSON object"));
    }
    let request = requests::read(from, &body)?;
    let exchange = Exchange {
        client: from,
        provider: to,
        model: model.to_owned(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        is_usage_asked: request.is_usage_asked,
        freeform: request.tools.iter().filter(|tool| tool.is_freeform).map(|tool| tool.name.clone()).collect(),
        echo: if from == Dialect::Responses { answers::echo(&body) } else { Json::Null },
    };
    let written = requests::write(to, &request, model, max_output_tokens)?;
    Ok(Translated { body: written.to_string().into_bytes(), exchange })
}

impl Exchange {
    /// Translates a whole answer.
    ///
    /// # Errors
    /// If it is none, or an error inside of one.
    pub fn answer(&self, body: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut deltas = Vec::new();
        read::answer(self.provider, body, &mut deltas);
        let (mut answer, mut freeform, mut is_taken) = (Answer::default(), Freeform::default(), true);
        for mut delta in deltas {
            fill_in(&mut delta, &self.model);
            freeform.take(self, delta, |delta| is_taken &= answer.take(&delta, ANSWER_BYTES_MAX));
        }
        if !is_taken {
            return Err(Failure::bad_answer("the provider's answer is too large to be translated"));
        }
        match answer.failure {
            Some(failure) => Err(failure),
            None => Ok(answers::whole(self, &answer).to_string().into_bytes()),
        }
    }

    /// Translates the body of an error answer. What is no JSON is not passed on: it may be a page of some proxy on the way.
    #[must_use]
    pub fn error(&self, status: StatusCode, body: &[u8]) -> Vec<u8> {
        match Json::read(body).ok().and_then(|body| Failure::read(&body)) {
            Some(failure) => self.client.error(status, &failure.code, &failure.message),
            None => self.client.error(status, "provider_error", &format!("the provider answered with status {status}")),
        }
    }
}

/// Fills in what a provider left out and every client needs.
fn fill_in(delta: &mut Delta, model_asked: &str) {
    let new = || uuid::Uuid::new_v4().simple().to_string();
    match delta {
        Delta::Begin { id, model } => {
            if id.is_empty() {
                *id = new();
            }
            if model.is_empty() {
                model_asked.clone_into(model);
            }
        }
        Delta::CallBegin { id, .. } if id.is_empty() => *id = format!("call_{}", new()),
        _ => {}
    }
}
