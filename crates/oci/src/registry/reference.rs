//! References to images: `HOST[:PORT]/REPOSITORY[:TAG]` or `HOST[:PORT]/REPOSITORY@DIGEST` (OCI distribution
//! specification, "Pulling manifests", for the forms of repositories and tags).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::{Digest, Error};

/// Longest repository name, in bytes.
const REPOSITORY_BYTES_MAX: usize = 255;
/// Longest tag, in bytes.
const TAG_BYTES_MAX: usize = 128;
/// The default tag.
const TAG: &str = "latest";

/// An image reference: registry, repository, and tag or digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    host: String,
    repository: String,
    which: TagOrDigest,
}

/// The tag or digest of a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagOrDigest {
    /// A tag, which may move.
    Tag(String),
    /// The digest of one manifest.
    Digest(Digest),
}

impl Reference {
    /// The registry's host, with its port if there is one.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag or digest.
    pub fn tag_or_digest(&self) -> &TagOrDigest {
        &self.which
    }

    /// Whether the registry is a loopback address.
    pub fn is_loopback(&self) -> bool {
        if let Ok(address) = self.host.parse::<SocketAddr>() {
            return address.ip().is_loopback();
        }
        let name = self.host.split(':').next().unwrap_or_default();
        name == "localhost"
            || self
                .host
                .trim_matches(['[', ']'])
                .parse()
                .or_else(|_| name.parse())
                .is_ok_and(|ip: IpAddr| ip.is_loopback())
    }
}

impl FromStr for Reference {
    type Err = Error;

    /// # Errors
    /// [`Error::BadReference`] with the reason.
    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |why: &str| Error::BadReference(format!("{text:?} names no image: {why}"));
        let (host, rest) = text.split_once('/').ok_or_else(|| {
            bad("a registry and a repository are needed, as in HOST/REPOSITORY:TAG; there is no default registry")
        })?;
        if !is_host(host) {
            return Err(bad(
                "it has to begin with the registry's host, as in HOST:PORT/REPOSITORY; there is no default registry",
            ));
        }
        let (named, digest) = match rest.split_once('@') {
            Some((named, digest)) => (named, Some(digest)),
            None => (rest, None),
        };
        let (repository, tag) = match named.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (named, None),
        };
        if repository.len() > REPOSITORY_BYTES_MAX || !repository.split('/').all(is_component) {
            return Err(bad(
                "a repository has lower-case letters and digits, with single '.', '_', '-' or '/' between them",
            ));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad(
                "a tag has at most 128 letters, digits, '_', '.' and '-', and does not begin with '.' or '-'",
            ));
        }
        let which = match (tag, digest) {
            (Some(_), Some(_)) => return Err(bad("give a tag or a digest, not both")),
            (None, Some(digest)) => {
                TagOrDigest::Digest(digest.parse().map_err(|_| bad("the digest is no sha256 digest"))?)
            }
            (tag, None) => TagOrDigest::Tag(tag.unwrap_or(TAG).to_owned()),
        };
        Ok(Self { host: host.to_owned(), repository: repository.to_owned(), which })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        match &self.which {
            TagOrDigest::Tag(tag) => write!(f, ":{tag}"),
            TagOrDigest::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

impl fmt::Display for TagOrDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TagOrDigest::Tag(tag) => f.write_str(tag),
            TagOrDigest::Digest(digest) => digest.fmt(f),
        }
    }
}

/// Whether it is a host: with a dot or port, `localhost`, or an address. Anything else is part of a repository.
fn is_host(host: &str) -> bool {
    if host.parse::<SocketAddr>().is_ok() {
        return true;
    }
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    let is_label = |label: &str| {
        let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        !label.is_empty() && label.len() <= 63 && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    let is_port =
        |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    let told_apart = port.is_some() || name.contains('.') || name == "localhost";
    told_apart && name.len() <= 253 && name.split('.').all(is_label) && port.is_none_or(is_port)
}

fn is_component(component: &str) -> bool {
    let mut separators = 0;
    let mut last = None;
    for byte in component.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' => separators = 0,
            b'.' | b'_' | b'-' => {
                separators += 1;
                // Two underscores, or any number of dashes, are one separator.
                let joined = last == Some(byte) && (byte == b'-' || byte == b'_' && separators == 2);
                if last.is_none() || separators > 1 && !joined {
                    return false;
                }
            }
            _ => return false,
        }
        last = Some(byte);
    }
    last.is_some() && separators == 0
}

fn is_tag(tag: &str) -> bool {
    let first = tag.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let rest = tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    first && rest && tag.len() <= TAG_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_understood() {
        let digest = Digest::of(b"");
        for (text, host, repository, which) in [
            ("registry.example/a", "registry.example", "a", "latest"),
            ("registry.example:443/a/b-c__d.e:v1.0_X", "registry.example:443", "a/b-c__d.e", "v1.0_X"),
            ("localhost/a---b", "localhost", "a---b", "latest"),
            ("[::1]:5000/a:b", "[::1]:5000", "a", "b"),
            ("127.0.0.1:5000/a", "127.0.0.1:5000", "a", "latest"),
            (&format!("h:1/a@{digest}"), "h:1", "a", &digest.to_string()),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(
                (reference.host(), reference.repository(), &*reference.tag_or_digest().to_string()),
                (host, repository, which)
            );
            assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
        }
        for bad in [
            "",
            "a",
            "a:b",
            "a/b",
            "library/a:b",
            "h:0/a",
            "h:99999/a",
            "h:+1/a",
            "h.example/",
            "h.example/A",
            "h.example/a//b",
            "h.example/../a",
            "h.example/a..b",
            "h.example/a___b",
            "h.example/-a",
            "h.example/a-",
            "h.example/a:",
            "h.example/a:-b",
            "h.example/a@sha256:1",
            "h.example/a?b",
            "h.example/a b",
            "u@h.example/a",
            "h..example/a",
            "-h.example/a",
            "h.example/a:b:c",
            "https://h.example/a",
            &format!("h.example/a:t@{digest}"),
            &format!("h.example/a:{}", "t".repeat(129)),
        ] {
            assert!(matches!(bad.parse::<Reference>(), Err(Error::BadReference(_))), "{bad:?}");
        }
        for (text, expected) in [
            ("127.0.0.1:1/a", true),
            ("localhost:1/a", true),
            ("[::1]/a", true),
            ("127.9.9.9/a", true),
            ("10.0.0.1/a", false),
            ("localhost.example/a", false),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().is_loopback(), expected, "{text}");
        }
    }
}
