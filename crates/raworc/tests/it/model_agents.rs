//! Agents with a model: they work with tools in their session, and go on wherever they were interrupted.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::crash::{ended, of_message, post};
use crate::harness::{TestServer, eventually};
use crate::server_or_skip;
use crate::stub_provider::{Answer, StubProvider};

/// Puts a recording into the data directory, and makes an agent and a session that answer from it.
async fn session_with(server: &TestServer, lines: &[Value], config: Value) -> String {
    let directory = server.data_dir().join("recordings");
    std::fs::create_dir_all(&directory).unwrap();
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(directory.join("test.jsonl"), text).unwrap();
    session_of(server, "replay/test", config).await
}

async fn session_of(server: &TestServer, model: &str, config: Value) -> String {
    let agent =
        json!({ "name": "thinker", "runtime": "model", "model": model, "instructions": "Be brief.", "config": config });
    let (status, answer) = server.post("/agents", agent).await;
    assert_eq!(status, 201, "{answer}");
    server.session(json!({ "agent_ids": ["thinker"] })).await
}

/// An answer of the model that calls a tool, after so many results.
fn calls(results: usize, tool: &str, arguments: Value) -> Value {
    let call = json!({ "name": tool, "arguments": arguments });
    json!({ "match": { "tool_results": results }, "answer": { "text": format!("step {results}"), "tool_calls": [call] } })
}

/// The output of a command beside the conversation.
async fn exec(server: &TestServer, id: &str, script: &str) -> String {
    let (status, ran) = server.post(&format!("/sessions/{id}/exec"), json!({ "command": script })).await;
    assert_eq!(status, 200, "{ran}");
    ran["stdout"].as_str().unwrap().to_owned()
}

fn says(conditions: Value, text: &str) -> Value {
    json!({ "match": conditions, "answer": { "text": text } })
}

fn of_kind<'e>(events: &'e [Value], kind: &str) -> Vec<&'e Value> {
    events.iter().filter(|event| event["type"] == kind).map(|event| &event["data"]).collect()
}

async fn until_tool_called(server: &TestServer, id: &str, count: usize) {
    eventually("the tool is called", async || of_kind(&server.events(id).await, "tool.called").len() == count).await;
    // The script says that it runs.
    let runs = async || server.get(&format!("/sessions/{id}/files/begun")).await.0 == 200;
    eventually("the script runs", runs).await;
}

/// A script that says that it has begun, once each time, and goes on when it is let go.
const WAITS: &str = "echo ran >> log; touch begun; until [ -e go ]; do sleep 0.02; done; echo went on";

