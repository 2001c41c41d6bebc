//! Crashes of servers, hosts and launchers, and containers that cannot start.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{RAWORC, TestServer};
use crate::server_or_skip;

/// How long after a server's start every session must have its true state.
const SETTLED: Duration = Duration::from_secs(10);

/// Queues a message and returns its id.
pub async fn post(server: &TestServer, id: &str, content: &str) -> String {
    let (status, message) = server.post(&format!("/sessions/{id}/messages"), json!({ "content": content })).await;
    assert_eq!(status, 201, "{message}");
    message["id"].as_str().unwrap().to_owned()
}

/// Waits for the end of a message.
pub async fn ended(server: &TestServer, id: &str, message: &str) -> Value {
    let (status, message) = server.get(&format!("/sessions/{id}/messages/{message}?wait_seconds=60")).await;
    assert_eq!(status, 200, "{message}");
    assert_ne!(message["finished_at"], Value::Null, "it has no end: {message:#}\n{}", server.log());
    message
}

/// The events of this kind that are about a message.
pub fn of_message<'a>(events: &'a [Value], kind: &str, message: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["type"] == kind && event["data"]["message_id"] == message).collect()
}

/// Checks that log and conversation agree on every message: started once per attempt, finished once, answered once,
/// with the output in the log.
async fn assert_told_once(server: &TestServer, id: &str) {
    // Also what the server had stored but not acknowledged when it was killed.
    server.until(id, |session| session["queued_messages"] == 0 && session["state"] == "READY").await;
    let events = server.events(id).await;
    let messages = server.messages(id).await;
    for message in messages.iter().filter(|message| message["role"] == "user") {
        let name = message["id"].as_str().unwrap();
        assert_eq!(of_message(&events, "message.finished", name).len(), 1, "{message:#}");
        assert_eq!(json!(of_message(&events, "message.started", name).len()), message["attempts"], "{message:#}");
        let replies: Vec<_> = messages.iter().filter(|reply| reply["reply_to"] == name).collect();
        assert_eq!(replies.len(), 1, "{message:#}");
        if message["attempts"] == 1 {
            let deltas = of_message(&events, "message.delta", name);
            let text: String = deltas.iter().map(|event| event["data"]["text"].as_str().unwrap()).collect();
            assert_eq!(json!(text), replies[0]["content"]);
        }
    }
}

/// Waits until only these containers are there, with nothing left of any other.
pub async fn until_only(server: &TestServer, containers: &[String]) {
    let deadline = Instant::now() + SETTLED;
    let wanted = containers.iter().cloned().collect();
    while server.containers() != wanted {
        assert!(Instant::now() < deadline, "{:?} instead of {wanted:?}\n{}", server.containers(), server.log());
        tokio::task::yield_now().await;
    }
}

/// A script that streams numbered lines for about a second, and what it writes.
fn counting(name: &str) -> (String, String) {
    let script = format!("for i in $(seq 40); do echo {name} $i; sleep 0.02; done");
    (script, (1..=40).map(|i| format!("{name} {i}\n")).collect())
}

/// Sends numbered messages until the server is gone; how many were acknowledged. The one after those may be there or not.
async fn flood(server: &TestServer, id: &str, from: u32) -> u32 {
    let mut number = from;
    while numbered(server, id, number).await {
        number += 1;
    }
    number
}

async fn numbered(server: &TestServer, id: &str, number: u32) -> bool {
    let request = server.request(Method::POST, &format!("/sessions/{id}/messages"));
    let body = json!({ "content": format!("echo {number} >>order") });
    let answer = request.header("idempotency-key", format!("n{number}")).json(&body).send().await;
    answer.is_ok_and(|answer| answer.status() == 201)
}

#[tokio::test]
async fn a_server_killed_at_any_moment_loses_nothing_and_repeats_nothing() {
    if crate::harness::can_run_containers() {
        kill_the_server(false).await;
    }
}

#[tokio::test]
async fn a_server_killed_while_containers_start_loses_nothing_and_repeats_nothing() {
    if crate::harness::can_run_containers() {
        kill_the_server(true).await;
    }
}

