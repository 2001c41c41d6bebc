//! What a remix of a long conversation costs beside an empty session.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::json;

use crate::report::{Report, Samples};
use crate::server::Server;

/// Containers that the server keeps prepared in this measurement.
const SPARES: usize = 2;
/// Messages of the conversation, half of which are answers.
const MESSAGES: usize = 10_000;
/// Messages in one page.
const PAGE: usize = 500;

/// Everything here.
pub async fn measure(server: &Server, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let parent = server.session(&json!({ "checkpoints": { "policy": "manual" } })).await?;
    let mut http = server.http().await?;
    let path = format!("/sessions/{parent}/messages?wait_seconds=60");
    for n in 0..MESSAGES / 2 {
        let message = http.post(&path, &json!({ "content": format!("echo {n}") })).await?;
        ensure!(message["status"] == "done", "{message}");
    }
    let taken = http.post(&format!("/sessions/{parent}/checkpoints"), &json!({})).await?;
    ensure!(taken["status"] == "ready", "{taken}");
    // Meanwhile it rests: between rounds it is waited for the end of every container.
    http.post(&format!("/sessions/{parent}/pause"), &json!(null)).await?;
    server.http().await?.until_event(&parent, 0, "\"to\":\"IDLE\"").await?;
    remixes(server, &parent, rounds, report).await?;
    pages(server, &parent, report).await?;
    server.delete_all().await
}

/// An empty session and a remix, turn by turn, until the call is answered.
async fn remixes(server: &Server, parent: &str, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let (mut empty, mut remix) = (Samples::default(), Samples::default());
    let from = format!("/sessions/{parent}/remix");
    for _ in 0..rounds {
        for (path, body, samples) in
            [("/sessions", json!({}), &mut empty), (from.as_str(), json!({ "checkpoint": 1 }), &mut remix)]
        {
            server.until_spares(SPARES).await?;
            let mut http = server.http().await?;
            // A first call has the connection checked and its account looked up.
            http.get("/me").await?;
            let begun = Instant::now();
            let session = http.post(path, &body).await?;
            samples.push(begun.elapsed());
            let id = session["id"].as_str().context("no id")?;
            server.http().await?.until_event(id, 0, "\"to\":\"READY\"").await?;
            server.delete(id).await?;
        }
    }
    let ratio = remix.quantile(0.5).as_secs_f64() / empty.quantile(0.5).as_secs_f64();
    report.times("raworc: create answered, beside the next", empty);
    report.times("raworc: remix of 10 000 messages answered", remix);
    report.figure("remix of 10 000 messages, beside create", ratio, "times");
    Ok(())
}

/// Every page of the conversation: of the parent, and of its remix.
async fn pages(server: &Server, parent: &str, report: &mut Report) -> anyhow::Result<()> {
    let mut http = server.http().await?;
    let made = http.post(&format!("/sessions/{parent}/remix"), &json!({ "checkpoint": 1 })).await?;
    for (id, name) in [(parent, "of the parent"), (made["id"].as_str().context("no id")?, "of the remix")] {
        let (mut samples, mut cursor, mut count) = (Samples::default(), String::new(), 0);
        loop {
            let begun = Instant::now();
            let page = http.get(&format!("/sessions/{id}/messages?limit={PAGE}{cursor}")).await?;
            samples.push(begun.elapsed());
            count += page["items"].as_array().map_or(0, Vec::len);
            let Some(next) = page["next_cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        ensure!(count == MESSAGES, "{count} messages {name}");
        report.times(&format!("raworc: page of {PAGE} messages {name}"), samples);
    }
    Ok(())
}
