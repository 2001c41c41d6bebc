//! Clients that race with the server: they send the next request right after an answer, while the server takes a
//! checkpoint.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::people::{any_session, call, change_lifecycle, create};
use crate::versions;
use crate::world::World;

/// Number of rounds.
const ROUNDS: usize = 12;
/// Requests come within this many milliseconds, about the time of a checkpoint.
const SOON: u64 = 12;
/// How long a container may take to start; retries after a failure come after a second.
const WAKE_MAX: Duration = Duration::from_millis(900);
/// The longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// Events that must not occur without faults.
const WRONG: [&str; 4] = ["checkpoint.failed", "checkpoint.delayed", "session.failed", "session.rewind_failed"];

/// Runs the races.
pub async fn act(world: &World, router: &Router) -> anyhow::Result<()> {
    create(world, router).await?;
    for _ in 0..ROUNDS {
        let Some(session) = any_session(world) else { continue };
        recover_session(world, router, &session).await?;
        if !message(world, router, &session).await? {
            continue;
        }
        world.pass(SOON).await;
        let number = 73 + world.below(27);
        let other = async {
            world.pass(SOON).await;
            match world.below(4) {
                0 => versions::act(world, router).await,
                1 => update(world, router, &session).await,
                2 => change_lifecycle(world, router, 73 + world.below(27)).await,
                _ => Ok(()),
            }
        };
        let (one, other) = tokio::join!(change_lifecycle(world, router, number), other);
        one?;
        other?;
    }
    let sessions = world.state().people.sessions.clone();
    for session in sessions {
        recover_session(world, router, &session).await?;
    }
    Ok(())
}

async fn update(world: &World, router: &Router, session: &str) -> anyhow::Result<()> {
    let body = json!({ "metadata": { "hurry": true } });
    call(world, router, Method::PUT, &format!("/sessions/{session}"), None, &body).await?;
    Ok(())
}

/// Brings a session back to a working state.
async fn recover_session(world: &World, router: &Router, session: &str) -> anyhow::Result<()> {
    for path in ["restore", "resume"] {
        call(world, router, Method::POST, &format!("/sessions/{session}/{path}"), None, &Value::Null).await?;
    }
    Ok(())
}

/// Sends a message and waits for its end; false if it was not accepted. It must start soon.
async fn message(world: &World, router: &Router, session: &str) -> anyhow::Result<bool> {
    let path = format!("/sessions/{session}/messages");
    let (status, message) = call(world, router, Method::POST, &path, None, &json!({ "content": "echo" })).await?;
    if !status.is_success() {
        return Ok(false);
    }
    let path = format!("{path}/{}", message["id"].as_str().context("no id")?);
    let sent = Instant::now();
    let (mut waiting_since, mut waited) = (sent, Duration::ZERO);
    loop {
        let (_, message) = call(world, router, Method::GET, &path, None, &Value::Null).await?;
        if message["status"] == "queued" {
            let (_, now) =
                call(world, router, Method::GET, &format!("/sessions/{session}"), None, &Value::Null).await?;
            // It waits for another message.
            if now["state"] == "BUSY" {
                waiting_since = Instant::now();
            }
            waited = waiting_since.elapsed();
        } else if message["status"] != "processing" {
            break;
        }
        ensure!(sent.elapsed() < PATIENCE, "a message of {session} does not end: {message}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    ensure!(waited < WAKE_MAX, "a message of {session} waited {waited:?} for a container");
    Ok(true)
}

/// Checks that no forbidden event occurred.
pub async fn went_well(world: &World, router: &Router) -> anyhow::Result<()> {
    let sessions = world.state().people.sessions.clone();
    for session in sessions {
        let mut after = 0;
        loop {
            let path = format!("/sessions/{session}/events?limit=500&after={after}");
            let (_, page) = call(world, router, Method::GET, &path, None, &Value::Null).await?;
            let events = page["items"].as_array().context("no events")?.clone();
            let Some(last) = events.last() else { break };
            after = last["seq"].as_u64().context("no number")?;
            let wrong = events.iter().find(|event| WRONG.contains(&event["type"].as_str().unwrap_or_default()));
            ensure!(wrong.is_none(), "on a good day: {}", wrong.unwrap_or(&Value::Null));
        }
    }
    Ok(())
}