/// Kills the server again and again while sessions work; with `starting`, also while containers are being started.
async fn kill_the_server(starting: bool) {
    let mut server = TestServer::start(&[]);
    let mut streaming = Vec::new();
    for _ in 0..2 {
        streaming.push(server.session(json!({})).await);
    }
    let (waking, flooded) = (server.session(json!({})).await, server.session(json!({})).await);
    let (mut sessions, mut sent, mut numbers) = (vec![waking.clone(), flooded.clone()], BTreeMap::new(), 0);
    sessions.extend(streaming.clone());
    for (round, moment) in [120, 0, 35, 350, 10].into_iter().map(Duration::from_millis).enumerate() {
        server.post(&format!("/sessions/{waking}/pause"), json!(null)).await;
        for id in &streaming {
            let (script, output) = counting(&format!("round {round}"));
            sent.insert(post(&server, id, &script).await, (id.clone(), output));
        }
        let mut living = Vec::new();
        for id in &streaming {
            server.until(id, |session| session["state"] == "BUSY").await;
            let container = server.container(id).await;
            living.push((container.clone(), server.host_pid(&container)));
        }
        sent.insert(post(&server, &waking, "echo woken").await, (waking.clone(), "woken\n".into()));
        server.post(&format!("/sessions/{waking}/resume"), json!(null)).await;
        let (script, output) = counting("first");
        let (status, new) = server.post("/sessions", json!({ "starting_prompt": script })).await;
        assert_eq!(status, 201, "{new}");
        let new = new["id"].as_str().unwrap().to_owned();
        let (_, page) = server.get(&format!("/sessions/{new}/messages")).await;
        sent.insert(page["items"][0]["id"].as_str().unwrap().to_owned(), (new.clone(), output));
        sessions.push(new.clone());
        for id in [&waking, &new].into_iter().filter(|_| !starting) {
            server.until(id, |session| session["queued_messages"] == 0 && session["state"] != "IDLE").await;
        }

        let pid = Pid::from_raw(server.pid());
        let at_the_moment = async {
            tokio::time::sleep(moment).await;
            kill(pid, Signal::SIGKILL).unwrap();
        };
        (numbers, ()) = tokio::join!(flood(&server, &flooded, numbers), at_the_moment);
        server.kill();
        server.start_again();
        let back = Instant::now();

        assert!(numbered(&server, &flooded, numbers).await, "sent again with its key, acknowledged or not");
        numbers += 1;
        for id in &sessions {
            let session = server
                .until(id, |session| match session["state"].as_str().unwrap() {
                    "READY" | "IDLE" => session["queued_messages"] == 0,
                    // The one that is paused next would be cut off in what it has done and not told yet.
                    state => state == "BUSY" && *id != waking,
                })
                .await;
            assert!(back.elapsed() < SETTLED, "{session:#}\n{}", server.log());
        }
        for (container, pid) in living {
            assert!(server.host_pid(&container) == pid && lives(pid), "what lived goes on");
        }
    }
    for (message, (id, output)) in &sent {
        let message = ended(&server, id, message).await;
        let seen = (&message["status"], &message["attempts"], &message["reply"]["content"]);
        assert_eq!(seen, (&json!("done"), &json!(1), &json!(output)), "{message:#}\n{}", server.log());
    }
    let order: String = (0..numbers).map(|number| format!("{number}\n")).collect();
    assert_eq!(server.output(&flooded, "cat order").await, order);
    let mut containers = Vec::new();
    for id in &sessions {
        assert_told_once(&server, id).await;
        containers.push(server.container(id).await);
    }
    for id in &streaming {
        assert_eq!(server.container(id).await, format!("{id}-1"), "the first container is still the one");
    }
    until_only(&server, &containers).await;
    for id in &sessions {
        server.delete(&format!("/sessions/{id}")).await;
    }
    until_only(&server, &[]).await;
}

