//! Turns: each attempt at a message has an id of its own and one end in the log.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::crash::{ended, of_message, post, until_busy};
use crate::harness::{TestServer, eventually};
use crate::server_or_skip;

/// Waits until so many attempts at a message have written something.
async fn until_written(server: &TestServer, id: &str, message: &str, attempts: usize) {
    let has_written = async || of_message(&server.events(id).await, "message.delta", message).len() == attempts;
    eventually("the attempt has written", has_written).await;
}

#[tokio::test]
async fn each_attempt_is_a_turn_of_its_own_with_one_end() {
    let mut server = server_or_skip!();
    let id = server.session(json!({})).await;
    let message = post(&server, &id, "echo $RAWORC_SESSION_ID; sleep 600").await;
    let withdrawn = post(&server, &id, "echo never").await;
    // Its host dies, someone asks for another container, the server dies, and at last someone cancels it.
    until_busy(&server, &id, 1).await;
    until_written(&server, &id, &message, 1).await;
    server.signal_host(&format!("{id}-1"), Signal::SIGKILL);
    until_busy(&server, &id, 2).await;
    until_written(&server, &id, &message, 2).await;
    assert_eq!(server.post(&format!("/sessions/{id}/restart"), json!({})).await.0, 200);
    until_busy(&server, &id, 3).await;
    until_written(&server, &id, &message, 3).await;
    server.kill();
    server.start_again();
    for other in [&withdrawn, &message] {
        let (status, answer) = server.post(&format!("/sessions/{id}/messages/{other}/cancel"), json!({})).await;
        assert_eq!(status, 200, "{answer}");
        ended(&server, &id, other).await;
    }
    let events = server.events(&id).await;
    let of = |kind: &str, message: &str| -> Vec<String> {
        let found = of_message(&events, kind, message).into_iter();
        found.map(|event| event["data"]["turn_id"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let turns = of("message.started", &message);
    let ends: Vec<String> =
        of("message.requeued", &message).into_iter().chain(of("message.finished", &message)).collect();
    assert_eq!((turns.len(), &turns), (3, &ends), "a turn each, ended in their order");
    assert_eq!(of("message.delta", &message), turns, "each wrote in its own");
    let added = events.iter().find(|event| event["type"] == "message.added").unwrap();
    assert_eq!(added["data"]["turn_id"], json!(turns[2]), "only the last was answered");
    let reply = server.messages(&id).await.into_iter().find(|reply| reply["reply_to"] == *message).unwrap();
    assert_eq!(reply["content"], format!("{id}\n"), "with what it wrote in its last turn");
    // One that never began has an end, and no turn.
    assert_eq!((of("message.started", &withdrawn).len(), of("message.finished", &withdrawn)), (0, vec![String::new()]));
}

/// Rewrites what is stored as builds did that knew no turns: then the id that a host was given was the message's.
fn forget_turns(server: &TestServer, message: &str) -> String {
    let database = rusqlite::Connection::open(server.data_dir().join("raworc.db")).unwrap();
    let find = "SELECT json_extract(machine, '$.running.turn') FROM sessions WHERE json_extract(machine, '$.running.message') = ?1";
    let turn: String = database.query_row(find, [message], |row| row.get(0)).unwrap();
    for rewrite in [
        "UPDATE sessions SET machine = json_remove(replace(machine, ?1, ?2), '$.running.turn')",
        "UPDATE events SET data = json_remove(replace(data, ?1, ?2), '$.turn_id')",
        "UPDATE messages SET id = replace(id, ?1, ?2)",
    ] {
        database.execute(rewrite, [message, &turn]).unwrap();
    }
    turn
}

#[tokio::test]
async fn a_turn_that_an_older_build_began_goes_on() {
    let mut server = server_or_skip!();
    let id = server.session(json!({})).await;
    let message = post(&server, &id, "echo first; until [ -e go ]; do sleep 0.05; done; echo second").await;
    until_busy(&server, &id, 1).await;
    until_written(&server, &id, &message, 1).await;
    server.kill();
    let message = forget_turns(&server, &message);
    server.start_again();
    let (status, made) = server.post(&format!("/sessions/{id}/exec"), json!({ "command": "touch go" })).await;
    assert_eq!((status, &made["exit_code"]), (reqwest::StatusCode::OK, &json!(0)), "{made}");
    let told = ended(&server, &id, &message).await;
    assert_eq!((&told["status"], &told["attempts"]), (&json!("done"), &json!(1)), "{told:#}");
    assert_eq!(told["reply"]["content"], "first\nsecond\n", "what it wrote before and after is one answer");
    // The next one has an id of its own.
    assert_eq!(server.output(&id, "echo third").await, "third\n");
}
