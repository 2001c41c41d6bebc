//! Measures latencies: create → READY, message → result, IDLE → first output; alternating with other runtimes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;

use crate::peers::Peers;
use crate::report::{Report, Samples};
use crate::server::Server;

/// Number of spare containers.
const SPARES: usize = 2;
/// Number of idle sessions to wake.
const RESTING: usize = 20;

/// With spare containers.
pub async fn measure(server: &Server, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let mut peers = Peers::find()?;
    let mut create = Samples::default();
    for _ in 0..rounds {
        server.until_spares(SPARES).await?;
        let (id, took) = create_to_ready(server).await?;
        create.push(took);
        server.delete(&id).await?;
        server.until_spares(SPARES).await?;
        peers.run_each().await?;
    }
    report.times("raworc: create → READY", create);
    peers.report(report);
    messages(server, rounds, report).await?;
    wakes(server, report).await
}

/// Without spare containers.
pub async fn without_spares(server: &Server, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let mut create = Samples::default();
    for _ in 0..rounds {
        let (id, took) = create_to_ready(server).await?;
        create.push(took);
        server.delete(&id).await?;
    }
    report.times("raworc: create → READY, no spare containers", create);
    Ok(())
}

/// From the request to the event, on open connections.
async fn create_to_ready(server: &Server) -> anyhow::Result<(String, Duration)> {
    let (mut http, events) = (server.http().await?, server.http().await?);
    let begun = Instant::now();
    let session = http.post("/sessions", &json!({})).await?;
    let id = session["id"].as_str().context("no id")?;
    events.until_event(id, 0, "\"to\":\"READY\"").await?;
    Ok((id.to_owned(), begun.elapsed()))
}

/// A message to a READY session; the answer contains the result.
async fn messages(server: &Server, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let id = server.session(&json!({})).await?;
    let mut http = server.http().await?;
    let path = format!("/sessions/{id}/messages?wait_seconds=30");
    let mut samples = Samples::default();
    for _ in 0..rounds {
        let begun = Instant::now();
        let message = http.post(&path, &json!({ "content": "true" })).await?;
        samples.push(begun.elapsed());
        ensure!(message["status"] == "done", "{message}");
    }
    report.times("raworc: message `true` → result", samples);
    server.delete(&id).await
}

/// A message to an idle session, until its first output.
async fn wakes(server: &Server, report: &mut Report) -> anyhow::Result<()> {
    let mut resting = Vec::new();
    for _ in 0..RESTING {
        resting.push(server.session(&json!({ "waiting_timeout_seconds": 1 })).await?);
    }
    let mut samples = Samples::default();
    for id in resting {
        server.http().await?.until_event(&id, 0, "\"to\":\"IDLE\"").await?;
        server.until_spares(SPARES).await?;
        let (mut http, events) = (server.http().await?, server.http().await?);
        let begun = Instant::now();
        http.post(&format!("/sessions/{id}/messages"), &json!({ "content": "echo awake" })).await?;
        events.until_event(&id, 0, "\"message.delta\"").await?;
        samples.push(begun.elapsed());
    }
    report.times("raworc: IDLE → first output", samples);
    server.delete_all().await
}
