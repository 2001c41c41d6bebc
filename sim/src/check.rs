//! Checks of the final state of a simulation.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail, ensure};
use axum::Router;
use axum::http::Method;
use raworc_core::conversation::{Rewound, standing};
use raworc_core::ids::LayerId;
use raworc_core::session::State;
use serde_json::{Value, json};

use crate::people::call;
use crate::records;
use crate::world::World;

/// Whether all sessions and containers are in their wanted state.
pub async fn is_quiescent(world: &World, router: &Router) -> anyhow::Result<bool> {
    let mut wanted = Vec::new();
    for session in sessions(world, router).await? {
        let waits = session["queued_messages"] != 0 && session["paused_at"].is_null();
        match session["state"].as_str().context("no state")? {
            "READY" if !waits => wanted.push(format!("{}-{}", text(&session["id"]), session["generation"])),
            "IDLE" if !waits => {}
            "ERROR" if session["error"]["restarts_at"].is_null() => {}
            _ => return Ok(false),
        }
    }
    wanted.sort();
    let state = world.state();
    let is_frozen = state.containers.values().any(|model| model.is_frozen || model.is_working());
    if is_frozen || records::is_saving(&state.oracle.records)? {
        return Ok(false);
    }
    let there: Vec<String> = state.containers.keys().map(ToString::to_string).collect();
    Ok(wanted == there && state.containers.values().all(crate::host::Model::is_alive))
}

/// Describes what is not in its wanted state.
pub async fn describe(world: &World, router: &Router) -> anyhow::Result<String> {
    let mut lines = Vec::new();
    for session in sessions(world, router).await? {
        lines.push(format!(
            "{}-{} {} queued={} paused={} error={}",
            text(&session["id"]),
            session["generation"],
            text(&session["state"]),
            session["queued_messages"],
            session["paused_at"],
            session["error"],
        ));
    }
    lines.extend(
        world.state().containers.iter().map(|(id, model)| format!("container {id} alive={}", model.is_alive())),
    );
    Ok(lines.join("\n"))
}

/// Checks every event log and every conversation.
pub async fn invariants(world: &World, router: &Router) -> anyhow::Result<()> {
    for session in sessions(world, router).await? {
        let id = text(&session["id"]);
        let events =
            all(world, router, &format!("/sessions/{id}/events"), "after", |event| event["seq"].to_string()).await?;
        let messages =
            all(world, router, &format!("/sessions/{id}/messages"), "cursor", |message| message["seq"].to_string())
                .await?;
        edges(&events).with_context(|| format!("the log of {id}"))?;
        turns(world, &events).with_context(|| format!("the turns of {id}"))?;
        let inherited: Vec<&Value> = events.iter().filter(|event| event["type"] == "message.inherited").collect();
        let is_own = |message: &&Value| !inherited.iter().any(|event| event["data"]["message_id"] == message["id"]);
        for message in messages.iter().filter(|message| message["role"] == "user").filter(is_own) {
            told_once(world, message, &events, &messages).with_context(|| format!("{message:#}"))?;
        }
        if let Some(parent) = session["parent_session_id"].as_str() {
            inherits(world, router, &session, parent, &events, &messages).await?;
        }
        if session["purged_at"].is_null() {
            tied(world, id, &events, &messages).with_context(|| format!("the checkpoints of {id}"))?;
            if session["checkpoints"]["policy"] == "each_message" {
                saved(world, &events, &messages).with_context(|| format!("the checkpoints of {id}"))?;
            }
        }
        let known: Vec<&str> = messages.iter().map(|message| text(&message["id"])).collect();
        let state = world.state();
        for (message, _) in state.people.acknowledged.iter().filter(|(_, session)| *session == id) {
            let is_told = |kind: &str| events.iter().any(|event| event["type"] == kind);
            // Messages removed by a rewind are not listed any more.
            let is_known = known.contains(&message.as_str()) || is_told("session.rewound");
            ensure!(is_known, "the acknowledged message {message} of {id} is lost");
        }
        let waiting = messages.iter().filter(|message| message["status"] == "queued").count();
        ensure!(
            session["queued_messages"] == waiting,
            "{id} counts {} waiting of {waiting}",
            session["queued_messages"]
        );
        ensure!(messages.iter().all(|message| message["status"] != "processing"), "a message of {id} is stuck");
    }
    Ok(())
}

