//! Accounts, tokens and permissions.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Instant;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{PATIENCE, TestServer, eventually};
use crate::raw::{exchange, request};
use crate::server_or_skip;

/// Creates a token of this account; returns its record and secret.
async fn token(server: &TestServer, account: &str, body: Value) -> (Value, String) {
    let (status, mut record) = server.post(&format!("/accounts/{account}/tokens"), body).await;
    assert_eq!(status, 201, "{record}");
    let secret = record.as_object_mut().unwrap().remove("token").unwrap();
    (record, secret.as_str().unwrap().to_owned())
}

/// Creates a member and returns its token.
pub async fn member(server: &TestServer, name: &str) -> String {
    let (status, account) = server.post("/accounts", json!({ "name": name, "role": "member" })).await;
    assert_eq!((status.as_u16(), &account["role"]), (201, &json!("member")));
    token(server, name, json!({ "name": "test" })).await.1
}

/// A call with this token: status and body.
pub async fn call(server: &TestServer, token: &str, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
    let mut request = server.request_as(token, method.parse::<Method>().unwrap(), path);
    if let Some(body) = body {
        request = request.json(&body);
    }
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    (status, response.json().await.unwrap_or_default())
}

#[tokio::test]
async fn the_first_start_makes_an_administrator() {
    let server = server_or_skip!();
    let file = server.data_dir().join("admin.token");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    let (status, me) = server.get("/me").await;
    assert_eq!((status.as_u16(), &me["name"], &me["role"]), (200, &json!("admin"), &json!("admin")));
    assert_eq!(server.get("/accounts").await.1["items"], json!([me]));
}

#[tokio::test]
async fn a_member_sees_and_touches_only_their_own_sessions() {
    let server = server_or_skip!();
    let (alice, bob) = (member(&server, "alice").await, member(&server, "bob").await);
    let mut ids = Vec::new();
    for (who, name) in [(&alice, "work"), (&bob, "secret-plan"), (&server.token, "admins")] {
        let body = json!({ "name": name, "waiting_timeout_seconds": 3600 });
        let (status, session) = call(&server, who, "POST", "/sessions", Some(body)).await;
        assert_eq!(status, 201, "{session}");
        ids.push(session["id"].as_str().unwrap().to_owned());
    }
    for id in &ids {
        server.until(id, |session| session["state"] == "READY").await;
    }
    let bobs = &ids[1];
    assert_eq!(call(&server, &bob, "PUT", &format!("/sessions/{bobs}/files/note"), None).await.0, 201);
    let before = (server.get(&format!("/sessions/{bobs}")).await, server.events(bobs).await);
    let message = before.1.iter().find_map(|event| event["data"]["message_id"].as_str()).unwrap_or("x").to_owned();
    for session in [bobs.as_str(), "secret-plan", &ids[2], "admins"] {
        for (method, below, body) in [
            ("GET", "", None),
            ("PUT", "", Some(json!({ "name": "mine" }))),
            ("DELETE", "", None),
            ("POST", "/pause", None),
            ("POST", "/resume", None),
            ("POST", "/terminate", None),
            ("POST", "/restart", None),
            ("POST", "/restore", None),
            ("POST", "/cancel", None),
            ("GET", "/agents", None),
            ("PUT", "/agents", Some(json!({ "agent_ids": ["shell"] }))),
            ("GET", "/messages", None),
            ("GET", &format!("/messages/{message}"), None),
            ("POST", "/messages", Some(json!({ "content": "true" }))),
            ("GET", "/events", None),
            ("POST", "/exec", Some(json!({ "command": "true" }))),
            ("GET", "/files", None),
            ("GET", "/files/note", None),
            ("PUT", "/files/note", None),
            ("DELETE", "/files/note", None),
        ] {
            let (status, theirs) =
                call(&server, &alice, method, &format!("/sessions/{session}{below}"), body.clone()).await;
            assert_eq!((status, &theirs["code"]), (404, &json!("not_found")), "{method} {session}{below}");
            // It reads as if there were no such session at all.
            let (_, none) = call(&server, &alice, method, &format!("/sessions/nobody{below}"), body).await;
            assert_eq!(
                theirs["detail"].as_str().unwrap().replace(session, "nobody"),
                none["detail"],
                "{method} {below}"
            );
        }
    }
    assert_eq!((server.get(&format!("/sessions/{bobs}")).await, server.events(bobs).await), before);
    for (query, who, expected) in [
        ("", &alice, vec!["work"]),
        ("?created_by=bob", &alice, vec![]),
        ("?q=secret", &alice, vec![]),
        ("?include_deleted=true", &bob, vec!["secret-plan"]),
        ("", &server.token, vec!["admins", "secret-plan", "work"]),
        ("?created_by=bob", &server.token, vec!["secret-plan"]),
    ] {
        let (_, page) = call(&server, who, "GET", &format!("/sessions{query}"), None).await;
        let names: Vec<&Value> = page["items"].as_array().unwrap().iter().map(|session| &session["name"]).collect();
        assert_eq!(names, expected, "{query}");
    }
    // The same name twice is ambiguous only to those who see both.
    call(&server, &alice, "POST", "/sessions", Some(json!({ "name": "secret-plan" }))).await;
    assert_eq!(call(&server, &alice, "GET", "/sessions/secret-plan", None).await.1["created_by"], "alice");
    assert_eq!(call(&server, &bob, "GET", "/sessions/secret-plan", None).await.1["created_by"], "bob");
    assert_eq!(server.get("/sessions/secret-plan").await.0, 409);
}

