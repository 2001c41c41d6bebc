//! Requests right after an answer, while the server takes a checkpoint.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::TestServer;
use crate::server_or_skip;

/// Rounds per action.
const TIMES: usize = 12;
/// A container that cannot end is killed after three seconds; no start may wait for that.
const WAKE_MAX: Duration = Duration::from_millis(2_500);

#[tokio::test]
async fn no_wish_right_after_an_answer_goes_wrong() {
    let server = server_or_skip!();
    let wishes: [(Method, &str, Value); 9] = [
        (Method::POST, "/pause", Value::Null),
        (Method::DELETE, "", Value::Null),
        (Method::POST, "/terminate", Value::Null),
        (Method::POST, "/restart", Value::Null),
        (Method::POST, "/cancel", Value::Null),
        (Method::POST, "/checkpoints", json!({})),
        (Method::POST, "/messages", json!({ "content": "echo more >> more" })),
        (Method::PUT, "", json!({ "metadata": { "a": 1 } })),
        (Method::POST, "/checkpoints/1/restore", Value::Null),
    ];
    let mut slowest = Duration::ZERO;
    for (method, path, body) in wishes {
        for background in ["", "(for i in 1 2 3 4 5 6; do date > back; sleep 0.05; done) > /dev/null 2>&1 &"] {
            let id = server.session(json!({ "checkpoints": { "keep_last": 1000 } })).await;
            for n in 0..TIMES {
                server.output(&id, &format!("echo {n} > file; {background}")).await;
                // Sooner or later, between any two steps.
                let until = Instant::now() + Duration::from_micros(700 * n as u64);
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
                let request = server.request(method.clone(), &format!("/sessions/{id}{path}"));
                let status = request.json(&body).send().await.unwrap().status();
                // The first checkpoint may not have been begun yet.
                let is_early = status == 404 && path.ends_with("/restore");
                assert!(status.is_success() || status == 409 || is_early, "{method} {path}: {status}");
                for back in ["restore", "resume"] {
                    server.post(&format!("/sessions/{id}/{back}"), Value::Null).await;
                }
                let woken = Instant::now();
                server.output(&id, "true").await;
                let took = woken.elapsed();
                slowest = slowest.max(took);
                assert!(
                    took < WAKE_MAX || !background.is_empty(),
                    "after {method} {path} it took {took:?}\n{}",
                    tail(&server)
                );
            }
            let events = server.events(&id).await;
            for wrong in ["checkpoint.failed", "checkpoint.delayed", "session.failed", "session.rewind_failed"] {
                let found = events.iter().find(|event| event["type"] == wrong);
                assert!(
                    found.is_none(),
                    "after {method} {path}: {:#}\n{}",
                    found.unwrap_or(&Value::Null),
                    tail(&server)
                );
            }
            server.delete(&format!("/sessions/{id}")).await;
        }
    }
    let log = server.log();
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    println!("the slowest wake took {slowest:?}");
}

fn tail(server: &TestServer) -> String {
    let log = server.log();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
