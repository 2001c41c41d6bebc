//! Secrets: what they are for, and which headers and hosts may be named.

use crate::limits::{NAME_CHARACTERS_MAX, SECRET_FORMAT_BYTES_MAX};
use crate::names;

/// Where a secret goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Into a header of requests to these hosts, which the gateway adds. It never is in a container.
    Hosts {
        /// Names or addresses in lower case, each with a port or without.
        hosts: Vec<String>,
        /// The name of the header.
        header: String,
        /// Its value, with `{}` in the secret's place.
        format: String,
    },
    /// Into an environment variable in the container, where all that runs there can read it.
    Env(String),
}

/// The header that a secret goes into, unless another one is named.
pub const HEADER_DEFAULT: &str = "Authorization";
/// The value of that header.
pub const FORMAT_DEFAULT: &str = "Bearer {}";

/// Headers that say where a request goes, where it ends, or how it is encoded: a secret in one of them would change the request.
const FRAMING: [&str; 12] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];

/// A host that a secret is for: a name or an IPv4 address, with a port or without; no pattern.
pub fn check_host(text: &str) -> Result<(), String> {
    let (name, port) = text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(is_label) {
        return Err("must be a host's name in lower case, such as api.example.org or api.example.org:8443".into());
    }
    let is_port =
        |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|n| n > 0);
    if port.is_some_and(|port| !is_port(port)) {
        return Err("must have a port of 1 to 65535 after the ':'".into());
    }
    Ok(())
}

/// A header that a secret may be in.
pub fn check_header(text: &str) -> Result<(), String> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.is_empty() || text.len() > NAME_CHARACTERS_MAX || !text.bytes().all(is_token) {
        return Err(format!("must be the name of a header, at most {NAME_CHARACTERS_MAX} letters, digits and '-'"));
    }
    let lower = text.to_ascii_lowercase();
    if FRAMING.contains(&lower.as_str()) || lower.starts_with("proxy-") {
        return Err(format!("must not be {text}: it says how the request is sent"));
    }
    Ok(())
}

/// The value of a header with a secret in it: printable ASCII with `{}` once.
pub fn check_format(text: &str) -> Result<(), String> {
    let is_shown = text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    if text.len() > SECRET_FORMAT_BYTES_MAX || !is_shown || text.matches("{}").count() != 1 {
        return Err(format!("must be at most {SECRET_FORMAT_BYTES_MAX} printable ASCII characters with {{}} once"));
    }
    Ok(())
}

/// An environment variable that a secret may be in.
pub fn check_env(name: &str) -> Result<(), String> {
    if name.len() > NAME_CHARACTERS_MAX || !names::is_variable(name) {
        return Err(format!(
            "must be a variable's name: at most {NAME_CHARACTERS_MAX} printable ASCII characters but '='"
        ));
    }
    if name.starts_with("RAWORC_") {
        return Err("must not begin with RAWORC_: these names belong to Raworc".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_secret_may_be_for() {
        type Check = fn(&str) -> Result<(), String>;
        let table: [(Check, &[&str], &[&str]); 4] = [
            (
                check_host,
                &["api.example.org", "localhost", "10.0.0.1:8080", "a-b.test:1"],
                &[
                    "",
                    "*",
                    "*.example.org",
                    "Example.org",
                    "a..b",
                    "-a",
                    "a b",
                    "http://a",
                    "a/b",
                    "a:",
                    "a:0",
                    "a:+1",
                    "a:65536",
                    "a@b",
                ],
            ),
            (
                check_header,
                &["Authorization", "x-api-key", "PRIVATE-TOKEN"],
                &["", "Host", "content-length", "Transfer-Encoding", "Proxy-Authorization", "a b", "a:", "a\r\nb", "ä"],
            ),
            (check_format, &["{}", "Bearer {}", "token {}!"], &["", "Bearer", "{} {}", "{}\r\nx: y", "é{}"]),
            (check_env, &["GITHUB_TOKEN", "a.b"], &["", "A=B", "A B", "RAWORC_X"]),
        ];
        for (check, right, wrong) in table {
            right.iter().for_each(|text| assert_eq!(check(text), Ok(()), "{text:?}"));
            wrong.iter().for_each(|text| assert!(check(text).is_err(), "{text:?}"));
        }
        assert!(check_header(HEADER_DEFAULT).is_ok() && check_format(FORMAT_DEFAULT).is_ok());
    }
}
