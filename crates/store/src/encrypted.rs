//! Texts that are stored encrypted. The store knows their form only; the server has the keys.

use std::fmt;
use std::str::FromStr;

use crate::StoreError;
use crate::sql::{Read, sql};

/// The tables and columns that have encrypted texts.
const COLUMNS: [(&str, &str); 2] = [("providers", "api_key"), ("secrets", "value")];
/// The letters and digits of a key's name.
const KEY_NAME_CHARACTERS: usize = 16;

/// An encrypted text, as it is stored: `v1:KEY:DATA`, the scheme, the name of the key, and the rest in hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct Encrypted(String);

/// The text has not the form of an encrypted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not an encrypted text")]
pub struct NotEncrypted;

impl Encrypted {
    /// From its parts.
    pub fn new(scheme: u8, key: &str, data: &[u8]) -> Self {
        let digits: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
        Self(format!("v{scheme}:{key}:{digits}"))
    }

    /// How it is encrypted.
    pub fn scheme(&self) -> Option<u8> {
        self.part(0)?.strip_prefix('v')?.parse().ok()
    }

    /// The name of the key that it is encrypted with.
    pub fn key(&self) -> &str {
        self.part(1).unwrap_or_default()
    }

    /// What the key makes a text of.
    pub fn data(&self) -> Vec<u8> {
        let digits = self.part(2).unwrap_or_default().as_bytes();
        let pairs = digits.chunks_exact(2).filter_map(|pair| std::str::from_utf8(pair).ok());
        pairs.filter_map(|pair| u8::from_str_radix(pair, 16).ok()).collect()
    }

    /// As it is stored.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    fn part(&self, place: usize) -> Option<&str> {
        self.0.split(':').nth(place)
    }
}

impl fmt::Debug for Encrypted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encrypted(with {})", self.key())
    }
}

impl FromStr for Encrypted {
    type Err = NotEncrypted;

    fn from_str(text: &str) -> Result<Self, NotEncrypted> {
        let is_hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        let mut parts = text.split(':');
        let (scheme, key, data, end) = (parts.next(), parts.next(), parts.next(), parts.next());
        let has_scheme = scheme.and_then(|scheme| scheme.strip_prefix('v')).is_some_and(|n| n.parse::<u8>().is_ok());
        let has_key = key.is_some_and(|key| key.len() == KEY_NAME_CHARACTERS && is_hex(key));
        let has_data = data.is_some_and(|data| !data.is_empty() && data.len().is_multiple_of(2) && is_hex(data));
        if has_scheme && has_key && has_data && end.is_none() { Ok(Self(text.to_owned())) } else { Err(NotEncrypted) }
    }
}

/// Whether anything in the records is encrypted, also where a record is damaged otherwise.
///
/// # Errors
/// Where the store fails.
pub async fn any(connection: &mut Read) -> Result<bool, StoreError> {
    for (table, column) in COLUMNS {
        let found = sql(format!("SELECT 1 AS one FROM {table} WHERE {column} IS NOT NULL LIMIT 1"));
        if found.fetch_optional(connection, |_| Ok(())).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_checked_and_read_back() {
        let made = Encrypted::new(1, "0123456789abcdef", &[0, 255, 16]);
        assert_eq!(made.as_str(), "v1:0123456789abcdef:00ff10");
        let read: Encrypted = made.as_str().parse().unwrap();
        assert_eq!((read.scheme(), read.key(), read.data()), (Some(1), "0123456789abcdef", vec![0, 255, 16]));
        for text in [
            "",
            "sk-plain",
            "{",
            "v1:0123456789abcdef:",
            "v1:0123456789abcdef:0",
            "v1:0123456789abcdef:0g",
            "v1:0123456789ABCDEF:00",
            "v1:short:00",
            "1:0123456789abcdef:00",
            "v1:0123456789abcdef:00:00",
            "v999:0123456789abcdef:00",
        ] {
            assert_eq!(text.parse::<Encrypted>(), Err(NotEncrypted), "{text:?}");
        }
    }
}
