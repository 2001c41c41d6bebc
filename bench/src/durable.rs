//! Measures how fast messages are accepted over HTTP; each is stored durably before its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use serde_json::json;

use crate::report::Report;
use crate::server::Server;

/// Number of sessions.
const SESSIONS: usize = 64;
/// Number of connections, each with one request at a time.
const CONNECTIONS: usize = 64;
/// Messages per session, fewer than the queue limit.
const MESSAGES: u64 = 400;

/// Sends messages to paused sessions, so that only accepting them is measured.
pub async fn measure(server: &Server, report: &mut Report) -> anyhow::Result<()> {
    let mut paths = Vec::new();
    for _ in 0..SESSIONS {
        let id = server.session(&json!({})).await?;
        server.http().await?.post(&format!("/sessions/{id}/pause"), &json!(null)).await?;
        server.http().await?.until_event(&id, 0, "\"to\":\"IDLE\"").await?;
        paths.push(format!("/sessions/{id}/messages"));
    }
    let (paths, sent) = (Arc::new(paths), Arc::new(AtomicU64::new(0)));
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(server.http().await?);
    }
    let begun = Instant::now();
    let mut senders = tokio::task::JoinSet::new();
    for mut http in connections {
        let (paths, sent) = (Arc::clone(&paths), Arc::clone(&sent));
        senders.spawn(async move {
            loop {
                let number = sent.fetch_add(1, Ordering::Relaxed);
                if number >= MESSAGES * SESSIONS as u64 {
                    return anyhow::Ok(());
                }
                let path = &paths[number as usize % SESSIONS];
                http.call(Method::POST, path, Bytes::from_static(b"{\"content\":\"true\"}")).await?;
            }
        });
    }
    while let Some(sender) = senders.join_next().await {
        sender??;
    }
    let rate = |took: Duration| (MESSAGES * SESSIONS as u64) as f64 / took.as_secs_f64();
    report.figure("durable messages accepted, 64 connections", rate(begun.elapsed()), "a second");
    Ok(())
}
