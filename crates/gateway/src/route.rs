//! What a request asks for.
//!
//! Clients differ in what they append to a base URL: `/v1` may be there, missing, or there twice, and slashes may be doubled.

use std::net::IpAddr;

use http::{HeaderMap, Method, StatusCode, Uri};
use percent_encoding::percent_decode_str;

use crate::dialect::Dialect;
use crate::failure::Problem;
use crate::ports::Operation;

/// What a request asks for.
#[derive(Clone, Debug)]
pub enum Route {
    /// Whether anyone is there.
    Ping,
    /// The models, or one of them.
    Models {
        /// In whose form; responses has the one of chat completions.
        form: Dialect,
        /// Which one.
        id: Option<String>,
    },
    /// A call of a model.
    Call(CallRoute),
    /// Nothing that is here.
    Refused {
        /// In whose form to say so.
        dialect: Dialect,
        /// What to say.
        problem: Problem,
    },
}

/// A call of a model, as far as the head of its request tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallRoute {
    pub dialect: Dialect,
    pub operation: Operation,
    /// For Gemini, what is in the path and not in the body.
    pub gemini: Option<GeminiPath>,
    /// What of the query passes to a provider of the same dialect.
    pub query: Option<&'static str>,
}

/// `models/MODEL:ACTION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeminiPath {
    pub model: String,
    pub action: &'static str,
}

const GEMINI_ACTIONS: [(&str, Operation); 3] = [
    ("generateContent", Operation::Generate),
    ("streamGenerateContent", Operation::Generate),
    ("countTokens", Operation::CountTokens),
];

/// Reads the head of a request.
pub fn of(method: &Method, uri: &Uri, headers: &HeaderMap) -> Route {
    let dialect = dialect_of(uri.path(), headers);
    if let Some(problem) = elsewhere(method, uri) {
        return Route::Refused { dialect, problem };
    }
    let all: Vec<&str> = uri.path().split('/').filter(|segment| !segment.is_empty()).collect();
    let is_beta = all.first() == Some(&"v1beta");
    let path = match all.as_slice() {
        ["v1", "v1", rest @ ..] | ["v1" | "v1beta", rest @ ..] => rest,
        rest => rest,
    };
    let found = match path {
        [] if all.is_empty() => only(&[Method::GET, Method::HEAD], method, Route::Ping),
        ["models"] => only(&[Method::GET, Method::HEAD], method, Route::Models { form: dialect, id: None }),
        ["models", rest @ ..] => match gemini_path(rest) {
            Some((gemini, operation)) => {
                let query = query_value(uri, "alt").filter(|alt| *alt == "sse").map(|_| "alt=sse");
                let call = CallRoute { dialect: Dialect::Gemini, operation, gemini: Some(gemini), query };
                return routed(Dialect::Gemini, only(&[Method::POST], method, Route::Call(call)));
            }
            None => {
                let id = Some(decoded(&rest.join("/")));
                only(&[Method::GET, Method::HEAD], method, Route::Models { form: dialect, id })
            }
        },
        ["chat", "completions"] if !is_beta => call(method, Dialect::ChatCompletions, Operation::Generate, None),
        ["responses"] if !is_beta => call(method, Dialect::Responses, Operation::Generate, None),
        ["messages"] if !is_beta => call(method, Dialect::Messages, Operation::Generate, beta(uri)),
        ["messages", "count_tokens"] if !is_beta => call(method, Dialect::Messages, Operation::CountTokens, beta(uri)),
        _ => Err(not_here()),
    };
    routed(dialect, found)
}

fn routed(dialect: Dialect, found: Result<Route, Problem>) -> Route {
    found.unwrap_or_else(|problem| Route::Refused { dialect, problem })
}

fn call(
    method: &Method,
    dialect: Dialect,
    operation: Operation,
    query: Option<&'static str>,
) -> Result<Route, Problem> {
    only(&[Method::POST], method, Route::Call(CallRoute { dialect, operation, gemini: None, query }))
}

fn only(allowed: &[Method], method: &Method, route: Route) -> Result<Route, Problem> {
    if allowed.contains(method) {
        return Ok(route);
    }
    let message = format!("this path takes {} only", allowed[0]);
    Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message))
}

