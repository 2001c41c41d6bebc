//! Authentication at registries (RFC 7235 and 7617; distribution project, "Token Authentication").

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// A challenge in `WWW-Authenticate`.
#[derive(Debug, PartialEq, Eq)]
pub enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token, issued by `realm`.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The answer of a token server.
#[derive(Deserialize)]
pub struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Token {
    /// The header for a token.
    pub fn header(self) -> Option<String> {
        self.token.or(self.access_token).map(|token| format!("Bearer {token}"))
    }
}

/// The header for user and password.
pub fn basic((user, password): &(String, String)) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// The preferred challenge: tokens over passwords.
pub fn challenge<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut found = None;
    for header in headers {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("bearer") {
            let parameters = parameters(rest);
            let get = |name: &str| {
                parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
            };
            if let Some(realm) = get("realm") {
                return Some(Challenge::Bearer { realm, service: get("service"), scope: get("scope") });
            }
        } else if scheme.eq_ignore_ascii_case("basic") {
            found = Some(Challenge::Basic);
        }
    }
    found
}

/// Parses `key=value` or `key="value"`, separated by commas.
fn parameters(mut text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    while let Some((key, rest)) = text.split_once('=') {
        let mut value = String::new();
        let mut characters = rest.char_indices();
        let mut end = rest.len();
        if rest.starts_with('"') {
            characters.next();
            while let Some((at, character)) = characters.next() {
                match character {
                    '"' => {
                        end = at + 1;
                        break;
                    }
                    '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
                    other => value.push(other),
                }
            }
        } else {
            end = rest.find(',').unwrap_or(rest.len());
            value.push_str(rest[..end].trim());
        }
        found.push((key.trim_matches([' ', ',']).to_owned(), value));
        text = &rest[end..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_understood() {
        let bearer = r#"Bearer realm="https://auth.test/token?a=b,c",service=x, scope="repository:a:pull,push" "#;
        let expected = Challenge::Bearer {
            realm: "https://auth.test/token?a=b,c".into(),
            service: Some("x".into()),
            scope: Some("repository:a:pull,push".into()),
        };
        assert_eq!(challenge(["Basic realm=\"x\"", bearer].into_iter()), Some(expected));
        assert_eq!(challenge(["basic"].into_iter()), Some(Challenge::Basic));
        for nothing in ["", "Bearer", "Bearer service=x", "Digest realm=x", "Bearer realm"] {
            assert_eq!(challenge([nothing].into_iter()), None, "{nothing}");
        }
        assert_eq!(parameters(r#"a="\"",b="unclosed"#).len(), 2);
    }
}
