//! Programs in a session call models, by the gateway, and have no key.

use serde_json::{Value, json};

use crate::harness::TestServer;
use crate::server_or_skip;
use crate::stub_provider::{Answer, Asked, StubProvider};

const KEY: &str = "sk-the-real-key-0123456789";

/// A provider that says what it was asked last.
async fn provider(server: &TestServer) -> StubProvider {
    let stub = StubProvider::start(|asked: &Asked| {
        let last = asked.body["messages"].as_array().and_then(|all| all.last()?["content"].as_str()).unwrap_or_default();
        Answer::Json(200, json!({ "id": "1", "object": "chat.completion", "created": 1, "model": asked.body["model"], "extra": [1],
            "choices": [{ "index": 0, "finish_reason": "stop", "message": { "role": "assistant", "content": format!("you said {last}") } }],
            "usage": { "prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16 } }))
    })
    .await;
    let body = json!({ "name": "stub", "kind": "openai", "base_url": format!("{}/v1", stub.url), "api_key": KEY,
        "models": [{ "id": "small-1", "aliases": ["small"], "price": { "input_per_million": 2, "output_per_million": 10 } }] });
    let (status, answer) = server.post("/providers", body).await;
    assert_eq!(status, 201, "{answer}");
    stub
}

/// Runs a script in the session; its output as JSON.
async fn told(server: &TestServer, id: &str, script: &str) -> Value {
    let (status, ran) = server.post(&format!("/sessions/{id}/exec"), json!({ "command": script })).await;
    assert_eq!(status, 200, "{ran}");
    let output = ran["stdout"].as_str().unwrap();
    serde_json::from_str(output).unwrap_or_else(|_| json!(format!("{output}{}", ran["stderr"].as_str().unwrap())))
}

const OPENAI: &str = r#"curl -sS "$OPENAI_BASE_URL/chat/completions" -H "authorization: Bearer $OPENAI_API_KEY" \
    -H 'content-type: application/json' -d '{"model": "MODEL", "messages": [{"role": "user", "content": "hi"}]}'"#;
const ANTHROPIC: &str = r#"curl -sS "$ANTHROPIC_BASE_URL/v1/messages" -H "x-api-key: $ANTHROPIC_API_KEY" -H 'anthropic-version: 2023-06-01' \
    -H 'content-type: application/json' -d '{"model": "small", "max_tokens": 9, "messages": [{"role": "user", "content": "ho"}]}'"#;

#[tokio::test]
async fn programs_call_models_in_the_apis_that_they_know_and_have_no_key() {
    let server = server_or_skip!();
    let stub = provider(&server).await;
    let id = server.session(json!({})).await;
    let answer = told(&server, &id, &OPENAI.replace("MODEL", "small")).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "you said hi", "{answer:#}");
    assert_eq!(answer["extra"], json!([1]), "what nobody here knows is passed on");
    let answer = told(&server, &id, ANTHROPIC).await;
    assert_eq!(
        (&answer["type"], &answer["content"][0]["text"]),
        (&json!("message"), &json!("you said ho")),
        "{answer:#}"
    );
    assert_eq!(answer["usage"]["output_tokens"], 5, "{answer:#}");
    for asked in stub.asked() {
        assert_eq!(asked.body["model"], "small-1", "an alias is resolved");
        assert!(asked.head.contains(&format!("authorization: bearer {KEY}")), "{}", asked.head);
        assert!(!asked.head.contains("raworc"), "the worthless key stays inside: {}", asked.head);
    }
    // A turn's programs speak for the turn.
    let message = server.send(&id, &OPENAI.replace("MODEL", "small")).await;
    let events = server.events(&id).await;
    let calls: Vec<&Value> =
        events.iter().filter(|event| event["type"] == "model.called").map(|event| &event["data"]).collect();
    assert_eq!(calls.len(), 3, "{calls:#?}");
    assert_eq!((&calls[0]["agent"], &calls[2]["agent"]), (&Value::Null, &json!("shell")));
    let started = events.iter().find(|event| event["type"] == "message.started").unwrap();
    assert_eq!((&calls[2]["turn_id"], &message["status"]), (&started["data"]["turn_id"], &json!("done")));
    assert_eq!(calls[0]["cost"].as_f64(), Some(72e-6), "11 tokens at 2 and 5 at 10 for a million: {:#}", calls[0]);
    // What is asked for in vain is answered in the caller's own form.
    let answer = told(&server, &id, &OPENAI.replace("MODEL", "none")).await;
    assert_eq!(answer["error"]["code"], "model_not_found", "{answer:#}");
    // A key that is replaced is used from the next call on.
    let change = json!({ "name": "stub", "kind": "openai", "base_url": format!("{}/v1", stub.url), "api_key": "sk-the-next-key",
        "models": [{ "id": "small-1" }] });
    assert_eq!(server.put("/providers/stub", change).await.0, 200);
    told(&server, &id, &OPENAI.replace("MODEL", "small-1")).await;
    assert!(stub.asked().last().unwrap().head.contains("bearer sk-the-next-key"));
}

/// Looks for the key wherever a program inside can look.
const LOOK: &str = r#"env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\0' '\n'
    grep -rs sk-the /workspace /etc /run /tmp /home /root /dev/shm 2>/dev/null
    curl -sSi "$OPENAI_BASE_URL/models"; curl -sSi "$OPENAI_BASE_URL/nothing"; curl -sSi "${OPENAI_BASE_URL%/v1}/"
    curl -sSi -x "${OPENAI_BASE_URL%/v1}" http://elsewhere.test/; curl -sSi -x "${OPENAI_BASE_URL%/v1}" https://elsewhere.test/
    curl -sSi "$OPENAI_BASE_URL/chat/completions" -d 'no json'; true"#;

#[tokio::test]
async fn a_key_is_nowhere_but_encrypted() {
    let server = server_or_skip!();
    let _stub = provider(&server).await;
    let id = server.session(json!({})).await;
    told(&server, &id, &OPENAI.replace("MODEL", "small")).await;
    let found = told(&server, &id, LOOK).await;
    assert!(!found.to_string().contains("sk-the"), "{found:#}");
    assert!(found.to_string().contains("403"), "what is no model is refused: {found:#}");
    let log = json!(server.events(&id).await).to_string();
    assert!(!log.contains(KEY) && !server.log().contains(KEY), "{log}");
    let database = std::fs::read(server.data_dir().join("raworc.db")).unwrap();
    let journal = std::fs::read(server.data_dir().join("raworc.db-wal")).unwrap_or_default();
    for bytes in [database, journal] {
        assert!(!bytes.windows(KEY.len()).any(|window| window == KEY.as_bytes()));
    }
}

#[tokio::test]
async fn a_session_without_a_provider_is_told_what_to_do() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let answer = told(&server, &id, &OPENAI.replace("MODEL", "gpt-4")).await;
    let message = answer["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("\"gpt-4\"") && message.contains("raworc provider add"), "{answer:#}");
}
