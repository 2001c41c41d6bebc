//! Credentials for registries, in the file that `docker login` and `skopeo login` write
//! (containers-auth.json(5); what it says of helpers is not followed).

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

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
    /// Reads the file.
    ///
    /// # Errors
    /// Why it cannot be used, in words for who runs the server.
    pub fn read(file: &Path) -> Result<Self, String> {
        let told = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        let bytes = std::fs::read(file).map_err(|error| told(&error))?;
        serde_json::from_slice(&bytes).map_err(|error| told(&error))
    }

    /// The user and password for a repository: the entry that names it, or else the nearest part of its path, or its host.
    pub fn of(&self, host: &str, repository: &str) -> Option<(String, String)> {
        let path = format!("{host}/{repository}");
        let is_for = |key: &str| path.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let entries = self.auths.iter().map(|(key, entry)| (bare(key), entry)).filter(|(key, _)| is_for(key));
        let (_, entry) = entries.max_by_key(|(key, _)| key.len())?;
        let text = String::from_utf8(STANDARD.decode(&entry.auth).ok()?).ok()?;
        let (user, password) = text.split_once(':')?;
        Some((user.to_owned(), password.to_owned()))
    }
}

/// A key without what says nothing: Docker writes some as URLs of an API, which are for the whole host.
fn bare(key: &str) -> &str {
    match key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")) {
        Some(url) => url.split('/').next().unwrap_or_default(),
        None => key.trim_end_matches('/'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_entry_counts_however_keys_are_written() {
        let file = r#"{"auths": {"https://a.test/v1/": {"auth": "bWU6YTpi"}, "b.test:5000": {"auth": "eW91Og=="},
                       "b.test:5000/team/tools/": {"auth": "dDp0"}, "b.test:5000/team": {"auth": "bTpt"},
                       "c.test": {"auth": "?"}}, "credsStore": "x"}"#;
        let credentials: Credentials = serde_json::from_str(file).unwrap();
        let table = [
            ("a.test", "any/thing", Some(("me", "a:b"))),
            ("b.test:5000", "teams/x", Some(("you", ""))),
            ("b.test:5000", "team", Some(("m", "m"))),
            ("b.test:5000", "team/x", Some(("m", "m"))),
            ("b.test:5000", "team/tools", Some(("t", "t"))),
            ("b.test:5000", "team/tools/x", Some(("t", "t"))),
            ("b.test", "team", None),
            ("c.test", "x", None),
            ("d.test", "x", None),
        ];
        for (host, repository, expected) in table {
            let expected = expected.map(|(user, password)| (user.to_owned(), password.to_owned()));
            assert_eq!(credentials.of(host, repository), expected, "{host}/{repository}");
        }
    }
}