#[tokio::test]
async fn a_member_manages_nothing_but_their_own_tokens() {
    let server = server_or_skip!();
    let (alice, _) = (member(&server, "alice").await, member(&server, "bob").await);
    let agent = json!({ "name": "new" });
    for (method, path, body, status) in [
        ("GET", "/agents", None, 200),
        ("GET", "/agents/shell", None, 200),
        ("POST", "/agents", Some(agent.clone()), 403),
        ("PUT", "/agents/shell", Some(agent), 403),
        ("DELETE", "/agents/shell", None, 403),
        ("GET", "/accounts", None, 403),
        ("POST", "/accounts", Some(json!({ "name": "eve", "role": "admin" })), 403),
        ("DELETE", "/accounts/bob", None, 403),
        ("DELETE", "/accounts/alice", None, 403),
        ("GET", "/metrics", None, 403),
        ("GET", "/system/loops", None, 403),
        ("GET", "/audit", None, 403),
        ("GET", "/accounts/bob", None, 404),
        ("GET", "/accounts/admin", None, 404),
        ("GET", "/accounts/bob/tokens", None, 404),
        ("POST", "/accounts/bob/tokens", Some(json!({ "name": "stolen" })), 404),
        ("POST", "/accounts/admin/tokens", Some(json!({ "name": "stolen" })), 404),
        ("GET", "/me", None, 200),
        ("GET", "/accounts/alice", None, 200),
        ("GET", "/accounts/alice/tokens", None, 200),
        ("POST", "/accounts/alice/tokens", Some(json!({ "name": "another" })), 201),
    ] {
        let (seen, body) = call(&server, &alice, method, path, body).await;
        assert_eq!(seen, status, "{method} {path}: {body}");
    }
    assert_eq!(server.get("/agents").await.1["items"].as_array().unwrap().len(), 1);
    assert_eq!(server.get("/accounts").await.1["items"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_token_is_shown_once_kept_as_a_hash_and_ends_in_four_ways() {
    let server = server_or_skip!();
    member(&server, "alice").await;
    let (record, secret) = token(&server, "alice", json!({ "name": "laptop" })).await;
    let (_, expiring) = token(&server, "alice", json!({ "name": "short", "expires_in_seconds": 1 })).await;
    assert!(secret.starts_with("raworc_") && secret.len() == 71, "{secret}");
    assert_eq!((&record["name"], &record["expires_at"]), (&json!("laptop"), &Value::Null));
    let listed = server.get("/accounts/alice/tokens").await.1;
    assert_eq!(listed["items"].as_array().unwrap().len(), 3);
    // Neither the answers nor the records tell it.
    assert!(!listed.to_string().contains(&secret));
    let bytes = |text: &str| text.trim_start_matches("raworc_").as_bytes().to_vec();
    for needle in [bytes(&secret), bytes(&expiring), bytes(&server.token)] {
        let files = fs::read_dir(server.data_dir()).unwrap().flatten().map(|entry| entry.path());
        let databases: Vec<PathBuf> = files.filter(|path| path.to_string_lossy().contains("raworc.db")).collect();
        assert!(databases.len() >= 2, "the database and its log: {databases:?}");
        for file in databases {
            let content = fs::read(&file).unwrap();
            assert!(!content.windows(needle.len()).any(|window| window == needle), "a secret is in {}", file.display());
        }
        assert!(
            !server.log().as_bytes().windows(needle.len()).any(|window| window == needle),
            "a secret is in the log"
        );
    }

    let works = async |token: &str| call(&server, token, "GET", "/me", None).await.0;
    // Expiry.
    let deadline = Instant::now() + PATIENCE;
    while works(&expiring).await == 200 {
        assert!(Instant::now() < deadline, "the token does not expire");
    }
    // Revocation; twice is no mistake.
    assert_eq!(works(&secret).await, 200);
    let path = format!("/accounts/alice/tokens/{}", record["id"].as_str().unwrap());
    assert_eq!(server.delete(&path.replace("alice", "admin")).await.0, 404, "it is not the admin's");
    for _ in 0..2 {
        assert_eq!(server.delete(&path).await.0, 204);
        assert_eq!(works(&secret).await, 401);
    }
    // The end of the account; what is there of it stays.
    let (_, last) = token(&server, "alice", json!({ "name": "last" })).await;
    let (status, session) = call(&server, &last, "POST", "/sessions", Some(json!({ "name": "left" }))).await;
    assert_eq!(status, 201, "{session}");
    assert_eq!(server.delete("/accounts/alice").await.0, 204);
    assert_eq!(works(&last).await, 401);
    assert_eq!(server.get("/sessions/left").await.1["created_by"], "alice");
    let (status, problem) = server.post("/accounts/alice/tokens", json!({ "name": "useless" })).await;
    assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("invalid_state")));
    let (status, _) = server.post("/accounts", json!({ "name": "alice", "role": "admin" })).await;
    assert_eq!(status, 409, "nobody takes a closed account's name, and with it its sessions");

    // Every way of not being anybody, on every kind of call.
    let dead = [&expiring, &secret, &last].map(|token| format!("authorization: Bearer {token}"));
    let good = &server.token;
    let mut wrong = vec![
        String::new(),
        "authorization: Bearer".into(),
        "authorization: Bearer ".into(),
        "authorization: Bearer raworc_0000".into(),
        "authorization: Bearer größe".into(),
        "authorization: Bearer ' OR 1=1 --".into(),
        format!("authorization: {good}"),
        format!("authorization: Basic {good}"),
        format!("authorization: Token {good}"),
        format!("authorization: Bearer {}", &good[..good.len() - 1]),
        format!("authorization: Bearer {good}0"),
        format!("authorization: Bearer {}", good.to_uppercase()),
        format!("x-token: {good}"),
    ];
    wrong.extend(dead);
    for (method, path) in [
        ("GET", "/me"),
        ("GET", "/metrics"),
        ("GET", "/sessions"),
        ("POST", "/sessions"),
        ("GET", "/sessions/left/events"),
        ("PUT", "/sessions/left/files/x"),
        ("DELETE", "/agents/shell"),
        ("POST", "/accounts"),
    ] {
        for header in &wrong {
            let answer = exchange(&server, &request(method, path.as_bytes(), &[header], Some(b"{}")));
            answer.must_be_problem(401, "unauthenticated", &format!("{method} {path} {header}"));
        }
    }
    let in_query = exchange(&server, &request("GET", format!("/me?token={good}").as_bytes(), &[], None));
    assert_eq!(in_query.status, 401);
    let answer = exchange(&server, &request("GET", b"/me", &[&format!("Authorization: bEARER  {good} ")], None));
    assert_eq!(answer.status, 200, "the scheme's letters may be of any case");
}

#[tokio::test]
async fn a_stream_ends_with_the_token_it_was_asked_for_with() {
    let server = server_or_skip!();
    let alice = member(&server, "alice").await;
    let (record, lent) = token(&server, "alice", json!({ "name": "lent" })).await;
    let (_, session) = call(&server, &alice, "POST", "/sessions", Some(json!({}))).await;
    let session = format!("/sessions/{}", session["id"].as_str().unwrap());
    let mut stream = server
        .request_as(&lent, reqwest::Method::GET, &format!("{session}/events"))
        .header("accept", "text/event-stream")
        .send()
        .await
        .unwrap();
    let mut seen = String::new();
    while !seen.contains("session.created") {
        seen += &String::from_utf8_lossy(&stream.chunk().await.unwrap().expect("it goes on"));
    }
    let path = format!("/accounts/alice/tokens/{}", record["id"].as_str().unwrap());
    assert_eq!(server.delete(&path).await.0, 204);
    let message = json!({ "content": "echo not for you" });
    assert_eq!(call(&server, &alice, "POST", &format!("{session}/messages"), Some(message)).await.0, 201);
    while let Some(more) = tokio::time::timeout(PATIENCE, stream.chunk()).await.expect("it ends").unwrap() {
        seen += &String::from_utf8_lossy(&more);
    }
    assert!(!seen.contains("not for you"), "{seen}");
}

#[tokio::test]
async fn an_administrator_whose_token_is_lost_gets_a_new_one_at_the_next_start() {
    if !crate::harness::can_run_containers() {
        return;
    }
    let mut server = TestServer::start(&[]);
    let old = server.token.clone();
    let file = server.data_dir().join("admin.token");
    server.stop();
    server.start_again();
    assert_eq!(server.token, old, "a token that is there is kept");
    for lose in [|file: &PathBuf| fs::remove_file(file).unwrap(), |file: &PathBuf| fs::write(file, "\n").unwrap()] {
        let before = server.token.clone();
        server.stop();
        lose(&file);
        server.start_again();
        assert_ne!(server.token, before);
        assert_eq!(server.get("/me").await.1["name"], "admin");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    }
    assert_eq!(server.get("/accounts").await.1["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_done_and_what_is_refused_is_in_the_audit_trail() {
    let server = server_or_skip!();
    let alice = member(&server, "alice").await;
    let (_, session) = call(&server, &alice, "POST", "/sessions", Some(json!({ "name": "s" }))).await;
    let id = session["id"].as_str().unwrap();
    server.until(id, |session| session["state"] == "READY").await;
    for (method, path, body, status) in [
        ("POST", "/sessions/s/exec", Some(json!({ "command": "true" })), 200),
        ("PUT", "/sessions/s/files/f", None, 201),
        ("DELETE", "/sessions/s/files/f", None, 204),
        ("PUT", "/sessions/s", Some(json!({ "metadata": {} })), 200),
        ("PUT", "/sessions/s/agents", Some(json!({ "agent_ids": ["shell"] })), 200),
        ("POST", "/sessions/s/messages", Some(json!({ "content": "true" })), 201),
        ("POST", "/sessions/s/restore", None, 409),
        ("POST", "/agents", Some(json!({ "name": "x" })), 403),
        ("DELETE", "/accounts/alice", None, 403),
        ("POST", "/sessions/s/terminate", None, 200),
        ("DELETE", "/sessions/s", None, 200),
    ] {
        let (seen, answer) = call(&server, &alice, method, path, body).await;
        assert_eq!(seen, status, "{method} {path}: {answer}");
    }
    // Another's session looks as if it were not there, and asking for it is recorded all the same.
    let (_, other) = server.post("/sessions", json!({})).await;
    let other = other["id"].as_str().unwrap();
    assert_eq!(call(&server, &alice, "GET", &format!("/sessions/{other}"), None).await.0, 404);
    assert_eq!(call(&server, &alice, "GET", "/audit", None).await.0, 403);
    let entries = async |query: &str| {
        let (status, page) = server.get(&format!("/audit{query}")).await;
        assert_eq!(status, 200, "{page}");
        page["items"].as_array().unwrap().clone()
    };
    eventually("what was refused is recorded", async || entries("?outcome=refused").await.len() == 4).await;
    let told = |entries: &[Value]| {
        let word = |entry: &Value, name: &str| entry[name].as_str().unwrap().to_owned();
        let line = |entry: &Value| {
            let target = word(entry, "target").replace(id, "ID").replace(other, "OTHER");
            [word(entry, "actor"), word(entry, "action"), target].join(" ")
        };
        entries.iter().rev().map(line).collect::<Vec<_>>()
    };
    let done = "session.create session.exec file.written file.deleted session.update session.assign message.send \
                session.terminate session.delete";
    let expected: Vec<String> = done.split_whitespace().map(|action| format!("alice {action} ID")).collect();
    assert_eq!(told(&entries("?actor=alice&outcome=done").await), expected);
    let refused = [
        "alice DELETE /accounts/{id} /accounts/alice",
        "alice GET /audit /audit",
        "alice GET /sessions/{id} /sessions/OTHER",
        "alice POST /agents /agents",
    ];
    // Each is recorded by itself, so their order is nearly that of the calls.
    let mut found = told(&entries("?outcome=refused").await);
    found.sort();
    assert_eq!(found, refused);
    let all = entries("").await;
    assert!(told(&all).iter().any(|line| line.starts_with("admin account.create")), "{all:#?}");
    // In pages, and by time.
    let (_, first) = server.get("/audit?limit=3").await;
    let rest = entries(&format!("?cursor={}&limit=500", first["next_cursor"].as_str().unwrap())).await;
    assert_eq!([first["items"].as_array().unwrap().clone(), rest].concat(), all);
    let newest = all.iter().map(|entry| entry["at"].as_str().unwrap()).max().unwrap();
    assert_eq!(entries(&format!("?after={newest}")).await, [] as [Value; 0]);
    assert!(entries(&format!("?before={newest}&target={id}&action=session.delete")).await.len() == 1);
    assert!(server.get("/audit?outcome=maybe").await.0.is_client_error());
    let output = server.cli(&["audit", "--actor", "alice", "--outcome", "refused", "--since", "1h"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.lines().count() == 5 && text.contains("DELETE /accounts/{id}"), "{text}");
}
