//! Restricts which addresses a registry may have. The server's network position is trusted by services that must not
//! be exposed to its users: neighbours, and cloud metadata services.
//!
//! The check applies to the address at the time of connecting, not to the name, because names and redirects may
//! change.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use tower_service::Service;
use url::{Host, Url};

use crate::Error;

/// TagOrDigest addresses requests may connect to.
#[derive(Clone, Debug, Default)]
pub enum AddressPolicy {
    /// Any address.
    #[default]
    Anywhere,
    /// Public addresses, and these hosts (`HOST`, or `HOST:PORT` for one port) at any address.
    Public(Vec<String>),
}

impl AddressPolicy {
    /// Checks a URL. Names are checked when they are resolved.
    ///
    /// # Errors
    /// [`Error::Private`].
    pub(super) fn check(&self, url: &Url) -> Result<(), Error> {
        let AddressPolicy::Public(allowed) = self else { return Ok(()) };
        let host = url.host_str().unwrap_or_default();
        if is_allowed(allowed, host, url.port_or_known_default()) {
            return Ok(());
        }
        // A host allowed on another port only would pass the resolver, which does not know the port.
        let is_known = allowed.iter().any(|entry| without_port(entry).eq_ignore_ascii_case(host));
        let is_public = match url.host() {
            Some(Host::Ipv4(address)) => is_public(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => is_public(IpAddr::V6(address)),
            Some(Host::Domain(_)) => !is_known,
            None => false,
        };
        if is_public { Ok(()) } else { Err(Error::Private(host.to_owned())) }
    }
}

fn is_allowed(allowed: &[String], host: &str, port: Option<u16>) -> bool {
    let with_port = port.map(|port| format!("{host}:{port}"));
    let is_it = |entry: &String| {
        entry.eq_ignore_ascii_case(host) || with_port.as_ref().is_some_and(|full| entry.eq_ignore_ascii_case(full))
    };
    allowed.iter().any(is_it)
}

/// The host of an entry; IPv6 addresses keep their brackets, as in a URL.
fn without_port(entry: &str) -> &str {
    match entry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') && !port.is_empty() => host,
        _ => entry,
    }
}

/// Whether an address is public: not loopback, private or for a special purpose (IANA's special-purpose address
/// registries, RFC 6890).
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = match a {
        0 | 10 | 127 | 224..=255 => true,
        100 => (64..128).contains(&b),
        169 => b == 254,
        172 => (16..32).contains(&b),
        192 => b == 168 || (b == 0 && (c == 0 || c == 2)),
        198 => b == 18 || b == 19 || (b == 51 && c == 100),
        203 => b == 0 && c == 113,
        _ => false,
    };
    !is_special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let inner = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // IPv4-mapped, and NAT64: the embedded address counts.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => inner(high, low),
        // 6to4.
        [0x2002, high, low, ..] => inner(high, low),
        [0x2001, 0xdb8, ..] => false,
        // Everything else that is not global unicast is special.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// A name that resolves to no allowed address.
#[derive(Debug, thiserror::Error)]
#[error("it has a private address")]
pub(super) struct PrivateAddress;

/// Resolves names to allowed addresses.
#[derive(Clone)]
pub(super) struct Resolver {
    inner: GaiResolver,
    address_policy: AddressPolicy,
}

impl Resolver {
    pub fn new(address_policy: AddressPolicy) -> Self {
        Self { inner: GaiResolver::new(), address_policy }
    }
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let is_free = match &self.address_policy {
            AddressPolicy::Anywhere => true,
            // `check` has checked the port.
            AddressPolicy::Public(allowed) => {
                allowed.iter().any(|entry| without_port(entry).eq_ignore_ascii_case(name.as_str()))
            }
        };
        let found = self.inner.call(name);
        Box::pin(async move {
            let all: Vec<SocketAddr> = found.await?.collect();
            let had_some = !all.is_empty();
            let kept: Vec<SocketAddr> = all.into_iter().filter(|found| is_free || is_public(found.ip())).collect();
            if had_some && kept.is_empty() { Err(PrivateAddress.into()) } else { Ok(kept.into_iter()) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_internet_are_public() {
        let table = [
            ("93.184.216.34", true),
            ("172.32.0.1", true),
            ("100.128.0.1", true),
            ("127.0.0.1", false),
            ("127.9.9.9", false),
            ("0.0.0.0", false),
            ("10.1.2.3", false),
            ("172.16.0.1", false),
            ("192.168.1.1", false),
            ("169.254.169.254", false),
            ("100.64.0.1", false),
            ("255.255.255.255", false),
            ("224.0.0.1", false),
            ("2606:4700::1111", true),
            ("::1", false),
            ("::", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:93.184.216.34", true),
            ("64:ff9b::a00:1", false),
            ("2002:7f00:1::", false),
            ("fe80::1", false),
            ("fd00::1", false),
            ("ff02::1", false),
        ];
        for (address, expected) in table {
            assert_eq!(is_public(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn a_host_is_allowed_with_its_port_or_with_all() {
        let policy =
            AddressPolicy::Public(vec!["127.0.0.1:5000".into(), "registry.test:443".into(), "[::1]:5000".into()]);
        let table = [
            ("127.0.0.1:5000", true),
            ("127.0.0.1:5001", false),
            ("127.1:5000", true),
            ("2130706433:22", false),
            ("0x7f.1", false),
            ("[::1]:5000", true),
            ("[::1]:22", false),
            ("[::ffff:127.0.0.1]:5000", false),
            ("registry.test", true),
            ("registry.test:8443", false),
            ("other.test", true),
        ];
        for (host, expected) in table {
            let scheme = if host.contains(".test") { "https" } else { "http" };
            let url = Url::parse(&format!("{scheme}://{host}/v2/")).unwrap();
            assert_eq!(policy.check(&url).is_ok(), expected, "{url}");
        }
    }
}
