//! Invalid requests: each gets a problem that names the error, and changes nothing.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::TestServer;
use crate::raw::{exchange, request, send};
use crate::server_or_skip;

/// Longer than any valid name.
const LONG: &str = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
pub const NO_SUCH_ID: &str = "0198f1d2-0000-7000-8000-000000000000";

/// All state that a caller could have changed.
pub async fn everything(server: &TestServer) -> Value {
    let mut seen = Vec::new();
    for list in ["/sessions?include_deleted=true&limit=500", "/agents?limit=500", "/accounts?limit=500"] {
        let (status, page) = server.get(list).await;
        assert_eq!(status, 200, "{page}");
        let mut shown = page.clone();
        for session in shown["items"].as_array_mut().unwrap().iter_mut().filter(|_| list.starts_with("/sessions")) {
            // Also counts what is not shown, such as the end of a container. What anyone did is in `last_seq`.
            session.as_object_mut().unwrap().remove("updated_at");
        }
        seen.push(shown);
        for item in page["items"].as_array().unwrap() {
            let id = item["id"].as_str().unwrap();
            let below: &[&str] = match list.as_bytes()[1] {
                b's' => &["messages", "agents", "files"],
                _ if list.starts_with("/accounts") => &["tokens"],
                _ => &[],
            };
            let kind = if list.starts_with("/sessions") { "sessions" } else { "accounts" };
            for noun in below {
                seen.push(server.get(&format!("/{kind}/{id}/{noun}")).await.1);
            }
        }
    }
    Value::from(seen)
}

/// A session without changes of its own.
pub async fn still_session(server: &TestServer, name: &str) -> String {
    server.session(json!({ "name": name, "waiting_timeout_seconds": 3600 })).await
}

