//! Credentials for registries, in the file that `docker login` and `skopeo login` write
//! (containers-auth.json(5); what it says of helpers is not followed).

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use raworc_api::problem::Code;
use serde::Deserialize;

use crate::error::Failure;

/// Whom to be at which registry.
#[derive(Debug, Default, Deserialize)]
pub struct Credentials {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Debug, Default, Deserialize)]
struct Entry {
    /// `USER:PASSWORD` in base64.
    #[serde(default)]
    auth: String,
}

impl Credentials {
    /// Reads the file; one that is not there says nothing.
    ///
    /// # Errors
    /// Where it is there and cannot be read.
    pub fn read(file: &Path) -> Result<Self, Failure> {
        let unreadable = |error: &dyn std::fmt::Display| {
            tracing::error!(file = %file.display(), %error, "the file of credentials cannot be read");
            Failure::new(Code::Internal, "the server's file of credentials cannot be read; its log says why")
        };
        match std::fs::read(file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| unreadable(&error)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(unreadable(&error)),
        }
    }

    /// The user and password for a registry.
    pub fn of(&self, host: &str) -> Option<(String, String)> {
        // Docker writes some of its keys as URLs.
        let bare = |key: &str| {
            let key = key.trim_start_matches("https://").trim_start_matches("http://");
            key.split('/').next().unwrap_or_default().to_owned()
        };
        let (_, entry) = self.auths.iter().find(|(key, _)| bare(key) == host)?;
        let text = String::from_utf8(STANDARD.decode(&entry.auth).ok()?).ok()?;
        let (user, password) = text.split_once(':')?;
        Some((user.to_owned(), password.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_hosts_however_they_are_written() {
        let file = r#"{"auths": {"https://a.test/v1/": {"auth": "bWU6YTpi"}, "b.test:5000": {"auth": "eW91Og=="},
                       "c.test": {"auth": "?"}}, "credsStore": "x"}"#;
        let credentials: Credentials = serde_json::from_str(file).unwrap();
        let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(credentials.of("a.test"), pair("me", "a:b"));
        assert_eq!(credentials.of("b.test:5000"), pair("you", ""));
        for none in ["b.test", "c.test", "d.test"] {
            assert_eq!(credentials.of(none), None, "{none}");
        }
    }
}