/// The conversation of a remix begins with what the parent's was at the checkpoint that it is made from, as the parent's log tells it:
/// what had ended by then, without what had been taken back.
async fn inherits(
    world: &World,
    router: &Router,
    session: &Value,
    parent: &str,
    events: &[Value],
    messages: &[Value],
) -> anyhow::Result<()> {
    let of_parent = format!("/sessions/{parent}");
    let log = all(world, router, &format!("{of_parent}/events"), "after", |event| event["seq"].to_string()).await?;
    let Some(expected) = standing_at(&log, &session["parent_checkpoint"]) else { return Ok(()) };
    let inherited: Vec<&Value> = events.iter().filter(|event| event["type"] == "message.inherited").collect();
    let from: Vec<&str> = inherited.iter().map(|event| text(&event["data"]["from"])).collect();
    ensure!(from == expected, "{session:#} has inherited {from:?} of {expected:?}");
    for (place, event) in inherited.into_iter().enumerate() {
        let message = messages.get(place).context("a message that was inherited is gone")?;
        let is_it = message["id"] == event["data"]["message_id"] && message["seq"] == event["seq"];
        ensure!(is_it && message["session_id"] == session["id"], "{message} is not what {event} tells");
        let path = format!("{of_parent}/messages/{}", text(&event["data"]["from"]));
        let (_, original) = call(world, router, Method::GET, &path, None, &Value::Null).await?;
        for field in ["role", "content", "status", "agent", "error", "created_at"] {
            ensure!(message[field] == original[field], "{message} is not what {original} is");
        }
    }
    Ok(())
}

/// What stood at checkpoint `n` of a session with this log, in order; nothing where the log does not say which point that is.
fn standing_at<'l>(log: &'l [Value], n: &Value) -> Option<Vec<&'l str>> {
    let of = |event: &Value, kind: &str| event["type"] == kind;
    let seq = |event: &Value| event["seq"].as_u64();
    let point = |n: &Value| {
        let told = log.iter().find(|event| of(event, "checkpoint.created") && event["data"]["n"] == *n);
        // A remix has its first one from the beginning.
        let first = || log.iter().rfind(|event| of(event, "message.inherited")).filter(|_| *n == 1).and_then(seq);
        told.and_then(|event| event["data"]["seq"].as_u64()).or_else(first)
    };
    let mut rewinds = Vec::new();
    for event in log.iter().filter(|event| of(event, "session.rewound")) {
        rewinds.push(Rewound { at: point(&event["data"]["saved_as"])? + 1, to: point(&event["data"]["checkpoint"])? });
    }
    let mut stood = Vec::new();
    for range in standing(point(n)?, &rewinds) {
        let part: Vec<&Value> = log.iter().filter(|event| seq(event).is_some_and(|seq| range.contains(&seq))).collect();
        for event in &part {
            let id = &event["data"]["message_id"];
            let has_ended = || part.iter().any(|end| of(end, "message.finished") && end["data"]["message_id"] == *id);
            if of(event, "message.inherited")
                || of(event, "message.added")
                || of(event, "message.queued") && has_ended()
            {
                stood.push(text(id));
            }
        }
    }
    Some(stood)
}

/// Checks that a checkpoint contains the changes of every message that is done at its point of the conversation.
/// (Skipped for sessions that were rewound.)
fn tied(world: &World, session: &str, events: &[Value], messages: &[Value]) -> anyhow::Result<()> {
    if events.iter().any(|event| event["type"] == "session.rewound") {
        return Ok(());
    }
    let oracle = &mut world.state().oracle;
    for (n, _) in records::ready(&oracle.records, session)? {
        let seq = records::seq(&oracle.records, session, n)?;
        let Some(state) = oracle.look_at(session, n)? else { continue };
        for message in messages.iter().filter(|message| message["status"] == "done") {
            let mut told = events.iter().filter(|event| event["seq"].as_u64() <= Some(seq));
            let is_end =
                |event: &Value| event["type"] == "message.finished" && event["data"]["message_id"] == message["id"];
            let is_before = told.any(is_end);
            let Some(left) = oracle.left_by(text(&message["id"])).filter(|_| is_before) else { continue };
            ensure!(left <= state, "{n} belongs to {seq}, shows the state {state}, and {left} was left by {message}");
        }
    }
    Ok(())
}

