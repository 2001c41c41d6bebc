//! Which headers pass, both ways: those that are listed here, and no others.

use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT,
};
use http::{Request, Uri};
use percent_encoding::percent_decode_str;
use raworc_core::models::ProviderKind;

use crate::failure::Failure;
use crate::ports::{ProviderKey, Target};
use crate::scrub::Scrub;

/// Longest key of a program, in bytes; what is longer is no key.
const PROGRAM_KEY_BYTES_MAX: usize = 512;
/// The version of Anthropic's API for programs that name none.
const ANTHROPIC_VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");
const ANTHROPIC_VERSION_NAME: HeaderName = HeaderName::from_static("anthropic-version");

/// Whether a header of a program passes to a provider of the same dialect. Not the program's key, nothing about connections and
/// ways, nothing that belongs to a key (`openai-organization`), and no `idempotency-key`: containers share the provider's key, and
/// one could choose what another has chosen.
fn passes_to_provider(name: &HeaderName) -> bool {
    let name = name.as_str();
    let listed = ["accept", "user-agent", "anthropic-version", "anthropic-beta", "openai-beta", "x-goog-api-client"];
    listed.contains(&name) || name.starts_with("x-stainless-")
}

/// Whether a header of a provider passes to the program. Not those that say whose key it is.
fn passes_to_program(name: &HeaderName) -> bool {
    let name = name.as_str();
    let whose = ["openai-organization", "openai-project", "anthropic-organization-id", "anthropic-workspace-id"];
    let listed =
        ["request-id", "x-request-id", "retry-after", "retry-after-ms", "x-should-retry", "x-codex-turn-state"];
    let begins = ["ratelimit", "x-ratelimit-", "anthropic-", "openai-"];
    let is_listed = listed.contains(&name) || begins.iter().any(|begin| name.starts_with(begin));
    is_listed && !whose.contains(&name)
}

/// The headers of a request to a provider.
pub fn to_provider(program: &HeaderMap, target: &Target, is_same_dialect: bool) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    for (name, value) in program {
        if name == USER_AGENT || (is_same_dialect && passes_to_provider(name)) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // The gateway reads along: nothing is to be compressed.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    if target.kind == ProviderKind::Anthropic {
        headers.entry(ANTHROPIC_VERSION_NAME).or_insert(ANTHROPIC_VERSION);
    }
    if let Some(key) = &target.key {
        add_key(&mut headers, target, key)?;
    }
    Ok(headers)
}

fn add_key(headers: &mut HeaderMap, target: &Target, key: &ProviderKey) -> Result<(), Failure> {
    let sensitive = |text: &str| -> Result<HeaderValue, Failure> {
        let mut value = HeaderValue::from_str(text).map_err(|_| Failure::BadKey)?;
        value.set_sensitive(true);
        Ok(value)
    };
    let bearer = format!("Bearer {}", key.0);
    match target.kind {
        ProviderKind::Anthropic => headers.insert(HeaderName::from_static("x-api-key"), sensitive(&key.0)?),
        ProviderKind::Gemini => headers.insert(HeaderName::from_static("x-goog-api-key"), sensitive(&key.0)?),
        // Azure takes its keys under a name of its own.
        ProviderKind::Openai if is_azure(&target.base_url) => {
            headers.insert(HeaderName::from_static("api-key"), sensitive(&key.0)?)
        }
        ProviderKind::Openai => headers.insert(AUTHORIZATION, sensitive(&bearer)?),
        ProviderKind::Replay => None,
    };
    Ok(())
}

fn is_azure(base_url: &str) -> bool {
    let uri: Option<Uri> = base_url.parse().ok();
    uri.is_some_and(|uri| uri.host().is_some_and(|host| host.ends_with(".azure.com")))
}

