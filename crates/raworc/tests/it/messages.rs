//! Messages, answers and the event log.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::TestServer;
use crate::server_or_skip;

#[tokio::test]
async fn a_script_is_answered_with_its_output_and_how_it_ended() {
    let server = server_or_skip!();
    let id = server.session(json!({ "env": { "GREETING": "hello" } })).await;
    let message = server.send(&id, "echo $GREETING; echo oops >&2; pwd; exit 3").await;
    assert_eq!((&message["status"], &message["error"]["code"]), (&json!("failed"), &json!("exit_status")));
    assert_eq!(message["reply"]["usage"]["exit_code"], 3);
    assert_eq!(message["reply"]["reply_to"], message["id"]);
    let events = server.events(&id).await;
    let of_stream = |stream: &str| -> String {
        let deltas = events.iter().filter(|e| e["type"] == "message.delta" && e["data"]["stream"] == stream);
        deltas.map(|event| event["data"]["text"].as_str().unwrap()).collect()
    };
    assert_eq!((of_stream("stdout"), of_stream("stderr")), ("hello\n/workspace\n".into(), "oops\n".into()));
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let place = |kind| kinds.iter().position(|other| *other == kind).unwrap();
    assert!(place("message.queued") < place("message.started") && place("message.delta") < place("message.finished"));
}

#[tokio::test]
async fn every_ending_is_told_apart() {
    let server = server_or_skip!();
    let (status, _) = server
        .post("/agents", json!({ "name": "hasty", "config": { "timeout_seconds": 1, "env": { "A": "b" } } }))
        .await;
    assert_eq!(status, 201);
    let id = server.session(json!({ "agent_ids": ["shell", "hasty"] })).await;
    for (agent, script, status, code, output) in [
        ("shell", "echo fine", "done", Value::Null, "fine\n"),
        ("shell", "exit 7", "failed", json!("exit_status"), ""),
        ("shell", "kill -TERM $$", "failed", json!("signal"), ""),
        ("hasty", "echo $A; sleep 600", "failed", json!("timeout"), "b\n"),
        ("hasty", "trap '' TERM; while :; do sleep 1; done", "failed", json!("timeout"), ""),
    ] {
        let body = json!({ "content": script, "agent": agent });
        let (_, message) = server.post(&format!("/sessions/{id}/messages?wait_seconds=60"), body).await;
        let seen = (&message["status"], &message["error"]["code"], &message["reply"]["content"]);
        assert_eq!(seen, (&json!(status), &code, &json!(output)), "{script}");
        assert_eq!(message["reply"]["agent"], agent);
    }
}

#[tokio::test]
async fn binary_output_is_text_and_of_too_much_both_ends_are_kept() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    assert_eq!(server.output(&id, r"printf '\xff\xfe|\xe2\x82\xac|a\0b'").await, "\u{fffd}\u{fffd}|€|a\0b");
    let message =
        server.send(&id, "echo first; head -c 8388608 /dev/zero | tr '\\0' x; echo; echo the reason >&2; exit 3").await;
    let (content, usage) = (message["reply"]["content"].as_str().unwrap(), &message["reply"]["usage"]);
    let dropped = 8_388_608 + 6 + 1 + 11 - 1024 * 1024;
    assert_eq!((&usage["exit_code"], &usage["output_bytes_dropped"]), (&json!(3), &json!(dropped)));
    let file = usage["output_file"].as_str().unwrap();
    let mark = format!("\n[raworc: {dropped} bytes of standard output left out here; all of it is in {file}]\n");
    let (head, tail) = content.split_once(&mark).unwrap();
    assert_eq!((head.len(), tail.len()), (512 * 1024, 512 * 1024));
    // It went to another stream than the rest, and may have overtaken what was still in that one's pipe.
    assert!(head.starts_with("first\nxxx") && tail.contains("the reason\n"));
    let whole = server.request(Method::GET, &format!("/sessions/{id}/files/{file}")).send().await.unwrap();
    assert_eq!(whole.bytes().await.unwrap().len(), 8_388_608 + 6 + 1 + 11);
    let events = server.events(&id).await;
    let finished = events.iter().rfind(|event| event["type"] == "message.finished").unwrap();
    assert_eq!(finished["data"]["output_file"], file);
    let deltas = events.iter().filter(|e| e["type"] == "message.delta" && e["data"]["message_id"] == message["id"]);
    let streamed: String = deltas.map(|event| event["data"]["text"].as_str().unwrap()).collect();
    assert!(streamed == content, "what is streamed is what is kept");
    assert_eq!(server.output(&id, "git init -q . 2>/dev/null; git status --porcelain 2>/dev/null").await, "");
}

