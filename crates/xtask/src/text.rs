//! Checks the text of files.

use std::path::Path;

use crate::Findings;
use crate::repository::Repository;

/// Maximum length of a Rust file in lines, except for tests and snapshots.
const LINES_MAX: usize = 500;
/// The crates that may contain `unsafe`, for system calls that no library wraps.
const UNSAFE: [&str; 2] = ["crates/launcher", "crates/quota"];
/// What `core` must not use: files, network, processes, clocks, randomness, tasks.
const EFFECTS: [&str; 13] = [
    "std::fs",
    "std::io",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "Instant::now",
    "SystemTime",
    "Timestamp::now",
    "new_v4",
    "now_v7",
    "async fn",
    "async move",
];
/// The only allowed source of packages in Cargo.lock.
const SOURCE: &str = "registry+https://github.com/rust-lang/crates.io-index";
/// Hosts that texts may name: public, and without packages.
const HOSTS: [&str; 7] =
    ["127.0.0.1", "10.0.0.1", "github.com", "keepachangelog.com", "semver.org", "www.apache.org", "www.w3.org"];
/// The one file that names the addresses of providers of models.
const PROVIDERS: &str = "crates/core/src/known_providers.rs";
/// Reserved names (RFC 2606).
const EXAMPLE_ENDINGS: [&str; 2] = [".test", ".example"];

/// Checks that `core` has no effects.
pub fn purity(repository: &Repository) -> anyhow::Result<Findings> {
    let mut faults = Vec::new();
    for path in repository.with_extension("rs").filter(|path| path.starts_with("crates/core/src") && !is_test(path)) {
        let text = repository.read(path)?;
        let found = EFFECTS.iter().filter(|effect| text.contains(**effect));
        faults.extend(found.map(|effect| format!("{} contains {effect}", path.display())));
    }
    Ok(faults)
}

/// Checks that only two crates have lints of their own; the workspace's lints forbid `unsafe`.
pub fn lints(repository: &Repository) -> anyhow::Result<Findings> {
    let mut faults = Vec::new();
    if !repository.read("Cargo.toml")?.contains("\nunsafe_code = \"forbid\"\n") {
        faults.push("Cargo.toml does not forbid unsafe code".to_owned());
    }
    let manifests = repository.files.iter().filter(|path| path.starts_with("crates") && path.ends_with("Cargo.toml"));
    for path in manifests.filter(|path| !UNSAFE.iter().any(|own| path.starts_with(own))) {
        if !repository.read(path)?.contains("\n[lints]\nworkspace = true\n") {
            faults.push(format!("{} does not take the lints of the workspace", path.display()));
        }
    }
    Ok(faults)
}

/// Checks the length of files.
pub fn sizes(repository: &Repository) -> anyhow::Result<Findings> {
    let mut faults = Vec::new();
    for path in repository.with_extension("rs").filter(|path| !is_test(path)) {
        let lines = repository.read(path)?.lines().count();
        if lines > LINES_MAX {
            faults.push(format!("{} has {lines} lines, at most {LINES_MAX} are allowed", path.display()));
        }
    }
    Ok(faults)
}

/// Checks that no file names a private machine, a registry or a mirror.
pub fn addresses(repository: &Repository) -> anyhow::Result<Findings> {
    let mut faults = Vec::new();
    for path in &repository.files {
        let Ok(text) = repository.read(path) else {
            continue; // not text
        };
        if path == Path::new("Cargo.lock") {
            let sources = text.lines().filter_map(|line| line.strip_prefix("source = "));
            let wrong = sources.filter(|source| source.trim_matches('"') != SOURCE);
            faults.extend(wrong.map(|source| format!("Cargo.lock takes a package from {source}")));
            continue;
        }
        let wrong = hosts(&text).filter(|host| !is_allowed(host) && path != Path::new(PROVIDERS));
        faults.extend(wrong.map(|host| format!("{} names the host {host}", path.display())));
    }
    Ok(faults)
}

fn is_allowed(host: &str) -> bool {
    HOSTS.contains(&host) || !host.contains('.') || EXAMPLE_ENDINGS.iter().any(|ending| host.ends_with(ending))
}

/// The hosts of every URL.
fn hosts(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("://").filter_map(|(at, _)| {
        let (scheme, rest) = (&text[..at], &text[at + 3..]);
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-'))).unwrap_or(rest.len());
        (scheme.ends_with("http") || scheme.ends_with("https")).then_some(&rest[..end])
    })
}

/// Whether a file has only tests in it.
pub fn is_test(path: &Path) -> bool {
    let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    path.components().any(|part| part.as_os_str() == "tests") || name == "tests" || name.ends_with("_tests")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_urls() {
        let text = concat!("see https", "://a.b-c.d:80/e and http", "://x ftp", "://y http", "://{z}");
        assert_eq!(hosts(text).collect::<Vec<_>>(), ["a.b-c.d", "x", ""]);
        assert!(is_allowed("api.test") && is_allowed("x") && !is_allowed("a.b-c.d"));
    }
}