/// The headers of an answer for the program.
pub fn to_program(provider: &HeaderMap, scrub: &Scrub, is_same_dialect: bool) -> HeaderMap {
    let passes = |name: &HeaderName| passes_to_program(name) || (is_same_dialect && *name == CONTENT_TYPE);
    let passing = provider.iter().filter(|(name, value)| passes(name) && !scrub.is_in(value));
    passing.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The key that a program sends.
pub fn program_key<B>(request: &Request<B>) -> Option<String> {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let bearer = header("authorization").and_then(|text| {
        let (scheme, key) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    });
    let in_query = || {
        let pairs = request.uri().query()?.split('&');
        let key = pairs.filter_map(|pair| pair.strip_prefix("key=")).next()?;
        Some(percent_decode_str(key).decode_utf8().ok()?.into_owned())
    };
    let in_header = bearer.or_else(|| header("x-api-key")).or_else(|| header("x-goog-api-key"));
    let key = in_header.map(str::to_owned).or_else(in_query)?;
    (!key.is_empty() && key.len() <= PROGRAM_KEY_BYTES_MAX).then_some(key)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn target(kind: ProviderKind, base_url: &str) -> Target {
        Target {
            provider: "p".into(),
            kind,
            base_url: base_url.into(),
            key: Some(ProviderKey("sk-real-key".into())),
            model: "m".into(),
            max_output_tokens: None,
            timeout: Duration::from_secs(1),
        }
    }

    fn map(headers: &[(&str, &str)]) -> HeaderMap {
        headers.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_what_is_listed_passes_to_the_provider() {
        let program = map(&[
            ("host", "localhost"),
            ("authorization", "Bearer worthless"),
            ("x-api-key", "worthless"),
            ("x-goog-api-key", "worthless"),
            ("cookie", "a=b"),
            ("x-forwarded-for", "10.0.0.1"),
            ("forwarded", "for=10.0.0.1"),
            ("connection", "x-stainless-lang"),
            ("transfer-encoding", "chunked"),
            ("openai-organization", "other"),
            ("idempotency-key", "1"),
            ("accept-encoding", "gzip, br"),
            ("anthropic-beta", "one,two"),
            ("anthropic-beta", "three"),
            ("x-stainless-lang", "python"),
            ("user-agent", "agent/1"),
        ]);
        for (kind, base_url, name, value) in [
            (ProviderKind::Openai, "https://a.example/v1", "authorization", "Bearer sk-real-key"),
            (ProviderKind::Openai, concat!("https:", "//a.openai.azure.com/openai/v1"), "api-key", "sk-real-key"),
            (ProviderKind::Anthropic, "https://a.example", "x-api-key", "sk-real-key"),
            (ProviderKind::Gemini, "https://a.example", "x-goog-api-key", "sk-real-key"),
        ] {
            let headers = to_provider(&program, &target(kind, base_url), true).unwrap();
            let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
            names.sort_unstable();
            let mut expected = vec![
                "accept",
                "accept-encoding",
                "anthropic-beta",
                "content-type",
                "user-agent",
                "x-stainless-lang",
                name,
            ];
            expected.extend((kind == ProviderKind::Anthropic).then_some("anthropic-version"));
            expected.sort_unstable();
            assert_eq!(names, expected);
            assert_eq!(headers[name], value);
            assert!(headers[name].is_sensitive());
            assert_eq!(headers["accept-encoding"], "identity");
            assert_eq!(headers.get_all("anthropic-beta").iter().count(), 2);
            assert!(!format!("{headers:?}").contains("sk-real-key"));
        }
    }

    #[test]
    fn only_what_is_listed_passes_to_the_program() {
        let provider = map(&[
            ("content-type", "application/json"),
            ("set-cookie", "a=b"),
            ("server", "x"),
            ("openai-organization", "acme"),
            ("anthropic-organization-id", "acme"),
            ("openai-processing-ms", "12"),
            ("anthropic-ratelimit-tokens-remaining", "9"),
            ("x-ratelimit-limit-requests", "9"),
            ("x-request-id", "sk-real-key"),
            ("request-id", "req_1"),
            ("location", "https://b.example"),
        ]);
        let scrub = Scrub::new(Some(&ProviderKey("sk-real-key".into())));
        let names = |is_same| {
            let headers = to_program(&provider, &scrub, is_same);
            let mut names: Vec<String> = headers.keys().map(|name| name.as_str().to_owned()).collect();
            names.sort_unstable();
            names
        };
        let expected = [
            "anthropic-ratelimit-tokens-remaining",
            "openai-processing-ms",
            "request-id",
            "x-ratelimit-limit-requests",
        ];
        assert_eq!(names(false), expected);
        assert!(names(true).contains(&"content-type".to_owned()));
    }

    #[test]
    fn programs_send_their_key_in_four_ways() {
        let key = |uri: &str, headers: &[(&str, &str)]| {
            let mut request = Request::new(());
            *request.uri_mut() = uri.parse().unwrap();
            *request.headers_mut() = map(headers);
            program_key(&request)
        };
        assert_eq!(key("/", &[("authorization", "bearer k1")]), Some("k1".into()));
        assert_eq!(key("/", &[("x-api-key", "k2")]), Some("k2".into()));
        assert_eq!(key("/", &[("x-goog-api-key", "k3")]), Some("k3".into()));
        assert_eq!(key("/?alt=sse&key=k%204", &[]), Some("k 4".into()));
        assert_eq!(key("/", &[("authorization", "Basic eA==")]), None);
        assert_eq!(key("/", &[]), None);
        assert_eq!(key("/", &[("x-api-key", &"k".repeat(513))]), None);
    }
}
