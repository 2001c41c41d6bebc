//! Measures many sessions: concurrent creation, and a large database.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;

use crate::report::{Report, Samples};
use crate::server::Server;

/// Number of sessions created at the same time.
const BURST: usize = 200;
/// Repetitions of a page or a wake.
const ROUNDS: usize = 20;

/// 200 concurrent creates, each with a prompt; from the first request until all have answered.
pub async fn burst(server: &Server, report: &mut Report) -> anyhow::Result<()> {
    let mut connections = Vec::new();
    for _ in 0..BURST {
        connections.push((server.http().await?, server.http().await?));
    }
    let begun = Instant::now();
    let mut works = tokio::task::JoinSet::new();
    for (mut http, events) in connections {
        works.spawn(async move {
            let session = http.post("/sessions", &json!({ "starting_prompt": "true" })).await?;
            let accepted = begun.elapsed();
            let id = session["id"].as_str().context("no id")?.to_owned();
            events.until_event(&id, 0, "\"message.finished\"").await?;
            let message = http.get(&format!("/sessions/{id}/messages")).await?;
            ensure!(message["items"][0]["status"] == "done", "{message}");
            anyhow::Ok((accepted, begun.elapsed()))
        });
    }
    let (mut accepted, mut done) = (Duration::ZERO, Duration::ZERO);
    while let Some(work) = works.join_next().await {
        let (one_accepted, one_done) = work??;
        accepted = accepted.max(one_accepted);
        done = done.max(one_done);
    }
    let rate = |time: Duration| BURST as f64 / time.as_secs_f64();
    report.figure("burst of 200 creates: accepted", rate(accepted), "a second");
    report.figure("burst of 200 creates: READY and prompt answered", rate(done), "a second");
    Ok(())
}

/// A page of the list, and a wake, with 1 000 and 100 000 idle sessions.
pub async fn scale(program: &Path, report: &mut Report) -> anyhow::Result<()> {
    let temporary = tempfile::tempdir()?;
    let data_dir = temporary.path().join("data");
    let mut before: Option<(Duration, Duration)> = None;
    for count in [1_000, 100_000] {
        let server = Server::start(program, &data_dir, &["--spares", "0"]).await?;
        let id = server.session(&json!({ "name": "pattern", "waiting_timeout_seconds": 1 })).await?;
        server.http().await?.until_event(&id, 0, "\"to\":\"IDLE\"").await?;
        server.quit().await?;
        copy_sessions(&data_dir, &id, count)?;
        let server = Server::start(program, &data_dir, &["--spares", "0"]).await?;
        let (page, wake) = (pages(&server).await?, wakes(&server, &id).await?);
        let medians = (page.quantile(0.5), wake.quantile(0.5));
        report.times(&format!("raworc: list page of 50, {count} sessions"), page);
        report.times(&format!("raworc: IDLE → first output, no spares, {count} sessions"), wake);
        if let Some(before) = before {
            let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
            report.figure("list page, 100 000 to 1 000 sessions", ratio(medians.0, before.0), "times");
            report.figure("wake, 100 000 to 1 000 sessions", ratio(medians.1, before.1), "times");
        }
        before = Some(medians);
        server.quit().await?;
    }
    Ok(())
}

async fn pages(server: &Server) -> anyhow::Result<Samples> {
    let mut http = server.http().await?;
    let mut samples = Samples::default();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let page = http.get("/sessions?state=IDLE&limit=50").await?;
        samples.push(begun.elapsed());
        ensure!(page["items"].as_array().is_some_and(|items| items.len() == 50), "{page}");
    }
    Ok(samples)
}

async fn wakes(server: &Server, id: &str) -> anyhow::Result<Samples> {
    let mut samples = Samples::default();
    for _ in 0..ROUNDS {
        let (mut http, events) = (server.http().await?, server.http().await?);
        let after = http.get(&format!("/sessions/{id}")).await?["last_seq"].as_u64().context("no last_seq")?;
        let begun = Instant::now();
        http.post(&format!("/sessions/{id}/messages"), &json!({ "content": "echo awake" })).await?;
        events.until_event(id, after, "\"message.delta\"").await?;
        samples.push(begun.elapsed());
        server.http().await?.until_event(id, after, "\"to\":\"IDLE\"").await?;
    }
    Ok(samples)
}

/// Fills the database with copies of one session, because creating them would take an hour.
fn copy_sessions(data_dir: &Path, pattern: &str, count: u32) -> anyhow::Result<()> {
    let mut records = rusqlite::Connection::open(data_dir.join("raworc.db"))?;
    let columns = "starting_prompt, owner_id, owner_name, settings, parent_id, machine, state, container, deadline_at, \
                   deleted_at, last_seq, host_received, version, messages_ended, busy_micros";
    let transaction = records.transaction()?;
    let there: u32 = transaction.query_row("SELECT COUNT(*) FROM sessions", [], |row| row.get(0))?;
    for number in there..count {
        transaction
            .prepare_cached(&format!(
                "INSERT INTO sessions (id, writable_id, name, {columns}, created_at, updated_at) \
                 SELECT $1, $1, 'copy ' || $2, {columns}, created_at + $2, updated_at FROM sessions WHERE id = $3"
            ))?
            .execute((uuid::Uuid::now_v7().to_string(), number, pattern))?;
        transaction
            .prepare_cached(
                "INSERT INTO session_agents (session_id, place, agent_id) \
                 SELECT s.id, 0, a.agent_id FROM sessions s, session_agents a WHERE s.name = 'copy ' || $1 AND a.session_id = $2",
            )?
            .execute((number, pattern))?;
    }
    transaction.commit()?;
    Ok(())
}