#[tokio::test]
async fn a_server_that_stops_leaves_containers_for_the_next_one() {
    if !crate::harness::can_run_containers() {
        return;
    }
    let mut server = TestServer::start(&[]);
    let (resting, busy) = (server.session(json!({})).await, server.session(json!({})).await);
    let (script, output) = counting("line");
    let message = post(&server, &busy, &script).await;
    server.until(&busy, |session| session["state"] == "BUSY").await;
    let mut processes = Vec::new();
    for id in [&resting, &busy] {
        processes.push(server.host_pid(&server.container(id).await));
    }
    let begun = Instant::now();
    server.stop();
    assert!(begun.elapsed() < SETTLED, "it took {:?} to stop", begun.elapsed());
    server.start_again();
    let message = ended(&server, &busy, &message).await;
    assert_eq!((&message["attempts"], &message["reply"]["content"]), (&json!(1), &json!(output)));
    assert_eq!(server.output(&resting, "echo here").await, "here\n");
    for (id, pid) in [&resting, &busy].into_iter().zip(processes) {
        assert_eq!(server.host_pid(&format!("{id}-1")), pid);
        assert_told_once(&server, id).await;
    }
}

/// Waits until the message is being worked on by this container.
pub async fn until_busy(server: &TestServer, id: &str, generation: u32) -> String {
    server.until(id, |session| session["state"] == "BUSY" && session["generation"] == generation).await;
    format!("{id}-{generation}")
}

#[tokio::test]
async fn a_message_whose_host_is_killed_is_tried_three_times() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let message = post(&server, &id, "echo begun; sleep 600").await;
    for generation in 1..=3 {
        let container = until_busy(&server, &id, generation).await;
        server.signal_host(&container, Signal::SIGKILL);
        server.until(&id, |session| session["state"] != "BUSY").await;
    }
    let message = ended(&server, &id, &message).await;
    let seen = (&message["status"], &message["attempts"], &message["error"]["code"]);
    assert_eq!(seen, (&json!("failed"), &json!(3), &json!("host_died")), "{message:#}");
    let events = server.events(&id).await;
    let failures: Vec<_> = events.iter().filter(|event| event["type"] == "session.failed").collect();
    assert_eq!(failures.len(), 3);
    for failure in failures {
        assert_eq!(failure["data"]["code"], "container_killed");
        assert_eq!(failure["data"]["message"], "signal 9 ended the container's first process");
        assert_ne!(failure["data"]["restarts_at"], Value::Null);
    }
    // Its death is not held against what comes after it.
    assert_eq!(server.output(&id, "echo alive").await, "alive\n");
    // One that dies with nothing to do comes back by itself.
    server.signal_host(&server.container(&id).await, Signal::SIGKILL);
    let session = server.until(&id, |session| session["state"] == "ERROR").await;
    assert_eq!(session["error"]["code"], "container_killed", "{session:#}");
    let session = server.until(&id, |session| session["state"] == "READY").await;
    assert_eq!((&session["generation"], &session["error"]), (&json!(5), &Value::Null));
    until_only(&server, &[server.container(&id).await]).await;
}

#[tokio::test]
async fn memory_that_runs_out_is_named_as_the_reason() {
    let server = server_or_skip!();
    let id = server.session(json!({ "resources": { "memory": "32Mi" } })).await;
    // One process of many: its script hears of it.
    let eat = "perl -e '$x = \"x\" x (1 << 20); push @all, $x . $_ while $_ = ++$i'";
    for (script, code) in [(format!("{eat}; exit $?"), "exit_status"), (format!("exec {eat}"), "signal")] {
        let message = server.send(&id, &script).await;
        assert_eq!((&message["status"], &message["error"]["code"]), (&json!("failed"), &json!(code)), "{message:#}");
        assert!(message["error"]["message"].as_str().unwrap().contains("memory limit"), "{message:#}");
    }
    assert_eq!(server.output(&id, "echo alive").await, "alive\n");
    assert_eq!(server.container(&id).await, format!("{id}-1"), "the container lived on");

    // Memory that belongs to no process (System V segments, then a tmpfs) fills it until not even the shell that does so
    // can live. The host then goes for what it needs itself to hear of a long message: more than 4 MB, with its escapes. A
    // fresh container has room for that.
    let segment = "perl -e 'shmwrite(shmget(0, 1 << 20, 0600), \"x\" x (1 << 20), 0, 1 << 20)'";
    let fill =
        format!("for i in $(seq 32); do {segment} || break; done; printf -v x '%01000d' 0; while echo $x; do :; done");
    server.send(&id, &format!("{{ {fill}; }} 2>/dev/null >/dev/shm/fill")).await;
    assert_eq!(server.container(&id).await, format!("{id}-1"), "the container lived on");
    let message = server.send(&id, &format!("echo alive # {}", "\u{1}".repeat(690_000))).await;
    let seen = (&message["status"], &message["attempts"], &message["reply"]["content"]);
    assert_eq!(seen, (&json!("done"), &json!(2), &json!("alive\n")), "{}", server.log());
    let events = server.events(&id).await;
    let failures: Vec<_> = events.iter().filter(|event| event["type"] == "session.failed").collect();
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[0]["data"]["code"], "out_of_memory");
}

