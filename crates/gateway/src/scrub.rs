//! Takes a provider's key out of what the provider sends, should it send it back.

use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use memchr::memmem::Finder;

use crate::ports::ProviderKey;

/// Shorter keys are no secrets (`none`, `ollama`), and removing them would damage answers.
const KEY_BYTES_MIN: usize = 8;
/// What stands in place of a key.
const IN_PLACE: &[u8] = b"[redacted]";

/// Removes one key from bytes that come in pieces.
pub struct Scrub {
    finder: Option<Finder<'static>>,
    /// The end of what has come so far, if a key may begin with it.
    held: Bytes,
}

impl Scrub {
    pub fn new(key: Option<&ProviderKey>) -> Self {
        let key = key.filter(|key| key.0.len() >= KEY_BYTES_MIN);
        let finder = key.map(|key| Finder::new(key.0.as_bytes()).into_owned());
        Self { finder, held: Bytes::new() }
    }

    /// Whether a header has it.
    pub fn is_in(&self, value: &HeaderValue) -> bool {
        self.finder.as_ref().is_some_and(|finder| finder.find(value.as_bytes()).is_some())
    }

    /// Takes a piece; returns what may be passed on.
    pub fn push(&mut self, piece: Bytes) -> Bytes {
        let Some(finder) = &self.finder else { return piece };
        let mut piece = piece;
        if !self.held.is_empty() {
            let mut joined = BytesMut::from(&self.held[..]);
            joined.extend_from_slice(&piece);
            piece = joined.freeze();
        }
        let mut clean = replace(finder, piece);
        let keep = beginning_of(finder.needle(), &clean);
        self.held = clean.split_off(clean.len() - keep);
        clean
    }

    /// What is left at the end.
    pub fn finish(&mut self) -> Bytes {
        std::mem::take(&mut self.held)
    }

    /// Takes a whole text.
    pub fn whole(&self, text: Bytes) -> Bytes {
        match &self.finder {
            Some(finder) => replace(finder, text),
            None => text,
        }
    }
}

fn replace(finder: &Finder<'_>, text: Bytes) -> Bytes {
    let Some(first) = finder.find(&text) else { return text };
    let mut clean = BytesMut::with_capacity(text.len());
    let (mut from, mut at) = (0, Some(first));
    while let Some(found) = at {
        clean.extend_from_slice(&text[from..found]);
        clean.extend_from_slice(IN_PLACE);
        from = found + finder.needle().len();
        at = finder.find(&text[from..]).map(|next| from + next);
    }
    clean.extend_from_slice(&text[from..]);
    clean.freeze()
}

/// How many of the last bytes of `text` are the first of `key`, at most all but one of it.
fn beginning_of(key: &[u8], text: &[u8]) -> usize {
    let longest = text.len().min(key.len() - 1);
    (1..=longest).rev().find(|length| key.starts_with(&text[text.len() - length..])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_it_is_cut_the_key_is_not_in_it() {
        let key = ProviderKey("sk-sk-secret-sk".into());
        let text = b"a sk- b sk-sk-secret-sk c sk-sk-sk-secret-sksk-sk-secret-sk d sk-sk-secret-s".as_slice();
        let expected = b"a sk- b [redacted] c sk-[redacted][redacted] d sk-sk-secret-s".as_slice();
        for size in 1..=text.len() {
            let mut scrub = Scrub::new(Some(&key));
            let mut got = Vec::new();
            for piece in text.chunks(size) {
                got.extend_from_slice(&scrub.push(Bytes::copy_from_slice(piece)));
            }
            got.extend_from_slice(&scrub.finish());
            assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(expected), "{size}");
        }
    }

    #[test]
    fn short_keys_and_none_change_nothing() {
        for key in [None, Some(ProviderKey("ollama".into()))] {
            let mut scrub = Scrub::new(key.as_ref());
            assert_eq!(scrub.push(Bytes::from_static(b"ollama")), Bytes::from_static(b"ollama"));
            assert!(scrub.finish().is_empty());
        }
    }
}
