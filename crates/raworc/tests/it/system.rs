//! Health, metrics and version of the server.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::PATIENCE;
use crate::raw::{exchange, request, send};
use crate::server_or_skip;

#[tokio::test]
async fn health_and_version_need_no_token() {
    let server = server_or_skip!();
    let answer = exchange(&server, &request("GET", b"/health", &[], None));
    assert_eq!(answer.status, 200);
    let all = ["disk", "hosts", "launcher", "layers", "loops", "records", "runtime", "secrets", "store"];
    let parts: serde_json::Map<String, Value> = all.iter().map(|part| ((*part).to_owned(), json!("ok"))).collect();
    assert_eq!(answer.json(), json!({ "status": "ok", "parts": parts }));
    let answer = exchange(&server, &request("GET", b"/version", &[], None));
    assert_eq!(answer.json(), json!({ "name": "raworc", "version": env!("CARGO_PKG_VERSION") }));
    let output = server.cli(&["health", "--output", "json"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["status"], "ok");
}

#[tokio::test]
async fn metrics_count_what_happens() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let rests = server.session(json!({})).await;
    server.post(&format!("/sessions/{rests}/pause"), json!({})).await;
    server.until(&rests, |session| session["state"] == "IDLE").await;
    server.delete(&format!("/sessions/{}", server.session(json!({})).await)).await;
    for _ in 0..3 {
        assert_eq!(server.get("/sessions/nobody").await.0, 404);
    }
    // A host may be ready before the runtime has said that its container is started.
    let deadline = Instant::now() + PATIENCE;
    let answer = loop {
        let answer = send(&server, "GET", "/metrics", &[], b"");
        assert_eq!(answer.status, 200);
        let text = String::from_utf8_lossy(&answer.body);
        if text.contains("raworc_container_start_seconds_count 3\n") {
            break answer;
        }
        assert!(Instant::now() < deadline, "three containers were started: {text}");
    };
    assert_eq!(answer.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let text = String::from_utf8(answer.body).unwrap();
    assert!(text.ends_with("# EOF\n"), "{text}");
    let mut types = Vec::new();
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# ") {
            let words: Vec<&str> = rest.splitn(3, ' ').collect();
            assert!(matches!(words[0], "HELP" | "TYPE" | "UNIT") && words.len() == 3, "{line}");
            types.push(words[1]);
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(types.iter().any(|family| name.starts_with(family)), "{line}");
        assert!(value.parse::<f64>().unwrap() >= 0.0, "{line}");
        assert!(!line.contains(&id), "no ids in labels: {line}");
    }
    let value = |name: &str| -> f64 {
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    };
    assert_eq!(value("raworc_sessions{state=\"READY\"}"), 1.0);
    assert_eq!(value("raworc_sessions{state=\"IDLE\"}"), 1.0, "deleted ones do not count");
    assert_eq!(value("raworc_sessions{state=\"ERROR\"}"), 0.0);
    assert_eq!(value("raworc_http_requests_total{status=\"404\"}"), 3.0);
    assert_eq!(value("raworc_http_requests_total{status=\"201\"}"), 3.0);
    assert!(value("raworc_hosts_connected") >= 1.0);
}

#[tokio::test]
async fn the_document_is_sound_and_everything_in_it_asks_for_a_token() {
    let server = server_or_skip!();
    let document = exchange(&server, &request("GET", b"/openapi.json", &[], None)).json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{}", document["openapi"]);
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    match std::fs::read(&committed) {
        Ok(text) => assert!(
            serde_json::from_slice::<Value>(&text).unwrap() == document,
            "docs/openapi.json is not what the server answers; make it again"
        ),
        Err(_) => eprintln!("SKIPPED: there is no docs/openapi.json to compare with"),
    }
    let mut names = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            names.push(operation["operationId"].as_str().unwrap().to_owned());
            let target = path.trim_start_matches("/api/v0").replace("{id}", "x").replace("{path}", "x");
            let target = target.replace("{message_id}", "x").replace("{token_id}", "x");
            let answer = exchange(&server, &request(&method.to_uppercase(), target.as_bytes(), &[], Some(b"")));
            let context = format!("{method} {target}");
            if ["/health", "/version", "/openapi.json"].contains(&target.as_str()) {
                assert_eq!(answer.status, 200, "{context}");
                // None is asked for; `health` tells more to an administrator.
                assert_eq!(operation["security"][0], json!({}), "{context}");
            } else {
                // The token is asked for before anything else is looked at.
                answer.must_be_problem(401, "unauthenticated", &context);
                assert!(operation["responses"]["401"].is_object(), "{context}");
                assert_eq!(operation["security"], Value::Null, "{context}: the document's own applies");
            }
        }
    }
    assert!(names.len() >= 38, "{names:?}");
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all, "each operation has a name of its own");
    let references = document.to_string();
    for reference in references.split("\"$ref\":\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(document.pointer(reference).is_some(), "{reference} leads nowhere");
    }
}
