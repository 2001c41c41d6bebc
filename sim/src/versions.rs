//! Simulated use of checkpoints: saving, restoring, remixing and deleting them.

use anyhow::Context as _;
use axum::Router;
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::people::{any_session, ask, call};
use crate::world::World;

/// Maximum number of remixes.
const REMIXES: usize = 3;

/// Performs a random action.
pub async fn act(world: &World, router: &Router) -> anyhow::Result<()> {
    let Some(session) = any_session(world) else { return Ok(()) };
    match world.below(100) {
        0..35 => save(world, router, &session).await,
        35..50 => look(world, router, &session).await,
        50..65 => remix(world, router, &session).await,
        65..80 => go_back(world, router, &session).await,
        80..92 => delete_checkpoint(world, router, &session).await,
        _ => prune(world, router).await,
    }
}

/// Random checkpoint settings for a new session.
pub fn plan(world: &World) -> Value {
    let keep = 1 + world.below(4);
    match world.below(10) {
        0..5 => json!({ "keep_last": keep }),
        5..7 => json!({ "policy": "on_stop", "keep_last": keep }),
        7 => json!({ "policy": "every", "every_seconds": 5, "keep_last": keep }),
        8 => json!({ "policy": "manual", "keep_last": keep }),
        _ => Value::Null,
    }
}

async fn save(world: &World, router: &Router, session: &str) -> anyhow::Result<()> {
    let label = world.chance(0.3).then(|| format!("label {}", world.below(100)));
    let asked = world.state().oracle.state_of(session);
    let path = format!("/sessions/{session}/checkpoints");
    let (status, made) = ask(world, router, Method::POST, &path, &json!({ "label": label })).await?;
    world.log(&format!("a checkpoint of {session}: {status}, {}", made["status"]));
    if status == StatusCode::CREATED && made["status"] == "ready" {
        let n = made["n"].as_u64().context("no number")?;
        let mut state = world.state();
        let told = format!("checkpoint {n} of {session}, just taken");
        let found = state.oracle.acknowledge(session, n, label.is_some());
        if let Some(shown) = state.oracle.expect(&told, found)
            && !state.oracle.is_since(session, asked, shown)
        {
            state.oracle.wrong.push(format!("{told} shows the state {shown}, and was asked for in {asked}"));
        }
    }
    Ok(())
}

/// Reads checkpoints that were taken automatically.
async fn look(world: &World, router: &Router, session: &str) -> anyhow::Result<()> {
    let path = format!("/sessions/{session}/checkpoints?limit=500");
    let (_, page) = call(world, router, Method::GET, &path, None, &Value::Null).await?;
    for checkpoint in
        page["items"].as_array().into_iter().flatten().filter(|checkpoint| checkpoint["status"] == "ready")
    {
        let n = checkpoint["n"].as_u64().context("no number")?;
        let mut state = world.state();
        let found = state.oracle.acknowledge(session, n, !checkpoint["label"].is_null());
        state.oracle.expect(&format!("checkpoint {n} of {session}, listed"), found);
    }
    Ok(())
}

async fn remix(world: &World, router: &Router, session: &str) -> anyhow::Result<()> {
    if world.state().people.remixes >= REMIXES {
        return Ok(());
    }
    let n = if world.chance(0.6) { known(world, session) } else { None };
    let asked = world.state().oracle.state_of(session);
    let path = format!("/sessions/{session}/remix");
    let mut body = json!({ "checkpoint": n });
    if world.chance(0.5) {
        body["checkpoints"] = plan(world);
    }
    let (status, made) = call(world, router, Method::POST, &path, None, &body).await?;
    world.log(&format!("{session} is remixed from {n:?}: {status}"));
    if status != StatusCode::CREATED {
        return Ok(());
    }
    let id = made["id"].as_str().context("no id")?.to_owned();
    let mut state = world.state();
    state.log(&format!("{id} is made from {session}"));
    state.people.remixes += 1;
    state.people.sessions.push(id.clone());
    let found = state.oracle.begin(&id);
    let first = state.oracle.expect(&format!("the remix {id} of {session}"), found);
    let kept = n.and_then(|n| state.oracle.kept.get(&(session.to_owned(), n)).copied());
    let is_right = kept.map_or_else(|| state.oracle.is_since(session, asked, first), |kept| kept.state == first);
    if !is_right {
        state
            .oracle
            .wrong
            .push(format!("the remix {id} of {session} began in {first}, asked for in {asked}, {kept:?}"));
    }
    Ok(())
}

async fn go_back(world: &World, router: &Router, session: &str) -> anyhow::Result<()> {
    let Some(n) = known(world, session) else { return Ok(()) };
    {
        let mut state = world.state();
        if let Some(kept) = state.oracle.kept.get(&(session.to_owned(), n)).copied() {
            state.oracle.go_back(session, kept.state);
        }
    }
    let path = format!("/sessions/{session}/checkpoints/{n}/restore");
    let (status, _) = ask(world, router, Method::POST, &path, &Value::Null).await?;
    world.log(&format!("{session} is to go back to {n}: {status}"));
    Ok(())
}

async fn delete_checkpoint(world: &World, router: &Router, session: &str) -> anyhow::Result<()> {
    let Some(n) = known(world, session) else { return Ok(()) };
    world.state().oracle.given_up.insert((session.to_owned(), n));
    let path = format!("/sessions/{session}/checkpoints/{n}");
    let (status, _) = ask(world, router, Method::DELETE, &path, &Value::Null).await?;
    world.log(&format!("checkpoint {n} of {session} is given up: {status}"));
    Ok(())
}

async fn prune(world: &World, router: &Router) -> anyhow::Result<()> {
    let body = if world.chance(0.5) { json!({ "deleted_sessions_after_seconds": 0 }) } else { json!({}) };
    let (status, _) = call(world, router, Method::POST, "/system/prune", None, &body).await?;
    world.log(&format!("the disk is tidied up: {status}"));
    Ok(())
}

/// A random acknowledged checkpoint.
fn known(world: &World, session: &str) -> Option<u64> {
    let all: Vec<u64> =
        world.state().oracle.kept.keys().filter(|(whose, _)| whose == session).map(|(_, n)| *n).collect();
    if all.is_empty() { None } else { Some(all[world.below(all.len())]) }
}
