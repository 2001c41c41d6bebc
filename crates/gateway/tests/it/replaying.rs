//! Recordings as providers.

use std::fmt::Write as _;

use raworc_core::models::{ProviderKind, TokenUsage};
use raworc_gateway::ports::CallEnd;

use crate::world::World;

/// A world whose provider is a recording.
fn recorded(lines: &[&str]) -> (World, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.jsonl");
    let mut text = String::new();
    for line in lines {
        writeln!(text, "{line}").unwrap();
    }
    std::fs::write(&path, text).unwrap();
    let world = World::new(ProviderKind::Replay, vec![]);
    {
        let mut target = world.around.target.lock().unwrap();
        target.base_url = path.to_str().unwrap().into();
        target.key = None;
    }
    (world, dir)
}

const LOOKS: &str = r#"{"match":{"user":"fix it","tool_results":0},"answer":{"text":"I look.","tool_calls":[{"name":"bash","arguments":{"command":"ls -l /workspace/some/where"}}],"usage":{"input_tokens":70,"output_tokens":9}}}"#;
const DONE: &str = r#"{"match":{"user":"fix it","tool_results":1,"result_contains":["a.py"]},"answer":{"text":"Done: ä€😀, and this goes on for a while."}}"#;

#[tokio::test]
async fn an_answer_in_chat_completions_streamed_and_not() {
    let (world, _dir) = recorded(&[LOOKS, DONE]);
    let ask = |stream: bool| {
        format!(r#"{{"model":"m","stream":{stream},"messages":[{{"role":"user","content":"fix it"}}]}}"#)
    };
    let got = world.call("/v1/chat/completions", &ask(false)).await.json();
    let message = &got["choices"][0]["message"];
    assert_eq!(message["content"], "I look.");
    assert_eq!(message["tool_calls"][0]["function"]["name"], "bash");
    assert_eq!(message["tool_calls"][0]["function"]["arguments"], r#"{"command":"ls -l /workspace/some/where"}"#);
    assert_eq!(got["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(got["usage"]["prompt_tokens"], 70);
    let record = world.record().await;
    assert_eq!(record.end, CallEnd::Complete);
    assert_eq!(record.usage, Some(TokenUsage { input_tokens: 70, output_tokens: 9, cached_tokens: 0 }));
    assert_eq!(record.tool_calls[0].name, "bash");

    let streamed = world.call("/v1/chat/completions", &ask(true)).await;
    assert!(streamed.body.ends_with("data: [DONE]\n\n"));
    let mut arguments = String::new();
    let mut ids = Vec::new();
    for data in streamed.body.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]") {
        let chunk: serde_json::Value = serde_json::from_str(data).unwrap();
        let call = &chunk["choices"][0]["delta"]["tool_calls"][0];
        ids.extend(call["id"].as_str().map(str::to_owned));
        arguments.push_str(call["function"]["arguments"].as_str().unwrap_or_default());
    }
    assert_eq!(arguments, r#"{"command":"ls -l /workspace/some/where"}"#);
    assert_eq!(ids, [message["tool_calls"][0]["id"].as_str().unwrap()], "each time the same");
    assert_eq!(world.record().await.tool_calls, record.tool_calls);
}

#[tokio::test]
async fn requests_match_by_what_they_say_in_any_order() {
    let (world, _dir) = recorded(&[LOOKS, DONE]);
    let second = r#"{"model":"m","messages":[{"role":"user","content":"fix it"},{"role":"assistant","content":null,"tool_calls":[]},{"role":"tool","tool_call_id":"1","content":"a.py"}]}"#;
    for _ in 0..3 {
        let got = world.call("/v1/chat/completions", second).await.json();
        assert!(got["choices"][0]["message"]["content"].as_str().unwrap().starts_with("Done: ä€😀"));
        assert_eq!(got["choices"][0]["finish_reason"], "stop");
        let first =
            world.call("/chat/completions", r#"{"messages":[{"role":"user","content":"fix it"}]}"#).await.json();
        assert_eq!(first["choices"][0]["message"]["content"], "I look.");
    }
}

#[tokio::test]
async fn what_was_not_recorded_is_quoted() {
    let (world, _dir) = recorded(&[LOOKS]);
    let body = format!(
        r#"{{"messages":[{{"role":"user","content":"{}"}}],"tools":[{{"type":"function","function":{{"name":"bash"}}}}]}}"#,
        "long ".repeat(1000)
    );
    let got = world.call("/v1/chat/completions", &body).await;
    assert_eq!(got.status.as_u16(), 404);
    let message = got.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(
        message.contains("long long") && message.contains("tool_results 0") && message.contains("bash"),
        "{message}"
    );
    assert!(message.len() < 1000);
    assert_eq!(world.record().await.end, CallEnd::Failed);
}

#[tokio::test]
async fn a_recording_that_cannot_be_used() {
    for (lines, expected) in [(vec!["{\"answer\":{}}", "oops"], "line 2"), (vec!["{}"], "line 1")] {
        let (world, _dir) = recorded(&lines);
        let got = world.call("/v1/chat/completions", r#"{"messages":[]}"#).await;
        assert_eq!(got.status.as_u16(), 404);
        assert!(got.body.contains(expected), "{}", got.body);
    }
    let (world, dir) = recorded(&[LOOKS]);
    drop(dir);
    let got = world.call("/v1/chat/completions", r#"{"messages":[]}"#).await;
    assert!(got.body.contains("no such recording"), "{}", got.body);
    assert!(!got.body.contains("r.jsonl"), "where it would be is nobody's matter");
    world.around.target.lock().unwrap().base_url = "builtin:none".into();
    assert!(world.call("/v1/chat/completions", r#"{"messages":[]}"#).await.body.contains("no such recording"));
}

#[tokio::test]
async fn a_recording_that_changes_is_read_again() {
    let (world, dir) = recorded(&[r#"{"answer":{"text":"one"}}"#]);
    let text = |got: crate::world::Answer| got.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!(text(world.call("/v1/chat/completions", r#"{"messages":[]}"#).await), "one");
    std::fs::write(dir.path().join("r.jsonl"), r#"{"answer":{"text":"another"}}"#).unwrap();
    assert_eq!(text(world.call("/v1/chat/completions", r#"{"messages":[]}"#).await), "another");
}

#[tokio::test]
async fn the_recording_that_ships_leads_from_its_beginning_to_its_end() {
    let (world, _dir) = recorded(&[]);
    world.around.target.lock().unwrap().base_url = "builtin:fix-the-tests".into();
    let names = ["bash", "read_file", "write_file", "edit_file", "list_files", "search"];
    let tools: Vec<_> =
        names.iter().map(|name| serde_json::json!({"type": "function", "function": {"name": name}})).collect();
    let mut messages = vec![serde_json::json!({"role": "user", "content": "make the tests pass"})];
    let mut called = Vec::new();
    for _ in 0..20 {
        let body = serde_json::json!({"model": "m", "messages": messages, "tools": tools});
        let got = world.call("/v1/chat/completions", &body.to_string()).await.json();
        let message = got["choices"][0]["message"].clone();
        messages.push(message.clone());
        let Some(calls) = message["tool_calls"].as_array() else {
            assert!(message["content"].as_str().unwrap().contains("passes now"), "{message}");
            break;
        };
        for call in calls {
            called.push(call["function"]["name"].as_str().unwrap().to_owned());
            messages.push(serde_json::json!({"role": "tool", "tool_call_id": call["id"], "content": "passed"}));
        }
    }
    assert_eq!(called, ["list_files", "write_file", "write_file", "bash", "read_file", "edit_file", "bash"]);
    let title = r#"{"messages":[{"role":"user","content":"make the tests pass"}]}"#;
    assert_eq!(world.call("/v1/chat/completions", title).await.status.as_u16(), 200);
    assert_eq!(raworc_gateway::replay::BUILTIN_NAMES, ["fix-the-tests"]);
    assert!(raworc_gateway::replay::builtin("fix-the-tests").is_some());
}
