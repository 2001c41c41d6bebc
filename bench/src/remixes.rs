//! Remixes of a session beside empty ones.

use std::time::Instant;

use anyhow::Context as _;
use serde_json::json;

use crate::report::Samples;
use crate::server::Server;

/// Containers that the server keeps prepared in these measurements.
const SPARES: usize = 2;

/// When a measurement of a new session ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// When the call is answered.
    Answered,
    /// With the event that the session is READY.
    Ready,
}

/// Makes an empty session and a remix of checkpoint 1, turn by turn. Returns the times of both.
pub async fn beside_empty(
    server: &Server,
    parent: &str,
    rounds: usize,
    until: Until,
) -> anyhow::Result<(Samples, Samples)> {
    let (mut empty, mut remix) = (Samples::default(), Samples::default());
    let from = format!("/sessions/{parent}/remix");
    for _ in 0..rounds {
        for (path, body, samples) in
            [("/sessions", json!({}), &mut empty), (from.as_str(), json!({ "checkpoint": 1 }), &mut remix)]
        {
            server.until_spares(SPARES).await?;
            let (mut http, events) = (server.http().await?, server.http().await?);
            if until == Until::Answered {
                // A first call has the connection checked and its account looked up.
                http.get("/me").await?;
            }
            let begun = Instant::now();
            let session = http.post(path, &body).await?;
            let answered = begun.elapsed();
            let id = session["id"].as_str().context("no id")?;
            // The log of a remix begins with what it inherits.
            let last_seq = session["last_seq"].as_u64().context("no last_seq")?;
            events.until_event(id, last_seq, "\"to\":\"READY\"").await?;
            samples.push(if until == Until::Answered { answered } else { begun.elapsed() });
            server.delete(id).await?;
        }
    }
    Ok((empty, remix))
}
