//! `Idempotency-Key`: the same request sent again answers with what the first one made.

use raworc_api::problem::{Code, Problem};
use raworc_core::limits::IDEMPOTENCY_KEY_BYTES_MAX;
use raworc_core::permissions::Actor;
use raworc_core::time::Time;
use raworc_store::idempotency::{self, Used};
use raworc_store::{Read, Tx};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::error::Failure;

/// A caller's key together with what it was sent for.
#[derive(Clone, Debug)]
pub struct Key {
    key: String,
    fingerprint: String,
}

impl Key {
    /// A key for this request; `what` tells apart calls whose bodies look alike.
    ///
    /// # Errors
    /// 422 where the key is empty, too long, or not printable ASCII.
    pub fn new(key: &str, what: &str, body: &impl Serialize) -> Result<Self, Failure> {
        if key.is_empty() || key.len() > IDEMPOTENCY_KEY_BYTES_MAX || !key.bytes().all(|b| b.is_ascii_graphic()) {
            let message = format!("must be 1 to {IDEMPOTENCY_KEY_BYTES_MAX} printable ASCII characters without spaces");
            return Err(Problem::field("Idempotency-Key", message).into());
        }
        let body = serde_json::to_vec(body).unwrap_or_default();
        let mut digest = Sha256::new();
        digest.update(what.as_bytes());
        digest.update([0]);
        digest.update(&body);
        Ok(Self { key: key.to_owned(), fingerprint: hex::encode(digest.finalize()) })
    }

    /// The id of what this key made before.
    ///
    /// # Errors
    /// 422 where the key was used for another request.
    pub async fn made_before(&self, connection: &mut Read, actor: &Actor) -> Result<Option<String>, Failure> {
        match idempotency::find(connection, actor.account, &self.key).await? {
            None => Ok(None),
            Some(used) if used.fingerprint == self.fingerprint => Ok(Some(used.resource_id)),
            Some(_) => Err(Failure::new(
                Code::IdempotencyKeyReused,
                "this Idempotency-Key was used for a different request; use a new one for each request",
            )),
        }
    }

    /// Remembers what this key made.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn remember(&self, tx: &mut Tx, actor: &Actor, made: String, now: Time) -> Result<(), Failure> {
        let used = Used { fingerprint: self.fingerprint.clone(), resource_id: made };
        Ok(idempotency::insert(tx, actor.account, &self.key, &used, now).await?)
    }
}