/// Checks that each message with changes has a checkpoint before the next message, or that its failure is logged.
fn saved(world: &World, events: &[Value], messages: &[Value]) -> anyhow::Result<()> {
    if events.iter().any(|event| event["type"] == "session.rewound") {
        return Ok(());
    }
    let oracle = &world.state().oracle;
    let of = |event: &Value, kind: &str, message: &Value| {
        event["type"] == kind && event["data"]["message_id"] == message["id"]
    };
    let seq = |event: &Value| event["seq"].as_u64().unwrap_or(0);
    for message in messages.iter().filter(|message| message["status"] == "done") {
        let Some(began) = events.iter().rfind(|event| of(event, "message.started", message)).map(seq) else { continue };
        let ended = events.iter().find(|event| of(event, "message.finished", message)).map(seq).context("no end")?;
        if !oracle.has_changed(text(&message["id"])) {
            continue;
        }
        let next = events.iter().find(|event| event["type"] == "message.started" && seq(event) > ended).map(seq);
        let is_saved = events.iter().any(|event| {
            let (at, is_own) = (event["data"]["seq"].as_u64(), event["data"]["cause"] != "stop");
            let is_between = at >= Some(began) && next.is_none_or(|next| at < Some(next));
            let is_told = event["type"] == "checkpoint.failed" && seq(event) > began;
            is_told || event["type"] == "checkpoint.created" && is_between && (is_own || at < Some(ended))
        });
        let told: Vec<&Value> = events.iter().filter(|event| text(&event["type"]).starts_with("checkpoint.")).collect();
        ensure!(is_saved, "{message} changed something, and none of these checkpoints is of it: {told:#?}");
    }
    Ok(())
}

/// Checks every workspace and checkpoint against the oracle, and that acknowledged checkpoints exist.
pub fn workspaces(world: &World) -> anyhow::Result<()> {
    let state = &mut *world.state();
    let oracle = &mut state.oracle;
    ensure!(oracle.wrong.is_empty(), "{}", oracle.wrong.join("\n"));
    let sessions = records::sessions(&oracle.records)?;
    for session in &sessions {
        let id = &session.id;
        if !session.is_purged {
            oracle.look(id, &session.stack).with_context(|| format!("the workspace of {id}"))?;
        }
        let ready = records::ready(&oracle.records, id)?;
        for (n, _) in &ready {
            oracle.look_at(id, *n).with_context(|| format!("checkpoint {n} of {id}"))?;
        }
        let lost = oracle.lost(session, &ready);
        ensure!(lost.is_empty(), "checkpoints {lost:?} of {id} are gone, and nobody gave them up");
    }
    Ok(())
}

/// Checks that a prune removes everything unused, and nothing else.
pub async fn tidies(world: &World, router: &Router) -> anyhow::Result<()> {
    if tidy_up(world, router).await?.is_ok() {
        return Ok(());
    }
    // If a container ends meanwhile, its files are removed by the next prune.
    tokio::time::sleep(crate::REST).await;
    tidy_up(world, router).await?
}

async fn tidy_up(world: &World, router: &Router) -> anyhow::Result<anyhow::Result<()>> {
    let mut mounted = mounted(world);
    let (status, told) = call(world, router, Method::POST, "/system/prune", None, &json!({})).await?;
    ensure!(status.is_success(), "{status}: {told}");
    workspaces(world)?;
    mounted.extend(self::mounted(world));
    Ok(world.state().oracle.leaks(&mounted))
}

fn mounted(world: &World) -> BTreeSet<LayerId> {
    let state = world.state();
    let stacks = state.containers.values().map(|model| &model.workspace);
    stacks.flat_map(|stack| stack.layers.iter().chain(&stack.writable)).copied().collect()
}

/// Checks that events have no gaps, states follow the edges, and no event has the generation of an old container.
fn edges(events: &[Value]) -> anyhow::Result<()> {
    let (mut state, mut generation) = (State::Init, 0);
    for (place, event) in (1_u64..).zip(events) {
        ensure!(event["seq"] == place, "event {place} is {event}");
        let own = event["generation"].as_u64().context("no generation")?;
        ensure!(own >= generation, "an event of generation {own} after one of {generation}: {event}");
        generation = own;
        if event["type"] == "session.state_changed" {
            let (from, to) = (word(&event["data"]["from"])?, word(&event["data"]["to"])?);
            ensure!(from == state && from.may_become(to), "{from} → {to} in {state}");
            state = to;
        }
    }
    Ok(())
}