#[tokio::test]
async fn an_agent_with_a_model_works_with_its_tools_in_its_session() {
    let server = server_or_skip!();
    let made = server.cli(&["agent", "create", "coder", "--model", "replay/fix-the-tests"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let id = server.session(json!({ "agent_ids": ["coder"] })).await;
    let told = server.send(&id, "make the tests pass").await;
    assert_eq!(told["status"], "done", "{told:#}");
    let last = "The test passes now: `add.sh` subtracted where it had to add.";
    assert_eq!(told["reply"]["content"], last);
    let file = exec(&server, &id, "cat add.sh").await;
    assert_eq!(file, "#!/bin/sh\n# Prints the sum of its two arguments.\necho $(($1 + $2))\n");
    let events = server.events(&id).await;
    let tools: Vec<&str> = of_kind(&events, "tool.called").iter().map(|call| call["tool"].as_str().unwrap()).collect();
    assert_eq!(tools, ["list_files", "write_file", "write_file", "bash", "read_file", "edit_file", "bash"]);
    let ends = of_kind(&events, "tool.finished");
    let failed: Vec<bool> = ends.iter().map(|end| end["is_error"] == true).collect();
    assert_eq!(failed, [false, false, false, true, false, false, false], "{ends:#?}");
    assert!(
        ends[3]["output"].as_str().unwrap().contains("FAILED: 2 + 3 is 5, not -1\n[exit status 1]"),
        "{:#}",
        ends[3]
    );
    // What it cost, and what was said.
    let models = of_kind(&events, "model.called");
    assert_eq!((models.len(), &models[0]["provider"], &models[0]["agent"]), (7, &json!("replay"), &json!("coder")));
    let (_, usage) = server.get(&format!("/sessions/{id}/usage")).await;
    let sum = |name: &str| models.iter().map(|call| call[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!((&usage["calls"], usage["input_tokens"].as_u64()), (&json!(7), Some(sum("input_tokens"))), "{usage:#}");
    let call = models[6]["call_id"].as_str().unwrap();
    let (status, call) = server.get(&format!("/sessions/{id}/model-calls/{call}")).await;
    assert_eq!(status, 200, "{call:#}");
    assert!(call["request"].as_str().unwrap().contains("FAILED: 2 + 3 is 5, not -1"), "{call:#}");
    assert!(call["answer"].as_str().unwrap().contains("The test passes now"), "{call:#}");
    // The same at the command line, in a session of its own.
    let ran = server.cli(&["run", "--agent", "coder", "make the tests pass"]);
    let shown = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success() && shown.trim_end().ends_with(last),
        "{shown}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
}

#[tokio::test]
async fn a_turn_goes_on_after_its_last_tool_call_whatever_dies() {
    let mut server = server_or_skip!();
    let lines = [
        calls(0, "bash", json!({ "command": "echo first >> log" })),
        calls(1, "bash", json!({ "command": WAITS })),
        says(
            json!({ "tool_results": 2, "result_contains": ["it was interrupted"] }),
            "I know that it was interrupted.",
        ),
        says(json!({ "tool_results": 2 }), "It was not interrupted."),
    ];
    let id = session_with(&server, &lines, json!({})).await;
    for dies in ["server", "host"] {
        let message = post(&server, &id, "go").await;
        eventually("two calls", async || of_message(&server.events(&id).await, "tool.called", &message).len() == 2)
            .await;
        eventually("the script runs", async || server.get(&format!("/sessions/{id}/files/begun")).await.0 == 200).await;
        match dies {
            "server" => {
                server.kill();
                server.start_again();
            }
            _ => {
                let container = server.container(&id).await;
                server.signal_host(&container, Signal::SIGKILL);
            }
        }
        let told = ended(&server, &id, &message).await;
        assert_eq!(told["reply"]["content"], "I know that it was interrupted.", "{dies}: {told:#}");
        let events = server.events(&id).await;
        let of = |kind: &str| of_message(&events, kind, &message).len();
        assert_eq!(
            (of("tool.called"), of("tool.finished")),
            (2, 2),
            "{dies}: no call is begun twice, and each has an end"
        );
        let log = exec(&server, &id, "cat log; rm log begun").await;
        assert_eq!(log, "first\nran\n", "{dies}: what was done is not done again");
    }
}

#[tokio::test]
async fn what_a_model_does_wrong_is_told_to_it() {
    let server = server_or_skip!();
    let lines = [
        calls(0, "fly", json!({})),
        calls(1, "bash", json!("{\"command\": \"cut o")),
        calls(2, "read_file", json!({ "path": "/etc/passwd" })),
        calls(3, "read_file", json!({ "path": "../../etc/passwd" })),
        calls(4, "write_file", json!({ "path": "file" })),
        calls(5, "edit_file", json!({ "path": "none", "old_text": "a", "new_text": "b" })),
        calls(6, "bash", json!({ "command": "exit 3" })),
        calls(7, "bash", json!({ "command": "sleep 60", "timeout_seconds": 1 })),
        calls(8, "search", json!({ "pattern": "nothing has this" })),
        calls(9, "bash", json!({ "command": "head -c 100000 /dev/zero | tr '\\0' a > many" })),
        calls(
            10,
            "edit_file",
            json!({ "path": "many", "old_text": "a", "new_text": "b".repeat(1000), "replace_all": true }),
        ),
        says(json!({ "tool_results": 11 }), "I see."),
    ];
    let id = session_with(&server, &lines, json!({})).await;
    let told = server.send(&id, "go").await;
    assert_eq!((&told["status"], &told["reply"]["content"]), (&json!("done"), &json!("I see.")), "{told:#}");
    let events = server.events(&id).await;
    let results = of_kind(&events, "tool.finished");
    let expected = [
        "there is no tool \"fly\"; there are: bash,",
        "the arguments are not a JSON object",
        "\"/etc/passwd\" is outside of /workspace",
        "",
        "the argument \"content\" must be a text",
        "",
        "[exit status 3]",
        "[ended after 1 seconds",
        "no line matches",
        "[no output; exit status 0]",
        "the file would have more than",
    ];
    for (result, expected) in results.iter().zip(expected) {
        assert!(result["output"].as_str().unwrap().contains(expected), "{expected:?}: {result:#}");
    }
    let failed: Vec<bool> = results.iter().map(|result| result["is_error"] == true).collect();
    assert_eq!(failed, [true, true, true, true, true, true, true, true, false, false, true]);
    assert!(!results.iter().any(|result| result["output"].as_str().unwrap().contains("root:")), "nothing leads out");
}

#[tokio::test]
async fn a_turn_ends_with_a_reason() {
    let server = server_or_skip!();
    let lines = [
        json!({ "match": { "user": "nothing" }, "answer": { "text": "" } }),
        says(json!({ "user": "long" }), &"a word ".repeat(40_000)),
        json!({ "answer": { "tool_calls": [{ "name": "list_files", "arguments": {} }] } }),
    ];
    let id = session_with(&server, &lines, json!({ "max_steps": 3 })).await;
    let told = server.send(&id, "for ever").await;
    assert_eq!((&told["status"], &told["error"]["code"]), (&json!("failed"), &json!("step_limit")), "{told:#}");
    assert_eq!(of_kind(&server.events(&id).await, "tool.finished").len(), 3);
    let told = server.send(&id, "nothing").await;
    assert_eq!((&told["status"], &told["error"]["code"]), (&json!("failed"), &json!("model_failed")), "{told:#}");
    let told = server.send(&id, "long").await;
    assert_eq!(told["error"]["code"], "model_failed", "{told:#}");
    assert!(told["error"]["message"].as_str().unwrap().contains("262144 bytes"), "{:#}", told["error"]);
    // A recording that has no answer says what it was asked.
    let none = [says(json!({ "user": "something else" }), "…")];
    std::fs::write(server.data_dir().join("recordings/test.jsonl"), format!("{}\n", none[0])).unwrap();
    let told = server.send(&id, "for ever").await;
    assert_eq!(told["error"]["code"], "model_failed", "{told:#}");
    assert_eq!(server.get(&format!("/sessions/{id}")).await.1["state"], "READY");
}

#[tokio::test]
async fn a_cancel_ends_what_the_model_and_its_tools_do() {
    let server = server_or_skip!();
    let hangs = StubProvider::start(|asked| {
        let has_result = asked.body["messages"].as_array().unwrap().iter().any(|message| message["role"] == "tool");
        let chunk = |delta: Value, reason: Value| {
            format!("data: {}\n\n", json!({ "choices": [{ "index": 0, "delta": delta, "finish_reason": reason }] }))
        };
        let call = json!({ "tool_calls": [{ "index": 0, "id": "a", "type": "function",
            "function": { "name": "bash", "arguments": json!({ "command": WAITS }).to_string() } }] });
        match asked.body["messages"].as_array().unwrap().last().unwrap()["content"].as_str() {
            Some("hang") => {
                Answer::Hang(vec![chunk(json!({ "role": "assistant", "content": "I think" }), Value::Null)])
            }
            _ if has_result => Answer::Json(400, json!({ "error": { "message": "never" } })),
            _ => Answer::Stream(vec![chunk(call, json!("tool_calls")), "data: [DONE]\n\n".to_owned()]),
        }
    })
    .await;
    let provider = json!({ "name": "stub", "kind": "openai", "base_url": format!("{}/v1", hangs.url), "api_key": "sk-kept-outside" });
    let (status, answer) = server.post("/providers", provider).await;
    assert_eq!(status, 201, "{answer}");
    let id = session_of(&server, "stub/any", json!({})).await;
    // While the model writes.
    let message = post(&server, &id, "hang").await;
    let writes = async || {
        !of_message(&server.events(&id).await, "message.delta", &message).is_empty() || !hangs.asked().is_empty()
    };
    eventually("the model is asked", writes).await;
    assert_eq!(server.post(&format!("/sessions/{id}/cancel"), json!({})).await.0, 200);
    assert_eq!(ended(&server, &id, &message).await["status"], "cancelled");
    let mut left = hangs.left.clone();
    left.wait_for(|left| *left == 1).await.unwrap();
    // While a tool runs.
    let message = post(&server, &id, "work").await;
    until_tool_called(&server, &id, 1).await;
    assert_eq!(server.post(&format!("/sessions/{id}/cancel"), json!({})).await.0, 200);
    assert_eq!(ended(&server, &id, &message).await["status"], "cancelled");
    let events = server.events(&id).await;
    assert_eq!(of_message(&events, "tool.finished", &message).len(), 1, "the call has an end");
    // Nothing of it runs on, and what comes next is done.
    let scripts = "for process in /proc/[0-9]*; do tr '\\0' ' ' < $process/cmdline; echo; done > /tmp/all; grep -c ' /run/_' /tmp/all";
    eventually("only this script runs", async || exec(&server, &id, scripts).await == "1\n").await;
    assert!(
        hangs.asked().iter().all(|asked| asked.head.contains("authorization: bearer sk-kept-outside")),
        "{:?}",
        hangs.asked()
    );
    server.until(&id, |session| session["state"] == "READY").await;
}

#[tokio::test]
async fn whatever_ends_a_turn_its_calls_have_an_end() {
    let server = server_or_skip!();
    let id = session_with(&server, &[calls(0, "bash", json!({ "command": WAITS }))], json!({ "timeout_seconds": 600 }))
        .await;
    // A pause takes the message back; it is cancelled while it waits.
    let message = post(&server, &id, "go").await;
    until_tool_called(&server, &id, 1).await;
    assert_eq!(server.post(&format!("/sessions/{id}/pause"), json!({})).await.0, 200);
    server.until(&id, |session| session["state"] == "IDLE").await;
    assert_eq!(server.post(&format!("/sessions/{id}/messages/{message}/cancel"), json!({})).await.0, 200);
    assert_eq!(ended(&server, &id, &message).await["status"], "cancelled");
    assert_eq!(of_message(&server.events(&id).await, "tool.finished", &message).len(), 1);
    // The session ends.
    assert_eq!(server.post(&format!("/sessions/{id}/resume"), json!({})).await.0, 200);
    exec(&server, &id, "rm begun").await;
    let message = post(&server, &id, "go").await;
    until_tool_called(&server, &id, 2).await;
    assert_eq!(server.post(&format!("/sessions/{id}/terminate"), json!({})).await.0, 200);
    assert_eq!(ended(&server, &id, &message).await["status"], "cancelled");
    let events = server.events(&id).await;
    assert_eq!((of_kind(&events, "tool.called").len(), of_kind(&events, "tool.finished").len()), (2, 2));
}

#[tokio::test]
async fn a_turn_stays_with_its_agent_whatever_the_session_is_given() {
    let mut server = server_or_skip!();
    let lines = [calls(0, "bash", json!({ "command": WAITS })), says(json!({ "tool_results": 1 }), "It was mine.")];
    let id = session_with(&server, &lines, json!({})).await;
    let message = post(&server, &id, "go").await;
    until_tool_called(&server, &id, 1).await;
    // The session gets another agent, and this one another name; then the server dies.
    let (status, answer) = server.put(&format!("/sessions/{id}/agents"), json!({ "agent_ids": ["shell"] })).await;
    assert_eq!(status, 200, "{answer}");
    let renamed = json!({ "name": "renamed", "runtime": "model", "model": "replay/test" });
    assert_eq!(server.put("/agents/thinker", renamed).await.0, 200);
    server.kill();
    server.start_again();
    let told = ended(&server, &id, &message).await;
    assert_eq!((&told["status"], &told["reply"]["content"]), (&json!("done"), &json!("It was mine.")), "{told:#}");
    // The other way round: a script stays with the host.
    exec(&server, &id, "rm begun").await;
    let message = post(&server, &id, WAITS).await;
    eventually("the script runs", async || server.get(&format!("/sessions/{id}/files/begun")).await.0 == 200).await;
    let (status, answer) = server.put(&format!("/sessions/{id}/agents"), json!({ "agent_ids": ["renamed"] })).await;
    assert_eq!(status, 200, "{answer}");
    exec(&server, &id, "touch go").await;
    let told = ended(&server, &id, &message).await;
    assert_eq!((&told["status"], &told["reply"]["content"]), (&json!("done"), &json!("went on\n")), "{told:#}");
    assert!(of_message(&server.events(&id).await, "tool.called", &message).is_empty());
}