#[tokio::test]
async fn a_message_that_waits_can_be_cancelled() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let path = format!("/sessions/{id}/messages");
    let send = async |script: &str| {
        let (status, message) = server.post(&path, json!({ "content": script })).await;
        assert_eq!(status, 201, "{message}");
        message["id"].as_str().unwrap().to_owned()
    };
    let cancel =
        async |message: &str| server.post(&format!("{path}/{message}/cancel?wait_seconds=30"), json!({})).await;
    let (running, second, third) =
        (send("echo 1; sleep 600").await, send("echo 2 >> ran").await, send("echo 3 >> ran; cat ran").await);
    server.until(&id, |session| session["state"] == "BUSY" && session["queued_messages"] == 2).await;
    for _ in 0..2 {
        let (status, message) = cancel(&second).await;
        let seen = (&message["status"], &message["error"]["code"], &message["reply"]);
        assert_eq!(
            (status.as_u16(), seen),
            (200, (&json!("cancelled"), &json!("cancelled"), &Value::Null)),
            "{message}"
        );
    }
    let session = server.get(&format!("/sessions/{id}")).await.1;
    assert_eq!((&session["state"], &session["queued_messages"]), (&json!("BUSY"), &json!(1)));
    // The running one, by its id.
    let (status, message) = cancel(&running).await;
    assert_eq!((status.as_u16(), &message["status"]), (200, &json!("cancelled")), "{message}");
    assert_eq!(message["reply"]["content"], "1\n");
    let (_, message) = server.get(&format!("{path}/{third}?wait_seconds=60")).await;
    assert_eq!((&message["status"], &message["reply"]["content"]), (&json!("done"), &json!("3\n")), "{message}");
    let (status, problem) = cancel(&third).await;
    assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("invalid_state")), "{problem}");
    for unknown in ["0192f1d2-0000-7000-8000-000000000000", "nonsense"] {
        assert_eq!(cancel(unknown).await.0, 404);
    }
    let events = server.events(&id).await;
    let ends = |message: &str| {
        let of = |e: &&Value| e["type"] == "message.finished" && e["data"]["message_id"] == message;
        events.iter().filter(of).count()
    };
    assert_eq!([ends(&running), ends(&second), ends(&third)], [1, 1, 1]);
    // Also in a session that is paused, where nothing waits after it.
    server.post(&format!("/sessions/{id}/pause"), json!({})).await;
    let waiting = send("echo 4").await;
    assert_eq!(cancel(&waiting).await.1["status"], "cancelled");
    assert_eq!(server.get(&format!("/sessions/{id}")).await.1["queued_messages"], 0);
}

#[tokio::test]
async fn a_cancel_leaves_nothing_of_a_message_and_all_of_others() {
    let server = server_or_skip!();
    let id = server.session(json!({ "waiting_timeout_seconds": 3600 })).await;
    // Each says that it is there before its script ends or waits.
    let daemon = |mark: &str| {
        format!(
            "mkfifo {mark}; setsid -f env -i PATH=$PATH sh -c '(trap \"\" TERM; echo > {mark}; sleep {mark}; sleep {mark}) & ' {mark}; read x < {mark}; "
        )
    };
    let message = server.send(&id, &daemon("7101")).await;
    assert_eq!(message["status"], "done", "{message}");
    let path = format!("/sessions/{id}/messages");
    let (_, message) = server.post(&path, json!({ "content": daemon("7102") + "touch ready; sleep 600" })).await;
    let count = |mark: &str| {
        let has = |pid: &&i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == mark.as_bytes())
        };
        server.container_processes().iter().filter(has).count()
    };
    let body = json!({ "command": "until [ -e ready ]; do sleep 0.01; done" });
    server.post(&format!("/sessions/{id}/exec"), body).await;
    assert!(count("7101") > 0 && count("7102") > 0);
    let message = message["id"].as_str().unwrap();
    let (status, message) = server.post(&format!("{path}/{message}/cancel?wait_seconds=30"), json!({})).await;
    assert_eq!((status.as_u16(), &message["status"]), (200, &json!("cancelled")));
    assert_eq!(count("7102"), 0);
    assert!(count("7101") > 0);
}

#[tokio::test]
async fn messages_are_answered_in_order_and_a_repeated_key_sends_one() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let path = format!("/sessions/{id}/messages");
    let mut sent = Vec::new();
    for n in 0..20 {
        let send = || {
            let body = json!({ "content": format!("echo {n} >> order") });
            server.request(Method::POST, &path).header("idempotency-key", format!("key-{n}")).json(&body)
        };
        let (first, second) = (send().send().await.unwrap(), send().send().await.unwrap());
        assert_eq!((first.status().as_u16(), second.status().as_u16()), (201, 201));
        let (first, second): (Value, Value) = (first.json().await.unwrap(), second.json().await.unwrap());
        assert_eq!(first["id"], second["id"]);
        sent.push(first["id"].as_str().unwrap().to_owned());
    }
    let expected: String = (0..20).map(|n| format!("{n}\n")).collect();
    assert_eq!(server.output(&id, "cat order").await, expected);
    let reused =
        server.request(Method::POST, &path).header("idempotency-key", "key-1").json(&json!({ "content": "other" }));
    let response = reused.send().await.unwrap();
    assert_eq!(response.status(), 422);
    assert_eq!(response.json::<Value>().await.unwrap()["code"], "idempotency_key_reused");
}