#[tokio::test]
async fn a_wrong_field_is_named_and_nothing_happens() {
    let server = server_or_skip!();
    let id = still_session(&server, "still").await;
    server.post("/agents", json!({ "name": "mine" })).await;
    let before = everything(&server).await;
    let (_, shell) = server.get("/agents/shell").await;
    let seventeen: Vec<String> = (0..17).map(|n| format!("a{n}")).collect();
    let many_variables: serde_json::Map<String, Value> = (0..257).map(|n| (format!("V{n}"), json!("x"))).collect();
    let too_long = "x".repeat(1024 * 1024 + 1);
    let sessions = "/sessions".to_owned();
    let (session, assigned) = (format!("/sessions/{id}"), format!("/sessions/{id}/agents"));
    let (messages, exec) = (format!("/sessions/{id}/messages"), format!("/sessions/{id}/exec"));
    let (agents, agent) = ("/agents".to_owned(), "/agents/mine".to_owned());
    let (accounts, tokens) = ("/accounts".to_owned(), "/accounts/admin/tokens".to_owned());

    // What several endpoints have in common: (endpoints, field, wrong values).
    let titles = json!(["", " x", "x ", "a\nb", "a\r\nX-Evil: 1", "a\u{1b}[31m", "a\0", LONG, NO_SUCH_ID, 1, [], {}]);
    let handles = json!(["a b", "-a", ".a", "a/b", "größe", "a\r\nb", "", LONG, NO_SUCH_ID, true]);
    let naturals = json!([0, -1, 1.5, 1e300, "5", 18446744073709551615_u64, [1], true]);
    let metadata = json!([[], "x", 1, { "x": "y".repeat(65536) }]);
    let env = json!([[], { "A B": "x" }, { "": "x" }, { "A=B": "x" }, { "RAWORC_X": "x" }, { "A": "a\0" }, many_variables,
        { "A": "x".repeat(65537) }]);
    let mut table: Vec<(&str, &String, Value, Vec<String>)> = Vec::new();
    let mut add = |method, path, field: &str, values: &Value, rest: Value| {
        for value in values.as_array().unwrap() {
            let mut body = rest.clone();
            match field.split_once('.') {
                Some((outer, inner)) => body[outer] = json!({ inner: value }),
                None => body[field] = value.clone(),
            }
            table.push((method, path, body, vec![field.to_owned()]));
        }
    };
    for (method, path) in [("POST", &sessions), ("PUT", &session)] {
        add(method, path, "name", &titles, json!({}));
        add(method, path, "waiting_timeout_seconds", &naturals, json!({}));
        add(method, path, "ttl_seconds", &naturals, json!({}));
        add(method, path, "metadata", &metadata, json!({}));
        add(method, path, "env", &env, json!({}));
        add(method, path, "background_activity", &json!(["yes", 1]), json!({}));
        add(method, path, "resources.cpu", &json!([0, -1, 0.001, 1025, "1"]), json!({}));
        let memory = json!([0, -1, 1024, 1.5, "4X", "", "-1Gi", 1_u64 << 51, "99999999999Ti", true]);
        add(method, path, "resources.memory", &memory, json!({}));
        add(method, path, "resources.pids", &json!([0, 15, -1, 1.5, 4194305, 1_u64 << 40]), json!({}));
        add(method, path, "resources.cpus", &json!([1]), json!({}));
    }
    add("POST", &sessions, "starting_prompt", &json!(["a\0b", too_long, 1]), json!({}));
    for path in [&sessions, &assigned] {
        let method = if *path == sessions { "POST" } else { "PUT" };
        add(method, path, "agent_ids", &json!([[], "shell", seventeen]), json!({}));
    }
    add("POST", &messages, "content", &json!(["", "a\0b", too_long, 1]), json!({}));
    add("POST", &messages, "agent", &json!(["nobody", "", "mine", 1]), json!({ "content": "true" }));
    add("POST", &messages, "metadata", &metadata, json!({ "content": "true" }));
    let commands = json!(["", [], [""], "a\0", ["a", "b\0"], too_long, ["x".repeat(131072)], 5, [1], {}]);
    add("POST", &exec, "command", &commands, json!({}));
    add("POST", &exec, "directory", &json!(["", "/a\0b", "/".repeat(4096), 1]), json!({ "command": "true" }));
    add("POST", &exec, "timeout_seconds", &naturals, json!({ "command": "true" }));
    add("POST", &exec, "stdin", &json!(["text", 1]), json!({ "command": "true" }));
    add("POST", &exec, "env", &env, json!({ "command": "true" }));
    for (method, path) in [("POST", &agents), ("PUT", &agent)] {
        add(method, path, "name", &handles, json!({}));
        add(method, path, "runtime", &json!(["python", "", 1]), json!({ "name": "new" }));
        add(method, path, "model", &json!(["", "a\nb", LONG]), json!({ "name": "new" }));
        add(method, path, "description", &json!([too_long, 1]), json!({ "name": "new" }));
        add(method, path, "config.timeout_seconds", &json!([0, 86401, -1]), json!({ "name": "new" }));
        add(method, path, "config.env", &env, json!({ "name": "new" }));
        add(method, path, "config.prompt", &json!(["x"]), json!({ "name": "new" }));
        add(method, path, "metadata", &metadata, json!({ "name": "new" }));
    }
    add("POST", &accounts, "name", &handles, json!({ "role": "member" }));
    add("POST", &accounts, "role", &json!(["root", "", "Admin", 1]), json!({ "name": "new" }));
    add("POST", &tokens, "name", &titles, json!({}));
    add("POST", &tokens, "expires_in_seconds", &naturals, json!({ "name": "new" }));

    // What is its own.
    let own = [
        ("POST", &sessions, json!({ "name": "", "ttl_seconds": 0 }), vec!["name", "ttl_seconds"]),
        ("POST", &sessions, json!({ "agent_ids": ["shell", "nobody"] }), vec!["agent_ids[1]"]),
        ("POST", &sessions, json!({ "agent_ids": ["shell", "shell"] }), vec!["agent_ids[1]"]),
        ("POST", &sessions, json!({ "agent_ids": ["shell", shell["id"]] }), vec!["agent_ids[1]"]),
        ("POST", &sessions, json!({ "agent_ids": ["shell", 1] }), vec!["agent_ids[1]"]),
        ("POST", &sessions, json!({ "env": { "A": 1 } }), vec!["env.A"]),
        ("POST", &sessions, json!({ "resources": { "cpu": 0, "pids": 1 } }), vec!["resources.cpu", "resources.pids"]),
        ("PUT", &session, json!({ "state": "READY" }), vec!["state"]),
        ("PUT", &session, json!({ "agent_ids": ["shell"] }), vec!["agent_ids"]),
        ("PUT", &assigned, json!({}), vec!["agent_ids"]),
        ("PUT", &assigned, json!({ "agent_ids": ["mine", "nobody"] }), vec!["agent_ids[1]"]),
        ("POST", &messages, json!({}), vec!["content"]),
        ("POST", &messages, json!({ "content": "true", "role": "agent" }), vec!["role"]),
        ("POST", &exec, json!({}), vec!["command"]),
        ("POST", &exec, json!({ "command": "true", "user": "root" }), vec!["user"]),
        ("POST", &agents, json!({}), vec!["name"]),
        ("PUT", &agent, json!({}), vec!["name"]),
        ("POST", &agents, json!({ "name": "new", "builtin": true }), vec!["builtin"]),
        ("POST", &accounts, json!({}), vec!["name"]),
        ("POST", &accounts, json!({ "name": "new" }), vec!["role"]),
        ("POST", &tokens, json!({}), vec!["name"]),
        ("POST", &tokens, json!({ "name": "new", "token": "mine" }), vec!["token"]),
    ];
    table.extend(own.map(|(m, p, b, fields)| (m, p, b, fields.into_iter().map(str::to_owned).collect())));
    let mut seen = 0;
    for (method, path, body, fields) in &table {
        let text = body.to_string();
        let context: String = format!("{method} {path} {text}").chars().take(200).collect();
        let answer = send(&server, method, path, &[], text.as_bytes());
        answer.must_be_problem(422, "invalid_input", &context);
        let at_fault: Vec<String> = answer.fields();
        let inside = |field: &String| at_fault.iter().any(|f| f == field || f.starts_with(&format!("{field}[")));
        assert!(at_fault.len() == fields.len() && fields.iter().all(inside), "{context}: {at_fault:?} not {fields:?}");
        seen += 1;
    }
    assert!(seen > 250, "{seen}");
    assert_eq!(everything(&server).await, before);
}

