//! Messages, their answers, and the log.

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
async fn binary_output_is_text_and_too_much_is_cut_and_counted() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    assert_eq!(server.output(&id, r"printf '\xff\xfe|\xe2\x82\xac|a\0b'").await, "\u{fffd}\u{fffd}|€|a\0b");
    let message = server.send(&id, "head -c 8388608 /dev/zero | tr '\\0' x").await;
    assert_eq!(message["status"], "done");
    let kept = message["reply"]["content"].as_str().unwrap().len() as u64;
    assert_eq!(kept, 1024 * 1024);
    assert_eq!(message["reply"]["usage"]["output_bytes_dropped"], 8 * 1024 * 1024 - kept);
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

/// Reads a stream of events until `last`; their numbers, types and texts.
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