/// Why a request is not for the gateway's own endpoints. Requests that a program sends as to a proxy arrive here, too: the proxy for
/// what is outside takes its place here.
fn elsewhere(method: &Method, uri: &Uri) -> Option<Problem> {
    if *method == Method::CONNECT {
        let message = "connections to other hosts are not available here: this endpoint serves models only";
        return Some(Problem::new(StatusCode::FORBIDDEN, "egress_unavailable", message));
    }
    let authority = uri.authority()?;
    if is_loopback(authority.host()) && uri.scheme_str() == Some("http") && !authority.as_str().contains('@') {
        return None;
    }
    let message = "requests to other hosts are not available here: this endpoint serves models only";
    Some(Problem::new(StatusCode::FORBIDDEN, "egress_unavailable", message))
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn not_here() -> Problem {
    let message = "there is nothing at this path; the gateway serves /v1/chat/completions, /v1/responses, /v1/messages, \
                   /v1/messages/count_tokens, /v1/models and /v1beta/models";
    Problem::new(StatusCode::NOT_FOUND, "not_found", message)
}

/// The dialect of whoever asks, by the path, or else by the headers that only its clients send.
fn dialect_of(path: &str, headers: &HeaderMap) -> Dialect {
    let mut segments = path.split('/').filter(|segment| !segment.is_empty()).skip_while(|segment| *segment == "v1");
    match segments.next() {
        Some("v1beta") => Dialect::Gemini,
        Some("responses") => Dialect::Responses,
        Some("messages") => Dialect::Messages,
        Some("chat") => Dialect::ChatCompletions,
        _ if headers.contains_key("anthropic-version") => Dialect::Messages,
        _ if headers.contains_key("x-goog-api-key") => Dialect::Gemini,
        _ => Dialect::ChatCompletions,
    }
}

fn gemini_path(rest: &[&str]) -> Option<(GeminiPath, Operation)> {
    let joined = rest.join("/");
    let (model, action) = joined.rsplit_once(':')?;
    let (action, operation) = GEMINI_ACTIONS.into_iter().find(|(name, _)| *name == action)?;
    (!model.is_empty()).then(|| (GeminiPath { model: decoded(model), action }, operation))
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn query_value<'u>(uri: &'u Uri, name: &str) -> Option<&'u str> {
    let mut pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

fn beta(uri: &Uri) -> Option<&'static str> {
    (query_value(uri, "beta") == Some("true")).then_some("beta=true")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(method: Method, uri: &str, headers: &[(&str, &str)]) -> String {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap()))
            .collect();
        match of(&method, &uri.parse().unwrap(), &headers) {
            Route::Ping => "ping".into(),
            Route::Models { form, id } => format!("models {form:?} {}", id.unwrap_or_default()),
            Route::Call(CallRoute { dialect, operation, gemini, query }) => {
                let gemini = gemini.map(|path| format!(" {} {}", path.model, path.action)).unwrap_or_default();
                format!("{dialect:?} {operation:?}{gemini} {}", query.unwrap_or_default())
            }
            Route::Refused { dialect, problem } => format!("{dialect:?} {}", problem.status.as_u16()),
        }
    }

    #[test]
    fn paths() {
        let (get, post) = (Method::GET, Method::POST);
        for (method, uri, expected) in [
            (&get, "/", "ping"),
            (&Method::HEAD, "/", "ping"),
            (&post, "/", "ChatCompletions 405"),
            (&post, "/v1/chat/completions", "ChatCompletions Generate "),
            (&post, "/chat/completions", "ChatCompletions Generate "),
            (&post, "//v1//chat/completions/", "ChatCompletions Generate "),
            (&post, "/v1/responses", "Responses Generate "),
            (&post, "/responses", "Responses Generate "),
            (&post, "/v1/messages?beta=true&key=x", "Messages Generate beta=true"),
            (&post, "/v1/messages?beta=1", "Messages Generate "),
            (&post, "/v1/v1/messages", "Messages Generate "),
            (&post, "/messages", "Messages Generate "),
            (&post, "/v1/messages/count_tokens", "Messages CountTokens "),
            (&get, "/v1/models", "models ChatCompletions "),
            (&get, "/models", "models ChatCompletions "),
            (&get, "/v1/models/openai%2Fgpt-4", "models ChatCompletions openai/gpt-4"),
            (&get, "/v1/models/openai/gpt-4", "models ChatCompletions openai/gpt-4"),
            (&get, "/v1beta/models", "models Gemini "),
            (&get, "/v1beta/models/g", "models Gemini g"),
            (&post, "/v1beta/models/g:generateContent?key=k", "Gemini Generate g generateContent "),
            (
                &post,
                "/v1beta/models/g:streamGenerateContent?alt=sse",
                "Gemini Generate g streamGenerateContent alt=sse",
            ),
            (&post, "/v1/models/g:countTokens", "Gemini CountTokens g countTokens "),
            (&post, "/v1beta/models/g:embedContent", "Gemini 405"),
            (&get, "/v1beta/models/g:generateContent", "Gemini 405"),
            (&post, "/v1beta/messages", "Gemini 404"),
            (&get, "/v1/messages", "Messages 405"),
            (&get, "/v1/messages/batches", "Messages 404"),
            (&get, "/v1/responses/resp_1", "Responses 404"),
            (&post, "/v1/embeddings", "ChatCompletions 404"),
            (&get, "/v1", "ChatCompletions 404"),
            (&get, "/etc/passwd", "ChatCompletions 404"),
            (&get, "/v1/../v1/models", "ChatCompletions 404"),
        ] {
            assert_eq!(told(method.clone(), uri, &[]), expected, "{method} {uri}");
        }
        let anthropic = [("anthropic-version", "2023-06-01")];
        assert_eq!(told(Method::GET, "/v1/models", &anthropic), "models Messages ");
        assert_eq!(told(Method::GET, "/api/hello", &anthropic), "Messages 404");
    }

    #[test]
    fn other_hosts_are_not_served() {
        for (method, uri, expected) in [
            (Method::GET, "http://127.0.0.1:8099/v1/models", "models ChatCompletions "),
            (Method::GET, "http://LOCALHOST/v1/models", "models ChatCompletions "),
            (Method::GET, "http://[::1]:80/v1/models", "models ChatCompletions "),
            (Method::GET, "https://127.0.0.1/v1/models", "ChatCompletions 403"),
            (Method::GET, "http://user@127.0.0.1/v1/models", "ChatCompletions 403"),
            (Method::GET, concat!("http:", "//169.254.169.254/v1/models"), "ChatCompletions 403"),
            (Method::GET, "http://localhost.example/", "ChatCompletions 403"),
            (Method::POST, "http://api.example/v1/messages", "Messages 403"),
            (Method::CONNECT, "api.example:443", "ChatCompletions 403"),
            (Method::CONNECT, "127.0.0.1:80", "ChatCompletions 403"),
        ] {
            assert_eq!(told(method.clone(), uri, &[]), expected, "{method} {uri}");
        }
    }
}