/// Waits until a message has output.
async fn until_said(server: &TestServer, id: &str) {
    loop {
        let events = server.events(id).await;
        if events.iter().any(|event| event["type"] == "message.delta") {
            return;
        }
        server.until(id, |session| session["last_seq"] != json!(events.len())).await;
    }
}

#[tokio::test]
async fn a_host_that_falls_silent_is_replaced() {
    let server = server_or_skip!();
    let (waiting, busy) = (server.session(json!({})).await, server.session(json!({})).await);
    let message = post(&server, &busy, "[ -e again ] || { touch again; echo begun; sleep 600; }").await;
    until_said(&server, &busy).await;
    for id in [&waiting, &busy] {
        server.signal_host(&format!("{id}-1"), Signal::SIGSTOP);
    }
    for id in [&waiting, &busy] {
        let session = server.until(id, |session| session["state"] == "ERROR" || session["generation"] == 2).await;
        assert!(session["generation"] == 2 || session["error"]["code"] == "host_lost", "{session:#}");
        server.until(id, |session| session["state"] == "READY" && session["generation"] == 2).await;
        let events = server.events(id).await;
        assert!(events.iter().any(|e| e["type"] == "session.failed" && e["data"]["code"] == "host_lost"));
    }
    let message = ended(&server, &busy, &message).await;
    assert_eq!((&message["status"], &message["attempts"]), (&json!("done"), &json!(2)), "{message:#}");
    until_only(&server, &[format!("{waiting}-2"), format!("{busy}-2")]).await;
}

/// The launcher of this server.
fn launcher_of(server: &TestServer) -> i32 {
    let children = format!("/proc/{0}/task", server.pid());
    let tasks = fs::read_dir(children).unwrap().flatten().map(|task| task.path().join("children"));
    let ids: Vec<i32> = tasks
        .flat_map(|file| {
            let text = fs::read_to_string(file).unwrap_or_default();
            text.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<i32>>()
        })
        .collect();
    let is_launcher = |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).unwrap().ends_with(b"\0launcher\0");
    ids.into_iter().find(is_launcher).unwrap()
}

#[tokio::test]
async fn sessions_go_on_when_the_launcher_dies() {
    let server = server_or_skip!();
    let old = server.session(json!({})).await;
    let (script, output) = counting("line");
    let message = post(&server, &old, &script).await;
    until_busy(&server, &old, 1).await;
    // New ones may be on their way while it dies.
    let (_, between) = server.post("/sessions", json!({ "starting_prompt": "echo between" })).await;
    let between = between["id"].as_str().unwrap().to_owned();
    let launcher = launcher_of(&server);
    kill(Pid::from_raw(launcher), Signal::SIGKILL).unwrap();
    let new = server.session(json!({})).await;
    assert_ne!(launcher_of(&server), launcher);
    assert_eq!(ended(&server, &old, &message).await["reply"]["content"], json!(output));
    assert_eq!(server.output(&new, "echo new").await, "new\n");
    server.until(&between, |session| session["usage"]["messages"] == 1 && session["state"] == "READY").await;
    assert_eq!(server.container(&old).await, format!("{old}-1"));
    // The ends of old and new containers are noticed; how the old one ended, nobody could see.
    for (id, code) in [(&old, "container_gone"), (&new, "container_killed")] {
        // One whose start was under way when the launcher died may be in its second.
        let container = server.container(id).await;
        server.signal_host(&container, Signal::SIGKILL);
        let session = server.until(id, |session| session["state"] == "ERROR").await;
        assert_eq!(session["error"]["code"], code, "{session:#}");
        server.until(id, |session| session["state"] == "READY").await;
    }
}

