//! Models and their providers: what they are called, which of them a name means, and what a call costs.

use serde::{Deserialize, Serialize};

/// The API that a provider speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProviderKind {
    /// Chat completions and responses, as OpenAI defines them; vLLM, Ollama, llama.cpp and others speak it, too.
    Openai,
    /// Messages, as Anthropic defines them.
    Anthropic,
    /// `generateContent`, as Google defines it for Gemini.
    Gemini,
    /// Answers from recorded files.
    Replay,
}

/// One model of a provider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// Its name at the provider.
    pub id: String,
    /// Other names that it has here.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Tokens of a request and its answer together, at most.
    #[serde(default)]
    pub context_tokens: Option<u64>,
    /// Tokens of an answer, at most.
    #[serde(default)]
    pub max_output_tokens: Option<u64>,
    /// Absent: its calls count as free.
    #[serde(default)]
    pub price: Option<Price>,
}

/// The price of tokens, in millionths of the currency for a million tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// Of tokens that the model reads.
    pub input_micros_per_million: u64,
    /// Of tokens that the model writes.
    pub output_micros_per_million: u64,
}

/// The tokens of one call, as the provider counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUsage {
    /// Read by the model, those from its cache included.
    pub input_tokens: u64,
    /// Written by the model, its reasoning included.
    pub output_tokens: u64,
    /// Part of `input_tokens` that the provider had in its cache.
    pub cached_tokens: u64,
}

/// How a call of a model ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallEnd {
    /// The whole answer was passed on, whatever its status.
    Complete,
    /// The provider broke off, or sent what is no answer, after the first byte had been passed on.
    Cut,
    /// No attempt brought an answer.
    Failed,
    /// The program inside went away.
    ClientGone,
    /// It was ended, for example because its turn was cancelled.
    Cancelled,
}

impl Price {
    /// The cost of a call, in millionths of the currency, rounded up.
    #[must_use]
    pub fn cost_micros(self, usage: TokenUsage) -> u64 {
        let part = |tokens: u64, price: u64| u128::from(tokens) * u128::from(price);
        let total = part(usage.input_tokens, self.input_micros_per_million)
            + part(usage.output_tokens, self.output_micros_per_million);
        u64::try_from(total.div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }
}

/// The models of one provider.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// The provider's name.
    pub provider: &'a str,
    /// What it speaks.
    pub kind: ProviderKind,
    /// Its models.
    pub models: &'a [Model],
}

/// A model that a name means: indices into the offers, and into the models of that offer. A replay provider has a model for every
/// recording, without a list of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice<'n> {
    /// Which provider.
    pub offer: usize,
    /// Which of its models; none where the provider lists none and takes every name.
    pub model: Option<usize>,
    /// The name for the provider.
    pub id: &'n str,
}

/// Why a name means no model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoModel {
    /// No provider has it.
    #[error("no provider has a model {0:?}")]
    Unknown(String),
    /// Several providers have it.
    #[error("several providers have a model {name:?}: write one of {}", .candidates.join(", "))]
    Ambiguous {
        /// The name.
        name: String,
        /// What to write in its place.
        candidates: Vec<String>,
    },
}

/// Which model `name` means: `PROVIDER/MODEL`, or an id or alias that exactly one provider has. A provider that lists no models takes
/// every `PROVIDER/MODEL`.
///
/// # Errors
/// Where no provider, or more than one, has it.
pub fn resolve<'n>(name: &'n str, offers: &[Offer<'_>]) -> Result<Choice<'n>, NoModel> {
    let is_called = |model: &Model, id: &str| model.id == id || model.aliases.iter().any(|alias| alias == id);
    if let Some((provider, id)) = name.split_once('/')
        && let Some((offer, found)) = offers.iter().enumerate().find(|(_, offer)| offer.provider == provider)
    {
        let model = found.models.iter().position(|model| is_called(model, id));
        if model.is_some() || (found.models.is_empty() && !id.is_empty()) {
            return Ok(Choice { offer, model, id });
        }
    }
    let mut found = offers.iter().enumerate().filter_map(|(offer, found)| {
        let model = found.models.iter().position(|model| is_called(model, name))?;
        Some(Choice { offer, model: Some(model), id: name })
    });
    let first = found.next().ok_or_else(|| NoModel::Unknown(name.to_owned()))?;
    let mut candidates: Vec<String> = found.map(|choice| format!("{}/{name}", offers[choice.offer].provider)).collect();
    if candidates.is_empty() {
        return Ok(first);
    }
    candidates.insert(0, format!("{}/{name}", offers[first.offer].provider));
    Err(NoModel::Ambiguous { name: name.to_owned(), candidates })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(id: &str, aliases: &[&str]) -> Model {
        let aliases = aliases.iter().map(|alias| (*alias).to_owned()).collect();
        Model { id: id.to_owned(), aliases, context_tokens: None, max_output_tokens: None, price: None }
    }

    #[test]
    fn names_of_models() {
        let big = [model("gpt-4o", &["gpt-4"]), model("vendor/small", &[])];
        let other = [model("gpt-4o", &[]), model("claude", &["smart"])];
        let offers = [
            Offer { provider: "openai", kind: ProviderKind::Openai, models: &big },
            Offer { provider: "other", kind: ProviderKind::Anthropic, models: &other },
            Offer { provider: "local", kind: ProviderKind::Openai, models: &[] },
        ];
        for (name, expected) in [
            ("gpt-4", Ok((0, Some(0), "gpt-4"))),
            ("smart", Ok((1, Some(1), "smart"))),
            ("openai/gpt-4o", Ok((0, Some(0), "gpt-4o"))),
            ("other/gpt-4o", Ok((1, Some(0), "gpt-4o"))),
            // A model's own name may contain a slash.
            ("vendor/small", Ok((0, Some(1), "vendor/small"))),
            ("openai/vendor/small", Ok((0, Some(1), "vendor/small"))),
            ("local/whatever:7b", Ok((2, None, "whatever:7b"))),
            ("local/", Err("no provider has a model \"local/\"")),
            ("openai/none", Err("no provider has a model \"openai/none\"")),
            ("none", Err("no provider has a model \"none\"")),
            ("", Err("no provider has a model \"\"")),
            ("gpt-4o", Err("several providers have a model \"gpt-4o\": write one of openai/gpt-4o, other/gpt-4o")),
        ] {
            let found = resolve(name, &offers).map(|choice| (choice.offer, choice.model, choice.id));
            assert_eq!(found.map_err(|error| error.to_string()), expected.map_err(str::to_owned), "{name:?}");
        }
    }

    #[test]
    fn costs() {
        let price = Price { input_micros_per_million: 2_500_000, output_micros_per_million: 10_000_000 };
        for (input_tokens, output_tokens, micros) in [(0, 0, 0), (1, 0, 3), (1_000_000, 0, 2_500_000), (100, 10, 350)] {
            let usage = TokenUsage { input_tokens, output_tokens, cached_tokens: 0 };
            assert_eq!(price.cost_micros(usage), micros, "{usage:?}");
        }
        let all = TokenUsage { input_tokens: u64::MAX, output_tokens: u64::MAX, cached_tokens: 0 };
        assert_eq!(
            Price { input_micros_per_million: u64::MAX, output_micros_per_million: 1 }.cost_micros(all),
            u64::MAX
        );
    }
}
