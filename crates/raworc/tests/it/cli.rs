//! The command line.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::harness::RAWORC;
use crate::server_or_skip;

/// The program with a data directory without a server.
fn raworc(data_dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(RAWORC);
    command.args(arguments).env("RAWORC_DATA_DIR", data_dir).env_remove("RAWORC_URL").env_remove("RAWORC_TOKEN");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn told(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_run_needs_no_server_and_ends_as_its_script_does() {
    let mut server = server_or_skip!();
    server.stop();
    let data_dir = server.data_dir();
    for (script, status, stdout) in [
        ("echo hello", 0, "hello\n"),
        ("echo out; exit 3", 3, "out\n"),
        ("no-such", 127, ""),
        ("kill -TERM $$", 143, ""),
    ] {
        let output = raworc(&data_dir, &["run", script]).output().unwrap();
        assert_eq!(told(&output), (Some(status), stdout.to_owned()), "{script}: {output:?}");
    }
    let output = raworc(&data_dir, &["run", "--output", "json", "echo hello >&2"]).output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&answer["status"], &answer["reply"]["content"]), (&"done".into(), &"hello\n".into()));
    let output = raworc(&data_dir, &["run", "--keep", "--name", "kept", "echo mine > file"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    // The next server has it again.
    server.start_again();
    let output = server.cli(&["session", "send", "kept", "cat file"]);
    assert_eq!(told(&output), (Some(0), "mine\n".to_owned()), "{output:?}");
    assert_eq!(server.cli(&["session", "delete", "kept"]).status.code(), Some(0));
}

#[test]
fn runs_side_by_side_share_one_server() {
    let mut server = server_or_skip!();
    server.stop();
    let data_dir = server.data_dir();
    let run = |n: u32| raworc(&data_dir, &["run", &format!("echo {n}; exit {n}")]).spawn().unwrap();
    let runs: Vec<_> = (1..=4).map(run).collect();
    for (n, child) in (1..=4).zip(runs) {
        let output = child.wait_with_output().unwrap();
        assert_eq!(told(&output), (Some(n), format!("{n}\n")), "{output:?}");
    }
}

#[tokio::test]
async fn what_goes_wrong_is_said_with_its_own_status() {
    let server = server_or_skip!();
    for (arguments, status, said) in [
        (&["session", "get", "nobody"][..], 2, "there is no session"),
        (&["session", "create", "--name", " "], 2, "name"),
        (&["session", "frobnicate"], 2, "unrecognized subcommand"),
        (&["--url", "http://127.0.0.1:1", "--token", "x", "me"], 3, "127.0.0.1:1"),
        (&["--token", "x", "me"], 2, "unknown, expired or revoked"),
    ] {
        let output = server.cli(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {stderr}");
        assert!(stderr.contains(said), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty() && !stderr.contains("panicked"), "{arguments:?}: {output:?}");
    }
}

#[test]
fn completions_and_doctor_need_no_server() {
    let directory = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = raworc(directory.path(), &["completions", shell]).output().unwrap();
        assert!(output.status.success() && output.stdout.len() > 1000, "{shell}");
    }
    let output = raworc(directory.path(), &["doctor", "--output", "json"]).output().unwrap();
    let checks: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(checks.to_string().contains("user namespaces"), "{checks}");
}

#[tokio::test]
async fn messages_and_commands_end_with_the_same_statuses() {
    let server = server_or_skip!();
    server.post("/agents", json!({ "name": "hasty", "config": { "timeout_seconds": 1 } })).await;
    server.session(json!({ "name": "demo", "agent_ids": ["shell", "hasty"] })).await;
    let status = |arguments: &[&str]| server.cli(&[&["session"], arguments].concat()).status.code();
    for (script, expected) in [
        ("true", 0),
        ("exit 3", 3),
        ("kill -KILL $$", 137),
        ("kill -TERM $$", 143),
        ("no-such-program", 127),
        ("#!/no/such/interpreter", 127),
        ("#!/etc/passwd", 126),
    ] {
        let both = [status(&["send", "demo", script]), status(&["exec", "demo", "--script", script])];
        assert_eq!(both, [Some(expected); 2], "{script}");
    }
    let slow = "trap '' TERM; while :; do sleep 600; done";
    let both = [
        status(&["send", "demo", "--agent", "hasty", slow]),
        status(&["exec", "demo", "--timeout", "1", "--script", slow]),
    ];
    assert_eq!(both, [Some(124); 2]);
    assert_eq!(status(&["exec", "demo", "no-such-program"]), Some(127));
    assert_eq!(status(&["exec", "demo", "--directory", "/no/such", "true"]), Some(126));
    // A message that is cancelled, by its id while it waits, and whichever runs.
    let script = r#"raworc session send demo 'echo > begun; sleep 600' & running=$!
        until raworc session files cat demo begun >/dev/null 2>&1; do sleep 0.05; done
        waiting=$(raworc session send demo true --no-wait --output json | sed -n 's/^  "id": "\(.*\)",$/\1/p' | head -n 1)
        raworc session cancel demo --message $waiting
        raworc session cancel demo
        wait $running || echo $?"#;
    let output = server.shell(script);
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("130\n"), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("Cancelled message"), "{output:?}");
}

#[tokio::test]
async fn lists_have_as_many_rows_as_are_asked_for_however_large() {
    let server = server_or_skip!();
    let id = server.session(json!({ "name": "wordy" })).await;
    // The server ends a page at 1 MiB; as JSON, each of these takes more than that.
    let script = format!("true # {}", "\u{1}".repeat(300_000));
    for _ in 0..3 {
        server.send(&id, &script).await;
    }
    let rows = |arguments: &[&str]| {
        let output = server.cli(arguments);
        let page: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        (page["items"].as_array().unwrap().clone(), page["next_cursor"].clone())
    };
    let (events, more) = rows(&["session", "events", "wordy", "--limit", "500", "--output", "json"]);
    let last = server.get(&format!("/sessions/{id}")).await.1["last_seq"].clone();
    assert_eq!((events.last().unwrap()["seq"].clone(), more), (last, Value::Null));
    let newest = rows(&["session", "events", "wordy", "--tail", "7", "--output", "json"]).0;
    assert_eq!(newest[..], events[events.len() - 7..]);
    let (first, more) = rows(&["session", "events", "wordy", "--limit", "7", "--output", "json"]);
    assert_eq!((&first[..], more), (&events[..7], json!("7")));
    let (messages, more) = rows(&["session", "messages", "wordy", "--output", "json"]);
    assert_eq!((messages.len(), more), (6, Value::Null));
}
