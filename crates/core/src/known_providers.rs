//! Providers that many people use: where they are, and some of their models. The only file that names their addresses.

use crate::models::ProviderKind;

/// A provider that needs no more than a key.
#[derive(Clone, Copy, Debug)]
pub struct KnownProvider {
    /// What it is usually called.
    pub name: &'static str,
    /// What it speaks.
    pub kind: ProviderKind,
    /// Where it is.
    pub base_url: &'static str,
    /// Whether it answers nobody without a key.
    pub needs_key: bool,
    /// Some of its models; none: it takes every name. Without prices, which change, and differ from customer to customer.
    pub models: &'static [KnownModel],
}

/// A model of a known provider.
#[derive(Clone, Copy, Debug)]
pub struct KnownModel {
    /// Its name there.
    pub id: &'static str,
    /// Other names for it here.
    pub aliases: &'static [&'static str],
    /// Tokens of a request and its answer together, at most.
    pub context_tokens: u64,
    /// Tokens of an answer, at most.
    pub max_output_tokens: u64,
}

/// All of them; the first one of a kind is where that kind is at home.
pub const KNOWN_PROVIDERS: &[KnownProvider] = &[
    KnownProvider {
        name: "openai",
        kind: ProviderKind::Openai,
        base_url: "https://api.openai.com/v1",
        needs_key: true,
        models: &[
            model("gpt-4o", &["gpt-4"], 128_000, 16_384),
            model("gpt-4o-mini", &[], 128_000, 16_384),
            model("gpt-4.1", &[], 1_047_576, 32_768),
            model("gpt-4.1-mini", &[], 1_047_576, 32_768),
            model("gpt-4.1-nano", &[], 1_047_576, 32_768),
            model("o3", &[], 200_000, 100_000),
            model("o4-mini", &[], 200_000, 100_000),
            model("gpt-5", &[], 400_000, 128_000),
            model("gpt-5-mini", &[], 400_000, 128_000),
            model("gpt-5-nano", &[], 400_000, 128_000),
        ],
    },
    KnownProvider {
        name: "anthropic",
        kind: ProviderKind::Anthropic,
        base_url: "https://api.anthropic.com",
        needs_key: true,
        models: &[
            model("claude-opus-4-1", &["claude-opus", "opus"], 200_000, 32_000),
            model("claude-sonnet-4-5", &["claude-sonnet", "sonnet"], 200_000, 64_000),
            model("claude-haiku-4-5", &["claude-haiku", "haiku"], 200_000, 64_000),
        ],
    },
    KnownProvider {
        name: "gemini",
        kind: ProviderKind::Gemini,
        base_url: "https://generativelanguage.googleapis.com",
        needs_key: true,
        models: &[
            model("gemini-2.5-pro", &["gemini-pro"], 1_048_576, 65_536),
            model("gemini-2.5-flash", &["gemini-flash"], 1_048_576, 65_536),
            model("gemini-2.5-flash-lite", &["gemini-flash-lite"], 1_048_576, 65_536),
        ],
    },
    KnownProvider {
        name: "openrouter",
        kind: ProviderKind::Openai,
        base_url: "https://openrouter.ai/api/v1",
        needs_key: true,
        models: &[],
    },
    KnownProvider {
        name: "ollama",
        kind: ProviderKind::Openai,
        base_url: "http://127.0.0.1:11434/v1",
        needs_key: false,
        models: &[],
    },
];

const fn model(
    id: &'static str,
    aliases: &'static [&'static str],
    context_tokens: u64,
    max_output_tokens: u64,
) -> KnownModel {
    KnownModel { id, aliases, context_tokens, max_output_tokens }
}

/// The provider that is usually called this.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static KnownProvider> {
    KNOWN_PROVIDERS.iter().find(|known| known.name == name)
}

/// Where providers of this kind are that name no URL; none where there is no such place.
#[must_use]
pub fn base_url(kind: ProviderKind) -> Option<&'static str> {
    KNOWN_PROVIDERS.iter().find(|known| known.kind == kind).map(|known| known.base_url)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::limits::MODEL_TOKENS;
    use crate::names::{check_handle, check_model};

    #[test]
    fn what_is_known_may_be_configured() {
        let mut named = BTreeSet::new();
        for provider in KNOWN_PROVIDERS {
            assert_eq!(check_handle(provider.name), Ok(()));
            assert!(named.insert(provider.name) && !provider.base_url.ends_with('/'), "{}", provider.name);
            for model in provider.models {
                for name in model.aliases.iter().chain([&model.id]) {
                    assert_eq!(check_model(name), Ok(()));
                    // A short name means one model, whichever of these are configured.
                    assert!(named.insert(name), "{name}");
                }
                assert!(
                    MODEL_TOKENS.contains(&model.context_tokens) && MODEL_TOKENS.contains(&model.max_output_tokens)
                );
            }
        }
    }

    #[test]
    fn kinds_are_at_home_where_their_makers_are() {
        for kind in [ProviderKind::Openai, ProviderKind::Anthropic, ProviderKind::Gemini] {
            let home = by_name(serde_json::to_value(kind).unwrap().as_str().unwrap());
            assert_eq!(base_url(kind), home.map(|home| home.base_url));
        }
        assert_eq!(base_url(ProviderKind::Replay), None);
    }
}