#[tokio::test]
async fn a_body_that_is_no_json_object_is_refused_everywhere() {
    let server = server_or_skip!();
    let id = still_session(&server, "still").await;
    server.post("/agents", json!({ "name": "mine" })).await;
    let before = everything(&server).await;
    let endpoints = [
        ("POST", "/sessions".to_owned()),
        ("PUT", format!("/sessions/{id}")),
        ("PUT", format!("/sessions/{id}/agents")),
        ("POST", format!("/sessions/{id}/messages")),
        ("POST", format!("/sessions/{id}/exec")),
        ("POST", "/agents".to_owned()),
        ("PUT", "/agents/mine".to_owned()),
        ("POST", "/accounts".to_owned()),
        ("POST", "/accounts/admin/tokens".to_owned()),
    ];
    let deep = [b"{\"metadata\":{\"a\":".as_slice(), &b"[".repeat(100_000), &b"]".repeat(100_000), b"}}"].concat();
    let bodies: [(&[u8], u16, &str); 10] = [
        (b"", 400, "invalid_body"),
        (b"{", 400, "invalid_body"),
        (b"{'name': 1}", 400, "invalid_body"),
        (b"name=x", 400, "invalid_body"),
        (b"\xff\xfe{}", 400, "invalid_body"),
        (b"[]", 422, "invalid_input"),
        (b"[\"a\"]", 422, "invalid_input"),
        (b"null", 422, "invalid_input"),
        (b"\"x\"", 422, "invalid_input"),
        (b"7", 422, "invalid_input"),
    ];
    let json_type = "content-type: application/json";
    for (method, path) in &endpoints {
        for (body, status, code) in bodies {
            let context = format!("{method} {path} {}", String::from_utf8_lossy(body));
            send(&server, method, path, &[json_type], body).must_be_problem(status, code, &context);
        }
        for wrong in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
            let header = format!("content-type: {wrong}");
            send(&server, method, path, &[&header], b"{}").must_be_problem(415, "unsupported_media_type", wrong);
        }
    }
    let duplicate = b"{\"name\":\"a\",\"name\":\"b\"}";
    let answer = send(&server, "POST", "/sessions", &[], duplicate);
    answer.must_be_problem(422, "invalid_input", "duplicate key");
    assert_eq!(answer.fields(), ["name"]);
    for text in [b"{\"name\":\"\xff\"}".as_slice(), b"{\"name\":\"\\ud800\"}"] {
        send(&server, "POST", "/sessions", &[], text).must_be_problem(400, "invalid_body", "not Unicode");
    }
    send(&server, "POST", "/sessions", &[], b"{} {}").must_be_problem(400, "invalid_body", "two documents");
    send(&server, "POST", "/sessions", &[], &deep).must_be_problem(400, "invalid_body", "deep");
    send(&server, "POST", "/sessions", &[], b"{\"ttl_seconds\":1e999}").must_be_problem(400, "invalid_body", "1e999");

    // Too large: announced, and without saying so before.
    let body = format!("{{\"content\":\"{}\"}}", "x".repeat(4 * 1024 * 1024));
    let path = format!("/sessions/{id}/messages");
    send(&server, "POST", &path, &[], body.as_bytes()).must_be_problem(413, "too_large", "announced");
    let token = format!("authorization: Bearer {}", server.token);
    let headers = [token.as_str(), json_type, "transfer-encoding: chunked"];
    let mut chunked = request("POST", path.as_bytes(), &headers, None);
    for chunk in body.as_bytes().chunks(65536) {
        chunked.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        chunked.extend_from_slice(chunk);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    exchange(&server, &chunked).must_be_problem(413, "too_large", "chunked");
    // An ordinary client that sends far too much hears why, instead of a connection that breaks.
    for _ in 0..5 {
        let much = json!({ "content": "x".repeat(8 * 1024 * 1024) });
        assert_eq!(server.post(&path, much).await.0, 413);
    }
    let announced = format!("content-length: {}", 1_u64 << 40);
    let huge = request("PUT", format!("/sessions/{id}/files/x").as_bytes(), &[&token, &announced], None);
    exchange(&server, &huge).must_be_problem(413, "too_large", "a file of a tebibyte");
    assert_eq!(everything(&server).await, before);
}

