//! The life cycle of a session.

use reqwest::Method;
use serde_json::{Value, json};

use crate::server_or_skip;

/// The states a session went through.
fn states(events: &[Value]) -> Vec<String> {
    let changes = events.iter().filter(|event| event["type"] == "session.state_changed");
    changes.map(|event| format!("{}→{}", event["data"]["from"], event["data"]["to"]).replace('"', "")).collect()
}

#[tokio::test]
async fn a_session_is_made_as_the_seed_says() {
    let server = server_or_skip!();
    let (status, session) = server
        .post(
            "/sessions",
            json!({
                "name": "analysis-session",
                "starting_prompt": "echo Q4 > data; cat data",
                "agent_ids": ["shell"],
                "waiting_timeout_seconds": 300,
                "metadata": { "project": "Q4-analysis", "priority": "high" }
            }),
        )
        .await;
    assert_eq!(status, 201);
    assert_eq!(session["state"], "INIT");
    assert_eq!(session["name"], "analysis-session");
    assert_eq!(session["created_by"], "admin");
    assert_eq!(session["agents"][0]["name"], "shell");
    assert_eq!(session["queued_messages"], 1);
    let id = session["id"].as_str().unwrap();
    server.until(id, |session| session["usage"]["messages"] == 1).await;
    let (_, page) = server.get("/sessions/analysis-session/messages").await;
    let said: Vec<_> = page["items"].as_array().unwrap().iter().map(|m| (&m["role"], &m["content"])).collect();
    assert_eq!(said, [(&json!("user"), &json!("echo Q4 > data; cat data")), (&json!("agent"), &json!("Q4\n"))]);
    assert_eq!(states(&server.events(id).await), ["INIT→READY", "READY→BUSY", "BUSY→READY"]);
}

#[tokio::test]
async fn it_rests_after_its_timeout_and_a_message_wakes_it_with_its_workspace() {
    let server = server_or_skip!();
    let id = server.session(json!({ "waiting_timeout_seconds": 1 })).await;
    server.output(&id, "echo kept > file").await;
    server.until(&id, |session| session["state"] == "IDLE").await;
    assert_eq!(server.output(&id, "cat file").await, "kept\n");
    let (_, session) = server.get(&format!("/sessions/{id}")).await;
    assert_eq!(session["generation"], 2, "a new container");
    server.until(&id, |session| session["state"] == "IDLE").await;
    let seen = states(&server.events(&id).await);
    assert_eq!(seen[3..], ["READY→IDLE", "IDLE→READY", "READY→BUSY", "BUSY→READY", "READY→IDLE"]);
}

#[tokio::test]
async fn processes_left_running_keep_it_awake_unless_it_says_otherwise() {
    let server = server_or_skip!();
    let awake = server.session(json!({ "waiting_timeout_seconds": 3 })).await;
    let resting = server.session(json!({ "waiting_timeout_seconds": 3, "background_activity": false })).await;
    for id in [&awake, &resting] {
        server.output(id, "sleep 7 >/dev/null 2>&1 & echo started").await;
    }
    server.until(&resting, |session| session["state"] == "IDLE").await;
    let (_, session) = server.get(&format!("/sessions/{awake}")).await;
    assert_eq!(session["state"], "READY", "its background process still runs");
    server.until(&awake, |session| session["state"] == "IDLE").await;
}

#[tokio::test]
async fn pause_holds_messages_back_and_resume_lets_them_go() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let (status, _) = server.post(&format!("/sessions/{id}/messages"), json!({ "content": "sleep 600" })).await;
    assert_eq!(status, 201);
    server.until(&id, |session| session["state"] == "BUSY").await;
    let (status, session) = server.post(&format!("/sessions/{id}/pause"), json!(null)).await;
    assert_eq!((status.as_u16(), &session["state"]), (200, &json!("IDLE")), "BUSY was interrupted to READY first");
    assert_eq!(session["queued_messages"], 1, "the message went back to the queue");
    let (status, queued) = server.post(&format!("/sessions/{id}/messages"), json!({ "content": "echo two" })).await;
    assert_eq!(status, 201, "{queued}");
    let (status, problem) = server.post(&format!("/sessions/{id}/exec"), json!({ "command": "true" })).await;
    assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("session_paused")));
    let (_, session) = server.post(&format!("/sessions/{id}/resume"), json!(null)).await;
    assert_eq!(session["paused_at"], Value::Null);
    // The first message runs again, visibly for the second time.
    server.until(&id, |session| session["state"] == "BUSY").await;
    let (_, page) = server.get(&format!("/sessions/{id}/messages?status=processing")).await;
    assert_eq!(page["items"][0]["attempts"], 2);
    let (status, _) = server.post(&format!("/sessions/{id}/cancel"), json!(null)).await;
    assert_eq!(status, 200);
    let second = queued["id"].as_str().unwrap();
    let (_, message) = server.get(&format!("/sessions/{id}/messages/{second}?wait_seconds=60")).await;
    assert_eq!((&message["status"], &message["reply"]["content"]), (&json!("done"), &json!("two\n")));
    let (_, page) = server.get(&format!("/sessions/{id}/messages?status=cancelled")).await;
    assert_eq!(page["items"][0]["content"], "sleep 600");
}