/// Reads a stream until event `last`; returns numbers, types and texts.
async fn follow(server: &TestServer, id: &str, resume: Option<u64>, last: &str) -> Vec<(u64, String)> {
    let mut request =
        server.request(Method::GET, &format!("/sessions/{id}/events")).header("accept", "text/event-stream");
    if let Some(seq) = resume {
        request = request.header("last-event-id", seq.to_string());
    }
    let mut response = request.send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let (mut text, mut seen) = (String::new(), Vec::new());
    loop {
        text.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
        while let Some((block, rest)) = text.split_once("\n\n").map(|(block, rest)| (block.to_owned(), rest.to_owned()))
        {
            text = rest;
            let field =
                |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(|v| v.trim().to_owned());
            let Some(number) = field("id:") else { continue };
            let kind = field("event:").unwrap();
            let data: Value = serde_json::from_str(&field("data:").unwrap()).unwrap();
            assert_eq!((data["seq"].to_string(), &data["type"]), (number.clone(), &json!(kind)));
            seen.push((number.parse().unwrap(), kind.clone()));
            if kind == last {
                return seen;
            }
        }
    }
}

#[tokio::test]
async fn a_stream_of_events_resumes_without_a_gap_or_a_repeat() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let path = format!("/sessions/{id}/messages");
    server.post(&path, json!({ "content": "for i in 1 2 3 4 5; do echo $i; done" })).await;
    let all = follow(&server, &id, None, "message.finished").await;
    assert_eq!(all.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), (1..=all.len() as u64).collect::<Vec<_>>());
    for cut in 0..all.len() as u64 {
        let rest = follow(&server, &id, Some(cut), "message.finished").await;
        assert_eq!(rest, all[cut as usize..], "resumed after {cut}");
    }
}

#[tokio::test]
async fn a_message_goes_to_the_agent_it_names() {
    let server = server_or_skip!();
    for name in ["first", "second"] {
        let config = json!({ "env": { "WHO": name } });
        let (status, agent) = server.post("/agents", json!({ "name": name, "config": config, "model": "gpt-4" })).await;
        assert_eq!(status, 201, "{agent}");
    }
    let id = server.session(json!({ "agent_ids": ["first"] })).await;
    assert_eq!(server.output(&id, "echo $WHO").await, "first\n");
    let to_second = json!({ "content": "echo $WHO", "agent": "second" });
    let (status, problem) = server.post(&format!("/sessions/{id}/messages"), to_second.clone()).await;
    assert_eq!((status.as_u16(), &problem["errors"][0]["field"]), (422, &json!("agent")));
    let (status, agents) =
        server.put(&format!("/sessions/{id}/agents"), json!({ "agent_ids": ["first", "second"] })).await;
    assert_eq!((status.as_u16(), &agents[1]["model"]), (200, &json!("gpt-4")));
    let (_, message) = server.post(&format!("/sessions/{id}/messages?wait_seconds=60"), to_second).await;
    assert_eq!(message["reply"]["content"], "second\n");
    let (status, problem) = server.delete("/agents/second").await;
    assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("agent_in_use")));
}

#[tokio::test]
async fn a_cancel_catches_what_forks_faster_than_it_is_looked_for() {
    let server = server_or_skip!();
    let id = server.session(json!({ "waiting_timeout_seconds": 3600 })).await;
    // Each process starts the next one, in a session of its own, and ends: none is there for long.
    let chain =
        "perl -MPOSIX -e '$SIG{TERM} = q(IGNORE); fork and exit; while (1) { my $p = fork; exit if $p; setsid }'";
    let script = format!("for i in 1 2 3; do {chain}; done; touch ready; sleep 600");
    let path = format!("/sessions/{id}/messages");
    // What goes on beside it is not held up for good.
    let beside = server.send(&id, "setsid -f sh -c 'while :; do date +%N > beat; sleep 0.01; done'").await;
    assert_eq!(beside["status"], "done");
    let (_, message) = server.post(&path, json!({ "content": script })).await;
    let body = json!({ "command": "until [ -e ready ]; do sleep 0.01; done" });
    server.post(&format!("/sessions/{id}/exec"), body).await;
    let message = message["id"].as_str().unwrap();
    let (status, message) = server.post(&format!("{path}/{message}/cancel?wait_seconds=30"), json!({})).await;
    assert_eq!((status.as_u16(), &message["status"]), (200, &json!("cancelled")));
    let body = json!({ "command": "a=$(cut -d ' ' -f 5 /proc/loadavg); pgrep -c perl; n=$(cat beat); \
        until [ \"$(cat beat)\" != \"$n\" ]; do :; done; echo beats", "timeout_seconds": 20 });
    let r = server.post(&format!("/sessions/{id}/exec"), body).await.1;
    assert_eq!(r["stdout"], "0\nbeats\n", "{r}");
}