#[tokio::test]
async fn wrong_queries_headers_paths_and_methods_are_told_apart() {
    let server = server_or_skip!();
    let id = still_session(&server, "still").await;
    let before = everything(&server).await;
    let s = format!("/sessions/{id}");
    let stream = "accept: text/event-stream";
    let long_key = format!("idempotency-key: {}", "k".repeat(256));
    // Method, target, extra header, status, code, fields.
    type Row<'a> = (&'a str, String, &'a str, u16, &'a str, &'a [&'a str]);
    let table: Vec<Row<'_>> = vec![
        ("GET", "/sessions?limit=0".into(), "", 422, "invalid_input", &["limit"]),
        ("GET", "/sessions?limit=501".into(), "", 422, "invalid_input", &["limit"]),
        ("GET", "/sessions?limit=-1".into(), "", 400, "invalid_request", &["limit"]),
        ("GET", "/sessions?limit=abc".into(), "", 400, "invalid_request", &["limit"]),
        ("GET", "/sessions?limit=4294967296".into(), "", 400, "invalid_request", &["limit"]),
        ("GET", "/sessions?limit=1&limit=2".into(), "", 400, "invalid_request", &["limit"]),
        ("GET", "/sessions?limt=1".into(), "", 400, "invalid_request", &["limt"]),
        ("GET", "/sessions?state=ready".into(), "", 400, "invalid_request", &["state"]),
        ("GET", "/sessions?parent=x".into(), "", 400, "invalid_request", &["parent"]),
        ("GET", "/sessions?include_deleted=maybe".into(), "", 400, "invalid_request", &["include_deleted"]),
        ("GET", "/sessions?cursor=x".into(), "", 422, "invalid_input", &["cursor"]),
        ("GET", format!("/sessions?cursor=1:{LONG}"), "", 422, "invalid_input", &["cursor"]),
        ("GET", format!("{s}/messages?cursor=x"), "", 422, "invalid_input", &["cursor"]),
        ("GET", format!("{s}/messages?status=DONE"), "", 400, "invalid_request", &["status"]),
        ("GET", format!("{s}/messages?limit=0"), "", 422, "invalid_input", &["limit"]),
        ("GET", format!("{s}/events?after=-1"), "", 400, "invalid_request", &["after"]),
        ("GET", format!("{s}/events?after=99999999999999999999"), "", 400, "invalid_request", &["after"]),
        ("GET", format!("{s}/events?cursor=1"), "", 400, "invalid_request", &["cursor"]),
        ("GET", format!("{s}/events"), "last-event-id: -1", 400, "invalid_request", &[]),
        ("GET", format!("{s}/events"), "last-event-id: abc", 400, "invalid_request", &[]),
        ("GET", "/agents?limit=0".into(), "", 422, "invalid_input", &["limit"]),
        ("GET", "/agents?q=x".into(), "", 400, "invalid_request", &["q"]),
        ("GET", "/accounts?limit=501".into(), "", 422, "invalid_input", &["limit"]),
        ("GET", "/accounts/admin/tokens?limit=0".into(), "", 422, "invalid_input", &["limit"]),
        ("POST", format!("{s}/messages?wait_seconds=601"), "", 422, "invalid_input", &["wait_seconds"]),
        ("POST", format!("{s}/messages?wait_seconds=x"), "", 400, "invalid_request", &["wait_seconds"]),
        ("POST", format!("{s}/messages?wait=1"), "", 400, "invalid_request", &["wait"]),
        ("POST", format!("{s}/messages"), "idempotency-key: ", 422, "invalid_input", &["Idempotency-Key"]),
        ("POST", format!("{s}/messages"), "idempotency-key: a b", 422, "invalid_input", &["Idempotency-Key"]),
        ("POST", format!("{s}/messages"), "idempotency-key: größe", 422, "invalid_input", &["Idempotency-Key"]),
        ("POST", format!("{s}/messages"), &long_key, 422, "invalid_input", &["Idempotency-Key"]),
        ("PUT", s.clone(), "if-match: v1", 400, "invalid_request", &[]),
        ("PUT", s.clone(), "if-match: \"vx\"", 412, "stale", &[]),
        ("PUT", s.clone(), "if-match: W/\"v1\"", 412, "stale", &[]),
        ("PUT", s.clone(), "if-match: \"v99\"", 412, "stale", &[]),
        ("PUT", s.clone(), "if-match: \"v-1\"", 412, "stale", &[]),
        ("PATCH", s.clone(), "", 405, "method_not_allowed", &[]),
        ("POST", s.clone(), "", 405, "method_not_allowed", &[]),
        ("PUT", "/sessions".into(), "", 405, "method_not_allowed", &[]),
        ("GET", format!("{s}/pause"), "", 405, "method_not_allowed", &[]),
        ("POST", format!("{s}/files/x"), "", 405, "method_not_allowed", &[]),
        ("DELETE", format!("{s}/files"), "", 405, "method_not_allowed", &[]),
        ("POST", "/health".into(), "", 405, "method_not_allowed", &[]),
        ("GET", String::new(), "", 404, "not_found", &[]),
        ("GET", "/nothing".into(), "", 404, "not_found", &[]),
        ("POST", format!("{s}/explode"), "", 404, "not_found", &[]),
        ("GET", format!("{s}/messages/{NO_SUCH_ID}"), "", 404, "not_found", &[]),
        ("GET", format!("{s}/messages/x"), "", 404, "not_found", &[]),
        ("DELETE", "/accounts/admin/tokens/x".into(), "", 404, "not_found", &[]),
        ("DELETE", format!("/accounts/admin/tokens/{NO_SUCH_ID}"), "", 404, "not_found", &[]),
        ("GET", "/sessions/%FF".into(), "", 400, "invalid_request", &[]),
        ("GET", format!("{s}/files/%FF"), "", 404, "not_found", &[]),
        ("GET", format!("{s}/files?limit=0"), "", 422, "invalid_input", &["limit"]),
        ("GET", format!("{s}/files?limit=10001"), "", 422, "invalid_input", &["limit"]),
        ("GET", format!("{s}/files?cursor=!"), "", 422, "invalid_input", &["cursor"]),
        ("GET", format!("{s}/files?folow=false"), "", 400, "invalid_request", &["folow"]),
        ("PUT", format!("{s}/files/x?mode=0799"), "", 422, "invalid_input", &["mode"]),
        ("PUT", format!("{s}/files/x?mode=+755"), "", 422, "invalid_input", &["mode"]),
        ("PUT", format!("{s}/files/x?mode=10000"), "", 422, "invalid_input", &["mode"]),
        ("GET", format!("{s}/files/a%00b"), "", 422, "invalid_input", &["path"]),
        ("GET", format!("{s}/files/{}", "x".repeat(256)), "", 422, "invalid_input", &["path"]),
        ("PUT", format!("{s}/files/%2e%2e%2fx"), "", 422, "invalid_input", &["path"]),
        ("PUT", format!("{s}/files/."), "", 422, "invalid_input", &["path"]),
        ("GET", "/sessions/still%00".into(), "", 404, "not_found", &[]),
        ("GET", "/sessions/still%0d%0aX-Evil:%201".into(), "", 404, "not_found", &[]),
        ("POST", "/agents?x=1".into(), "", 422, "invalid_input", &["content"]),
        ("PUT", "/agents/shell".into(), "", 422, "invalid_input", &["content"]),
        ("DELETE", "/agents/shell".into(), "", 403, "forbidden", &[]),
        ("DELETE", "/agents/nobody".into(), "", 404, "not_found", &[]),
        ("DELETE", "/accounts/admin".into(), "", 409, "invalid_state", &[]),
        ("DELETE", "/accounts/nobody".into(), "", 404, "not_found", &[]),
    ];
    for (method, target, header, status, code, fields) in &table {
        let body: &[u8] = match *method {
            "GET" | "DELETE" => b"",
            _ if target == &s => b"{}",
            _ => b"{\"content\":\"true\"}",
        };
        let extra = if header.starts_with("last-event-id") { vec![stream, *header] } else { vec![*header] };
        let answer = send(&server, method, target, &extra, body);
        let context = format!("{method} {target} {header}");
        answer.must_be_problem(*status, code, &context);
        assert_eq!(answer.fields(), *fields, "{context}: {}", answer.json());
        assert!(answer.headers.iter().all(|(name, _)| name != "x-evil"), "{context}");
    }
    // Bytes that are no text, in the path itself.
    let token = format!("authorization: Bearer {}", server.token);
    let answer = exchange(&server, &request("GET", b"/sessions/\xff", &[&token], None));
    assert!(matches!(answer.status, 400 | 404), "{answer:?}");
    // The path of a page is no session.
    for garbage in ["x", NO_SUCH_ID, "..%2fadmin", "%20", "..;", "0", "null"] {
        for (method, below, body) in [
            ("GET", "", ""),
            ("PUT", "", "{}"),
            ("DELETE", "", ""),
            ("POST", "/pause", ""),
            ("POST", "/resume", ""),
            ("POST", "/terminate", ""),
            ("POST", "/restart", ""),
            ("POST", "/restore", ""),
            ("POST", "/cancel", ""),
            ("GET", "/agents", ""),
            ("PUT", "/agents", r#"{"agent_ids":["shell"]}"#),
            ("GET", "/messages", ""),
            ("POST", "/messages", r#"{"content":"true"}"#),
            ("GET", "/messages/x", ""),
            ("GET", "/events", ""),
            ("POST", "/exec", r#"{"command":"true"}"#),
            ("GET", "/files", ""),
            ("GET", "/files/x", ""),
            ("PUT", "/files/x", "x"),
            ("DELETE", "/files/x", ""),
        ] {
            let target = format!("/sessions/{garbage}{below}");
            let answer = send(&server, method, &target, &[], body.as_bytes());
            answer.must_be_problem(404, "not_found", &format!("{method} {target}"));
        }
    }
    assert_eq!(everything(&server).await, before);
}

#[tokio::test]
async fn a_state_that_forbids_it_is_named() {
    let server = server_or_skip!();
    let long = json!({ "waiting_timeout_seconds": 3600 });
    let live = still_session(&server, "live").await;
    let paused = server.session(long.clone()).await;
    let ended = server.session(long.clone()).await;
    let deleted = server.session(long).await;
    for (id, wish) in [(&paused, "pause"), (&ended, "terminate")] {
        assert_eq!(server.post(&format!("/sessions/{id}/{wish}"), json!({})).await.0, 200);
        // Twice is no mistake.
        assert_eq!(server.post(&format!("/sessions/{id}/{wish}"), json!({})).await.0, 200);
        server.until(id, |session| session["state"] == "IDLE").await;
    }
    assert_eq!(server.delete(&format!("/sessions/{deleted}")).await.0, 200);
    server.until(&deleted, |session| session["state"] == "IDLE").await;
    for _ in 0..2 {
        assert_eq!(server.post("/sessions", json!({ "name": "twin" })).await.0, 201);
    }
    let twins = server.get("/sessions?q=twin").await.1;
    for twin in twins["items"].as_array().unwrap() {
        let id = twin["id"].as_str().unwrap();
        server.post(&format!("/sessions/{id}/terminate"), json!({})).await;
        server.until(id, |session| session["state"] == "IDLE").await;
    }
    let before = everything(&server).await;
    let (message, exec) = (r#"{"content":"true"}"#, r#"{"command":"true"}"#);
    for (id, method, below, body, code) in [
        (&live, "POST", "restore", "", "invalid_state"),
        (&live, "POST", "cancel", "", "invalid_state"),
        (&paused, "POST", "exec", exec, "session_paused"),
        (&paused, "POST", "restart", "", "session_paused"),
        (&paused, "POST", "cancel", "", "invalid_state"),
        (&ended, "POST", "messages", message, "session_terminated"),
        (&ended, "POST", "exec", exec, "session_terminated"),
        (&ended, "POST", "pause", "", "session_terminated"),
        (&ended, "POST", "resume", "", "session_terminated"),
        (&ended, "POST", "restart", "", "session_terminated"),
        (&ended, "PUT", "files/x", "x", "session_terminated"),
        (&ended, "DELETE", "files/x", "", "session_terminated"),
        (&deleted, "POST", "messages", message, "session_deleted"),
        (&deleted, "POST", "exec", exec, "session_deleted"),
        (&deleted, "POST", "pause", "", "session_deleted"),
        (&deleted, "POST", "restart", "", "session_deleted"),
        (&deleted, "PUT", "files/x", "x", "session_deleted"),
        (&deleted, "DELETE", "", "", "session_deleted"),
    ] {
        let target = format!("/sessions/{id}/{below}").trim_end_matches('/').to_owned();
        let answer = send(&server, method, &target, &[], body.as_bytes());
        answer.must_be_problem(409, code, &format!("{method} {below} {code}"));
    }
    for (method, below) in [("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("GET", "/messages"), ("GET", "/files")] {
        let answer = send(&server, method, &format!("/sessions/twin{below}"), &[], b"");
        answer.must_be_problem(409, "ambiguous_name", below);
    }
    let taken = [("/agents", r#"{"name":"shell"}"#), ("/accounts", r#"{"name":"admin","role":"admin"}"#)];
    for (path, body) in taken {
        send(&server, "POST", path, &[], body.as_bytes()).must_be_problem(409, "name_taken", path);
    }
    send(&server, "PUT", "/agents/shell", &[], br#"{"name":"shell"}"#).must_be_problem(403, "forbidden", "shell");
    assert_eq!(everything(&server).await, before);
    // A name whose other owners are gone is no longer ambiguous.
    let twin = twins["items"][0]["id"].as_str().unwrap();
    assert_eq!(server.delete(&format!("/sessions/{twin}")).await.0, 200);
    assert_eq!(server.get("/sessions/twin").await.0, 200);
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    server.post(&format!("/sessions/{id}/pause"), json!({})).await;
    let path = format!("/sessions/{id}/messages");
    let send_one = || server.post(&path, json!({ "content": "true" }));
    for _ in 0..20 {
        let sent = futures::future::join_all((0..50).map(|_| send_one())).await;
        assert!(sent.iter().all(|(status, _)| *status == 201), "{sent:?}");
    }
    send(&server, "POST", &path, &[], br#"{"content":"true"}"#).must_be_problem(429, "busy", "the queue");
    assert_eq!(server.get(&format!("/sessions/{id}")).await.1["queued_messages"], 1000);
}

#[tokio::test]
async fn an_update_without_a_body_or_with_an_old_version_changes_nothing() {
    let server = server_or_skip!();
    let id = still_session(&server, "still").await;
    server.post("/agents", json!({ "name": "mine", "description": "first" })).await;
    for (path, body) in
        [(format!("/sessions/{id}"), json!({ "name": "new" })), ("/agents/mine".to_owned(), json!({ "name": "mine" }))]
    {
        let etag = server.request(Method::GET, &path).send().await.unwrap().headers()["etag"].clone();
        let put = || server.request(Method::PUT, &path).header("if-match", &etag).json(&body).send();
        assert_eq!(put().await.unwrap().status(), 200, "{path}");
        let before = everything(&server).await;
        assert_eq!(put().await.unwrap().status(), 412, "{path}");
        assert_eq!(everything(&server).await, before);
    }
}