/// Every turn that began has exactly one end, what is told of it lies between the two, and no host began it twice.
fn turns(world: &World, events: &[Value]) -> anyhow::Result<()> {
    // Those that go on, and their messages.
    let (mut open, mut known) = (BTreeMap::new(), BTreeSet::new());
    for event in events {
        let data = &event["data"];
        let (turn, message) = (text(&data["turn_id"]), text(&data["message_id"]));
        match text(&event["type"]) {
            "message.started" => {
                ensure!(known.insert(turn) && !turn.is_empty(), "begins again: {event}");
                open.insert(turn, message);
            }
            "message.delta" => ensure!(open.get(turn) == Some(&message), "of no turn that goes on: {event}"),
            "message.added" => {
                ensure!(open.get(turn) == Some(&text(&data["reply_to"])), "of no turn that goes on: {event}");
            }
            "message.requeued" => ensure!(open.remove(turn) == Some(message), "ends no turn: {event}"),
            "message.finished" if data["turn_id"].is_null() => {
                ensure!(open.values().all(|other| *other != message), "its turn goes on: {event}");
            }
            "message.finished" => ensure!(open.remove(turn) == Some(message), "ends no turn: {event}"),
            _ => {}
        }
    }
    ensure!(open.is_empty(), "turns without an end: {open:?}");
    for turn in known {
        let executions = world.state().turns.get(&turn.parse()?).copied().unwrap_or(0);
        ensure!(executions <= 1, "hosts began the turn {turn} {executions} times");
    }
    Ok(())
}

/// Checks that a message was started once per attempt, finished once, answered once, and never run more often than
/// logged.
fn told_once(world: &World, message: &Value, events: &[Value], messages: &[Value]) -> anyhow::Result<()> {
    let id = text(&message["id"]);
    let count =
        |kind: &str| events.iter().filter(|event| event["type"] == kind && event["data"]["message_id"] == id).count();
    let (started, finished) = (count("message.started"), count("message.finished"));
    let answers: Vec<&Value> = messages.iter().filter(|reply| reply["reply_to"] == id).collect();
    let replies = answers.len();
    let executions = world.state().executions.get(&id.parse()?).copied().unwrap_or(0);
    ensure!(count("message.queued") == 1, "queued other than once");
    ensure!(message["attempts"] == started, "begun {started} times in the log");
    ensure!(u64::from(executions) <= started as u64, "worked on {executions} times");
    match text(&message["status"]) {
        "queued" => ensure!(finished == 0 && replies == 0, "it waits, and has ended {finished} times"),
        "done" => {
            // A host writes decreasing numbers; its output must be complete and without repetitions.
            let answer = answers.first().map_or("", |answer| text(&answer["content"]));
            let whole: String = (0..answer.lines().count()).rev().map(|n| format!("{n}\n")).collect();
            ensure!(answer == whole, "it wrote {answer:?}");
            ensure!(
                finished == 1 && replies == 1 && executions >= 1,
                "{finished} ends, {replies} answers, {executions} tries"
            );
        }
        "failed" | "cancelled" => ensure!(finished == 1 && replies <= 1, "{finished} ends, {replies} answers"),
        other => bail!("it is {other}"),
    }
    Ok(())
}

async fn sessions(world: &World, router: &Router) -> anyhow::Result<Vec<Value>> {
    let (_, page) =
        call(world, router, Method::GET, "/sessions?include_deleted=true&limit=500", None, &Value::Null).await?;
    Ok(page["items"].as_array().context("no sessions")?.clone())
}

async fn all(
    world: &World,
    router: &Router,
    path: &str,
    parameter: &str,
    key: impl Fn(&Value) -> String,
) -> anyhow::Result<Vec<Value>> {
    let (mut items, mut after) = (Vec::new(), "0".to_owned());
    loop {
        let path = format!("{path}?limit=500&{parameter}={after}");
        let (_, page) = call(world, router, Method::GET, &path, None, &Value::Null).await?;
        let page = page["items"].as_array().context("no items")?.clone();
        let Some(last) = page.last() else { return Ok(items) };
        after = key(last);
        items.extend(page);
    }
}

fn word(value: &Value) -> anyhow::Result<State> {
    Ok(serde_json::from_value(value.clone())?)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
