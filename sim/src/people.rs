//! Simulated clients: they create sessions, send messages, change things, and retry unanswered requests.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::versions;
use crate::world::World;

/// Maximum number of sessions.
const SESSIONS: usize = 3;

/// What clients know.
#[derive(Default)]
pub struct People {
    /// The administrator's token.
    pub token: String,
    /// Ids of sessions.
    pub sessions: Vec<String>,
    /// How many of them are remixes.
    pub remixes: usize,
    /// Acknowledged messages: id and session.
    pub acknowledged: BTreeMap<String, String>,
    /// A request without an answer: session, idempotency key, text.
    pending: Option<(String, String)>,
    /// Counts requests, for their idempotency keys.
    requests: u64,
}

/// Sends a request; returns status and answer.
pub async fn call(
    world: &World,
    router: &Router,
    method: Method,
    path: &str,
    key: Option<&str>,
    body: &Value,
) -> anyhow::Result<(StatusCode, Value)> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("/api/v0{path}"))
        .header("authorization", format!("Bearer {}", world.state().people.token));
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let request = request.header("content-type", "application/json").body(Body::from(text))?;
    let response = router.clone().oneshot(request).await?;
    let status = response.status();
    let bytes = response.into_body().collect().await?.to_bytes();
    ensure!(status != StatusCode::INTERNAL_SERVER_ERROR, "{path}: {}", String::from_utf8_lossy(&bytes));
    Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
}

/// Sends a request whose client may go away before it is answered: then the handler is dropped, wherever it is, and the status is 499.
pub async fn ask(
    world: &World,
    router: &Router,
    method: Method,
    path: &str,
    body: &Value,
) -> anyhow::Result<(StatusCode, Value)> {
    let answer = call(world, router, method, path, None, body);
    if !world.fault(0.3) {
        return answer.await;
    }
    match tokio::time::timeout(world.millis(3), answer).await {
        Ok(answered) => answered,
        Err(_) => Ok((StatusCode::from_u16(499)?, Value::Null)),
    }
}

/// Performs `count` random actions.
pub async fn act(world: &World, router: &Router, count: usize) -> anyhow::Result<()> {
    let other = json!({ "name": "other" });
    call(world, router, Method::POST, "/agents", None, &other).await?;
    ask_again(world, router).await?;
    for _ in 0..count {
        world.pass(if world.chance(0.1) { 3_000 } else { 150 }).await;
        match world.below(100) {
            0..12 => create(world, router).await?,
            12..50 => send(world, router).await?,
            50..70 => versions::act(world, router).await?,
            70 => jump(world),
            71..73 => assign(world, router).await?,
            number => change_lifecycle(world, router, number).await?,
        }
    }
    Ok(())
}

pub async fn create(world: &World, router: &Router) -> anyhow::Result<()> {
    let made = {
        let people = &world.state().people;
        people.sessions.len() - people.remixes
    };
    if made >= SESSIONS {
        return Ok(());
    }
    let prompt = if world.chance(0.3) { "echo first" } else { "" };
    let rest = 1 + world.below(5);
    let mut body = json!({ "starting_prompt": prompt, "waiting_timeout_seconds": rest });
    body["checkpoints"] = versions::plan(world);
    let (status, session) = call(world, router, Method::POST, "/sessions", None, &body).await?;
    if status == StatusCode::CREATED {
        let id = session["id"].as_str().context("no id")?.to_owned();
        let mut state = world.state();
        state.log(&format!("{id} is created"));
        let first = state.oracle.begin(&id);
        if state.oracle.expect("a new session", first) != 0 {
            state.oracle.wrong.push(format!("{id} is new, and not empty"));
        }
        state.people.sessions.push(id);
    }
    Ok(())
}

/// A random session.
pub fn any_session(world: &World) -> Option<String> {
    let count = world.state().people.sessions.len().max(SESSIONS);
    let place = world.below(count);
    world.state().people.sessions.get(place).cloned()
}

async fn send(world: &World, router: &Router) -> anyhow::Result<()> {
    let Some(session) = any_session(world) else { return Ok(()) };
    let key = {
        let people = &mut world.state().people;
        people.requests += 1;
        let key = format!("request-{}", people.requests);
        people.pending = Some((session.clone(), key.clone()));
        key
    };
    post(world, router, &session, &key).await
}

/// Retries a request with the same idempotency key.
async fn ask_again(world: &World, router: &Router) -> anyhow::Result<()> {
    let pending = world.state().people.pending.clone();
    match pending {
        Some((session, key)) if world.chance(0.7) => post(world, router, &session, &key).await,
        _ => Ok(()),
    }
}

async fn post(world: &World, router: &Router, session: &str, key: &str) -> anyhow::Result<()> {
    let path = format!("/sessions/{session}/messages");
    // Derived from the key, so that a retry has the same body.
    let agent = if key.ends_with('3') { json!("shell") } else { json!(null) };
    let body = json!({ "content": "echo", "agent": agent });
    let (status, message) = call(world, router, Method::POST, &path, Some(key), &body).await?;
    let mut state = world.state();
    state.people.pending = None;
    if status == StatusCode::CREATED {
        let id = message["id"].as_str().context("no id")?.to_owned();
        state.log(&format!("{id} is acknowledged for {session}"));
        state.people.acknowledged.insert(id, session.to_owned());
    } else {
        state.log(&format!("a message for {session} is refused: {}", message["code"]));
    }
    Ok(())
}

fn jump(world: &World) {
    let seconds = [-3_600, -60, -5, 5, 60, 3_600][world.below(6)];
    if world.fault(1.0) {
        let mut state = world.state();
        state.skew += seconds * 1_000_000;
        state.log(&format!("the clock jumps by {seconds} s"));
    }
}

/// Assigns other agents; queued messages may then name one that the session no longer has.
async fn assign(world: &World, router: &Router) -> anyhow::Result<()> {
    let Some(session) = any_session(world) else { return Ok(()) };
    let agent = if world.chance(0.5) { "shell" } else { "other" };
    let body = json!({ "agent_ids": [agent] });
    let (status, _) = call(world, router, Method::PUT, &format!("/sessions/{session}/agents"), None, &body).await?;
    world.log(&format!("{session} has the agent {agent}: {status}"));
    Ok(())
}

pub async fn change_lifecycle(world: &World, router: &Router, number: usize) -> anyhow::Result<()> {
    let Some(session) = any_session(world) else { return Ok(()) };
    let (method, path) = match number {
        73..78 => (Method::POST, format!("/sessions/{session}/pause")),
        78..84 => (Method::POST, format!("/sessions/{session}/resume")),
        84..88 => (Method::POST, format!("/sessions/{session}/cancel")),
        88..92 => (Method::POST, format!("/sessions/{session}/restart")),
        92..94 => (Method::POST, format!("/sessions/{session}/terminate")),
        94..96 => (Method::DELETE, format!("/sessions/{session}")),
        _ => (Method::POST, format!("/sessions/{session}/restore")),
    };
    let (status, _) = ask(world, router, method.clone(), &path, &Value::Null).await?;
    world.log(&format!("{method} of {session} {}: {status}", path.rsplit('/').next().unwrap_or_default()));
    Ok(())
}
