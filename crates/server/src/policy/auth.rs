//! Tokens: of accounts (random, stored as a hash) and of hosts (made from the container's name and a server secret).

use hmac::{Hmac, KeyInit, Mac};
use rand::RngExt;
use raworc_core::ids::ContainerId;
use sha2::{Digest, Sha256};

/// Begins every account token, so that secret scanners can find one.
const PREFIX: &str = "raworc_";
/// Random bytes in a token: 256 bits.
const TOKEN_BYTES: usize = 32;

/// A new secret with 256 random bits.
pub fn new_secret() -> String {
    let bytes: [u8; TOKEN_BYTES] = rand::rng().random();
    format!("{PREFIX}{}", hex::encode(bytes))
}

/// Whether this is one.
pub fn is_secret(text: &str) -> bool {
    let bytes = text.strip_prefix(PREFIX).and_then(|text| hex::decode(text).ok());
    bytes.is_some_and(|bytes| bytes.len() == TOKEN_BYTES)
}

/// What is stored of an account's token. A plain hash is enough: the token is random and long, not a password.
pub fn hash(token: &str) -> String {
    hex::encode(Sha256::digest(token.as_bytes()))
}

/// Makes and checks the tokens of hosts: `SESSION-GENERATION.HMAC-SHA256`. Nothing is stored per token, and a container
/// that outlives its server is known to the next one.
pub struct HostTokens {
    secret: Vec<u8>,
}

impl HostTokens {
    /// With the installation's secret.
    pub fn new(secret: &str) -> Self {
        Self { secret: secret.as_bytes().to_vec() }
    }

    /// The token of a container's host.
    pub fn make(&self, container: ContainerId) -> String {
        format!("{container}.{}", hex::encode(self.mac(container).finalize().into_bytes()))
    }

    /// Which container's host this token speaks for, if it is one of ours.
    pub fn check(&self, token: &str) -> Option<ContainerId> {
        let (container, code) = token.split_once('.')?;
        let container: ContainerId = container.parse().ok()?;
        // The comparison takes the same time wherever the codes differ.
        self.mac(container).verify_slice(&hex::decode(code).ok()?).ok()?;
        Some(container)
    }

    fn mac(&self, container: ContainerId) -> Hmac<Sha256> {
        // HMAC takes keys of any length (RFC 2104), so the default is never used.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret)
            .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
        mac.update(container.to_string().as_bytes());
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raworc_core::ids::SessionId;

    #[test]
    fn a_host_token_speaks_for_its_container_only() {
        let tokens = HostTokens::new("secret");
        let id = |n, generation| ContainerId { session: SessionId(uuid::Uuid::from_u128(n)), generation };
        let token = tokens.make(id(1, 1));
        assert_eq!(tokens.check(&token), Some(id(1, 1)));
        let (_, code) = token.split_once('.').unwrap();
        for forged in [format!("{}.{code}", id(1, 2)), format!("{}.{code}", id(2, 1)), format!("{}.", id(1, 1))] {
            assert_eq!(tokens.check(&forged), None, "{forged}");
        }
        assert_eq!(HostTokens::new("other").check(&token), None);
        for garbage in ["", ".", "x", "x.y", "é.é"] {
            assert_eq!(tokens.check(garbage), None);
        }
    }

    #[test]
    fn secrets_differ() {
        assert_ne!(new_secret(), new_secret());
        assert_eq!(new_secret().len(), PREFIX.len() + 64);
    }
}