#[tokio::test]
async fn a_container_that_cannot_start_waits_for_a_person_in_the_end() {
    if !crate::harness::can_run_containers() {
        return;
    }
    let server = TestServer::start(&["--spares", "0"]);
    // Something is wrong with the machine: a directory that is mounted over is missing.
    let (proc, away) = (server.data_dir().join("run/rootfs/proc"), server.data_dir().join("run/rootfs/away"));
    fs::rename(&proc, &away).unwrap();
    let (status, session) = server.post("/sessions", json!({ "starting_prompt": "echo at last" })).await;
    assert_eq!(status, 201);
    let id = session["id"].as_str().unwrap();
    let session = server.until(id, |session| session["state"] == "ERROR").await;
    assert_eq!(session["error"]["code"], "start_failed", "{session:#}");
    assert_ne!(session["error"]["restarts_at"], Value::Null, "{session:#}");
    let text = session["error"]["message"].as_str().unwrap();
    assert!(!text.contains('/'), "internals are for the log: {text}");
    let given_up = |session: &Value| session["state"] == "ERROR" && session["error"]["restarts_at"] == Value::Null;
    let session = server.until(id, given_up).await;
    assert_eq!(session["generation"], 4, "three restarts");
    until_only(&server, &[]).await;
    let (status, problem) = server.post(&format!("/sessions/{id}/messages"), json!({ "content": "echo" })).await;
    assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("session_failed")));
    assert!(problem["detail"].as_str().unwrap().contains("restart"), "{problem}");

    fs::rename(&away, &proc).unwrap();
    let (status, session) = server.post(&format!("/sessions/{id}/restart"), json!(null)).await;
    assert_eq!(status, 200, "{session}");
    server.until(id, |session| session["usage"]["messages"] == 1 && session["state"] == "READY").await;
    let (_, page) = server.get(&format!("/sessions/{id}/messages")).await;
    assert_eq!(page["items"][1]["content"], "at last\n");
}

#[tokio::test]
async fn a_message_whose_agent_was_taken_away_ends_and_says_so() {
    let server = server_or_skip!();
    let (status, _) = server.post("/agents", json!({ "name": "second" })).await;
    assert_eq!(status, 201);
    let id = server.session(json!({ "agent_ids": ["shell", "second"] })).await;
    server.post(&format!("/sessions/{id}/pause"), json!(null)).await;
    let (_, message) =
        server.post(&format!("/sessions/{id}/messages"), json!({ "content": "echo", "agent": "second" })).await;
    let message = message["id"].as_str().unwrap().to_owned();
    let request =
        server.request(Method::PUT, &format!("/sessions/{id}/agents")).json(&json!({ "agent_ids": ["shell"] }));
    assert_eq!(request.send().await.unwrap().status(), 200);
    server.post(&format!("/sessions/{id}/resume"), json!(null)).await;
    let message = ended(&server, &id, &message).await;
    assert_eq!((&message["status"], &message["error"]["code"]), (&json!("failed"), &json!("not_started")));
    assert_eq!(server.output(&id, "echo goes on").await, "goes on\n");
    // The log has no gap: all of it was stored, or none.
    server.events(&id).await;
}

#[tokio::test]
async fn a_data_directory_has_one_server() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let second = Command::new(RAWORC)
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(server.data_dir())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && second.stdout.is_empty(), "{said}");
    assert!(said.contains("another server is using the data directory"), "{said}");
    assert_eq!(server.output(&id, "echo undisturbed").await, "undisturbed\n");
}

/// Whether a process is running; a zombie is not.
pub fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}