#[tokio::test]
async fn terminate_ends_restore_brings_back_and_nothing_is_left_running() {
    let server = server_or_skip!();
    let id = server.session(json!({ "name": "one" })).await;
    server.output(&id, "echo kept > file").await;
    server.post(&format!("/sessions/{id}/messages"), json!({ "content": "sleep 600" })).await;
    server.until(&id, |session| session["state"] == "BUSY").await;
    server.post(&format!("/sessions/{id}/messages"), json!({ "content": "echo never" })).await;
    let (status, session) = server.post("/sessions/one/terminate", json!(null)).await;
    assert_eq!((status.as_u16(), &session["state"]), (200, &json!("IDLE")));
    assert_eq!(session["termination_reason"], "manual");
    let (_, page) = server.get(&format!("/sessions/{id}/messages?status=cancelled")).await;
    assert_eq!(page["items"].as_array().unwrap().len(), 2, "the running and the waiting one have a stated end");
    let (status, problem) = server.post(&format!("/sessions/{id}/messages"), json!({ "content": "x" })).await;
    assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("session_terminated")));
    let (status, session) = server.post(&format!("/sessions/{id}/restore"), json!(null)).await;
    assert_eq!((status.as_u16(), &session["terminated_at"]), (200, &Value::Null));
    assert_eq!(server.output(&id, "cat file").await, "kept\n");

    let (status, session) = server.delete(&format!("/sessions/{id}")).await;
    assert_eq!(status, 200);
    assert_ne!(session["deleted_at"], Value::Null);
    assert_eq!(server.get("/sessions").await.1["items"], json!([]));
    assert_eq!(server.get("/sessions?include_deleted=true").await.1["items"][0]["id"], json!(id));
    while !server.containers().is_empty() {
        tokio::task::yield_now().await;
    }
    let (_, session) = server.post(&format!("/sessions/{id}/restore"), json!(null)).await;
    assert_eq!(session["deleted_at"], Value::Null);
    assert_eq!(server.output(&id, "cat file").await, "kept\n");
}

#[tokio::test]
async fn ttl_ends_a_session_by_itself() {
    let server = server_or_skip!();
    let id = server.session(json!({ "ttl_seconds": 1 })).await;
    let session = server.until(&id, |session| session["terminated_at"] != Value::Null).await;
    assert_eq!((&session["termination_reason"], &session["state"]), (&json!("ttl"), &json!("IDLE")));
}

#[tokio::test]
async fn restart_gives_a_new_container_and_keeps_the_workspace() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    server.output(&id, "echo a > file; echo b > /tmp/file").await;
    let (status, _) = server.post(&format!("/sessions/{id}/restart"), json!(null)).await;
    assert_eq!(status, 200);
    server.until(&id, |session| session["state"] == "READY" && session["generation"] == 2).await;
    assert_eq!(server.output(&id, "cat file; ls /tmp").await, "a\n");
}

#[tokio::test]
async fn a_session_is_listed_updated_and_guarded_by_its_version() {
    let server = server_or_skip!();
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(server.session(json!({ "name": format!("s{n}") })).await);
    }
    let (_, first) = server.get("/sessions?limit=2").await;
    let cursor = first["next_cursor"].as_str().unwrap();
    let (_, second) = server.get(&format!("/sessions?limit=2&cursor={cursor}")).await;
    let cursor = second["next_cursor"].as_str().unwrap();
    let (_, third) = server.get(&format!("/sessions?limit=2&cursor={cursor}")).await;
    assert_eq!(third.get("next_cursor"), None);
    let pages = [first, second, third];
    let listed: Vec<&Value> =
        pages.iter().flat_map(|page| page["items"].as_array().unwrap()).map(|s| &s["name"]).collect();
    assert_eq!(listed, ["s4", "s3", "s2", "s1", "s0"]);
    assert_eq!(server.get("/sessions?q=s3").await.1["items"].as_array().unwrap().len(), 1);
    assert_eq!(server.get("/sessions?state=BUSY").await.1["items"], json!([]));

    let response = server.request(Method::GET, "/sessions/s0").send().await.unwrap();
    let etag = response.headers()["etag"].to_str().unwrap().to_owned();
    let update =
        json!({ "name": "Updated session name", "waiting_timeout_seconds": 600, "metadata": { "tags": ["a"] } });
    let put = |etag: &str| {
        server.request(Method::PUT, &format!("/sessions/{}", ids[0])).header("if-match", etag).json(&update)
    };
    let response = put(&etag).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let session: Value = response.json().await.unwrap();
    assert_eq!((&session["name"], &session["waiting_timeout_seconds"]), (&json!("Updated session name"), &json!(600)));
    assert_eq!(session["metadata"], json!({ "tags": ["a"] }));
    assert_eq!(put(&etag).send().await.unwrap().status(), 412);
}
