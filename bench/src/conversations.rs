//! What a remix of a long conversation costs beside an empty session.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::json;

use crate::remixes::{self, Until};
use crate::report::{Report, Samples};
use crate::server::Server;

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
    let last_seq = http.get(&format!("/sessions/{parent}")).await?["last_seq"].as_u64().context("no last_seq")?;
    http.post(&format!("/sessions/{parent}/pause"), &json!(null)).await?;
    server.http().await?.until_event(&parent, last_seq, "\"to\":\"IDLE\"").await?;
    let (empty, remix) = remixes::beside_empty(server, &parent, rounds, Until::Answered).await?;
    let ratio = remix.quantile(0.5).as_secs_f64() / empty.quantile(0.5).as_secs_f64();
    report.times("raworc: create answered, beside the next", empty);
    report.times("raworc: remix of 10 000 messages answered", remix);
    report.figure("remix of 10 000 messages, beside create", ratio, "times");
    pages(server, &parent, report).await?;
    server.delete_all().await
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
