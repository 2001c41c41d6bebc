//! Conversations that remixes share with the sessions they come from.

use std::collections::BTreeSet;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::accounts::{call, member};
use crate::harness::{TestServer, eventually};
use crate::server_or_skip;

/// Shared parts of a conversation from which on a remix has a copy (`CONVERSATION_SEGMENTS_MAX` and one).
const MANY: u64 = 257;

async fn remix(server: &TestServer, parent: &str, body: Value) -> String {
    let (status, session) = server.post(&format!("/sessions/{parent}/remix"), body).await;
    assert_eq!(status, 201, "{session:#}\n{}", server.log());
    session["id"].as_str().unwrap().to_owned()
}

async fn checkpoint(server: &TestServer, id: &str) -> Value {
    let (status, made) = server.post(&format!("/sessions/{id}/checkpoints"), json!({})).await;
    assert_eq!((status.as_u16(), &made["status"]), (201, &json!("ready")), "{made:#}");
    made["n"].clone()
}

async fn restore(server: &TestServer, id: &str, n: &Value) {
    let (status, session) = server.post(&format!("/sessions/{id}/checkpoints/{n}/restore"), json!(null)).await;
    assert_eq!((status.as_u16(), &session["rewinding_to"]), (200, &Value::Null), "{session:#}");
}

/// What was said, and what is answered to what.
fn said(messages: &[Value]) -> Vec<(String, Option<usize>)> {
    let place = |id: &Value| messages.iter().position(|other| other["id"] == *id);
    messages.iter().map(|m| (m["content"].as_str().unwrap().to_owned(), place(&m["reply_to"]))).collect()
}

/// The conversation, by every way there is: in pages of one and of all, one by one, and in the log.
async fn conversation(server: &TestServer, id: &str) -> Vec<Value> {
    let all = server.messages(id).await;
    let (mut one_by_one, mut cursor) = (Vec::new(), String::new());
    loop {
        let (_, page) = server.get(&format!("/sessions/{id}/messages?limit=1{cursor}")).await;
        one_by_one.extend(page["items"].as_array().unwrap().clone());
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(one_by_one, all);
    assert!(all.is_sorted_by(|one, next| one["seq"].as_u64() < next["seq"].as_u64()), "{all:#?}");
    let (_, done) = server.get(&format!("/sessions/{id}/messages?limit=500&status=done")).await;
    let is_done = |message: &&Value| message["status"] == "done";
    assert_eq!(done["items"], json!(all.iter().filter(is_done).take(500).collect::<Vec<_>>()));
    let events = server.events(id).await;
    for message in &all {
        assert_eq!(message["session_id"], id);
        let event = &events[message["seq"].as_u64().unwrap() as usize - 1];
        assert_eq!(event["data"]["message_id"], message["id"], "{event:#}");
        let (status, found) = server.get(&format!("/sessions/{id}/messages/{}", message["id"].as_str().unwrap())).await;
        assert_eq!(status, 200, "{found}");
        let reply = all.iter().find(|other| other["reply_to"] == message["id"]);
        assert_eq!(&found["reply"], reply.unwrap_or(&Value::Null));
        assert_eq!(found["content"], message["content"]);
    }
    for (after, event) in events.iter().enumerate() {
        let (_, page) = server.get(&format!("/sessions/{id}/events?limit=1&after={after}")).await;
        assert_eq!(page["items"], json!([event]));
    }
    all
}

#[tokio::test]
async fn a_remix_has_the_conversation_of_then_whatever_becomes_of_the_others() {
    let mut server = server_or_skip!();
    let parent = server.session(json!({ "name": "parent" })).await;
    server.output(&parent, "echo one > file; echo 1").await;
    let first = checkpoint(&server, &parent).await;
    server.output(&parent, "echo two > file; echo 2").await;
    let then = said(&server.messages(&parent).await);

    let heir = remix(&server, &parent, json!({})).await;
    let early = remix(&server, &parent, json!({ "checkpoint": first })).await;
    let inherited = conversation(&server, &heir).await;
    assert_eq!(said(&inherited), then);
    assert_eq!(said(&conversation(&server, &early).await), then[..2]);
    let events = server.events(&heir).await;
    let count = events.iter().filter(|event| event["type"] == "message.inherited").count();
    assert_eq!((count, &events[0]["type"]), (4, &json!("session.created")));

    // Each goes its own way; neither sees what the other does, not even by its id.
    let later = server.send(&parent, "echo 3").await["id"].as_str().unwrap().to_owned();
    let own = server.send(&heir, "echo mine").await["id"].as_str().unwrap().to_owned();
    for (session, message) in [(&heir, &later), (&early, &later), (&parent, &own)] {
        let path = format!("/sessions/{session}/messages/{message}");
        assert_eq!(server.get(&path).await.0, 404);
        assert_eq!(server.post(&format!("{path}/cancel"), json!(null)).await.0, 404);
    }
    let path = format!("/sessions/{heir}/messages/{}/cancel", inherited[0]["id"].as_str().unwrap());
    assert_eq!(server.post(&path, json!(null)).await.0, StatusCode::CONFLICT, "it has ended");
    let with_own = said(&conversation(&server, &heir).await);
    assert_eq!((&with_own[..4], &with_own[4].0, with_own[5].1), (&then[..], &"echo mine".to_owned(), Some(4)));

    // A remix of the remix: of what it shares, and of its own.
    let grandchild = remix(&server, &heir, json!({})).await;
    assert_eq!(said(&conversation(&server, &grandchild).await), with_own);
    // Back to where they began, each.
    restore(&server, &parent, &first).await;
    restore(&server, &heir, &json!(1)).await;
    assert_eq!(said(&conversation(&server, &parent).await), then[..2]);
    assert_eq!(said(&conversation(&server, &heir).await), then);
    let regained = remix(&server, &heir, json!({})).await;
    assert_eq!(said(&conversation(&server, &regained).await), then);
    assert_eq!(said(&conversation(&server, &grandchild).await), with_own);
    server.output(&grandchild, "echo on").await;

    // It goes elsewhere like any other.
    let file = server.data_dir().with_file_name("heir.tar");
    let file = file.to_str().unwrap();
    let before = said(&server.messages(&grandchild).await);
    for arguments in
        [&["checkpoint", "export", &grandchild, file][..], &["checkpoint", "import", file, "--name", "parcel"]]
    {
        let output = server.cli(arguments);
        assert!(output.status.success(), "{output:?}");
    }
    let (status, arrived) = server.post("/sessions", json!({ "from": "parcel" })).await;
    assert_eq!(status, 201, "{arrived:#}");
    assert_eq!(said(&conversation(&server, arrived["id"].as_str().unwrap()).await), before);

    // The parent and the remix go for good.
    for id in [&parent, &heir] {
        server.delete(&format!("/sessions/{id}")).await;
    }
    let prune = || server.post("/system/prune", json!({ "deleted_sessions_after_seconds": 0 }));
    let mut pruned = 0;
    eventually("their files go", async || {
        pruned += prune().await.1["sessions"].as_u64().unwrap();
        pruned == 2
    })
    .await;
    server.stop();
    server.start_again();
    assert_eq!(said(&conversation(&server, &early).await), then[..2]);
    assert_eq!(said(&conversation(&server, &regained).await), then);
    assert_eq!(said(&conversation(&server, &grandchild).await), before);
    let last = remix(&server, &grandchild, json!({})).await;
    assert_eq!(said(&conversation(&server, &last).await), before);
    assert_eq!(server.get("/health").await.1["parts"]["records"], "ok");
}

#[tokio::test]
async fn what_is_taken_back_or_open_is_not_inherited() {
    let server = server_or_skip!();
    let parent = server.session(json!({})).await;
    server.output(&parent, "echo 1 > file").await;
    let first = checkpoint(&server, &parent).await;
    server.output(&parent, "echo 2 > file").await;
    restore(&server, &parent, &first).await;
    server.output(&parent, "echo 3 > file").await;
    let stands = said(&server.messages(&parent).await);
    assert_eq!(stands.len(), 4);
    let path = format!("/sessions/{parent}/messages");
    server.post(&path, json!({ "content": "touch busy; sleep 1000" })).await;
    while server.get(&format!("/sessions/{parent}/files/busy")).await.0 != 200 {}
    let mut waiting = Vec::new();
    for n in 0..3 {
        let content = format!("echo waits {n}");
        waiting.push(server.post(&path, json!({ "content": content })).await.1["id"].as_str().unwrap().to_owned());
    }
    // One of those that wait ends before the others.
    server.post(&format!("{path}/{}/cancel", waiting[1]), json!(null)).await;
    let heir = remix(&server, &parent, json!({})).await;
    let inherited = conversation(&server, &heir).await;
    assert_eq!(said(&inherited)[..4], stands[..]);
    assert_eq!((inherited.len(), &inherited[4]["content"]), (5, &json!("echo waits 1")), "{inherited:#?}");
    assert_eq!(inherited[4]["status"], "cancelled");
    for id in [&waiting[0], &waiting[2]] {
        assert_eq!(server.get(&format!("/sessions/{heir}/messages/{id}")).await.0, 404);
    }
    let path = format!("/sessions/{heir}/messages/{}/cancel", waiting[1]);
    assert_eq!(server.post(&path, json!(null)).await.0, 200, "to ask again changes nothing");
    server.post(&format!("/sessions/{parent}/terminate"), json!(null)).await;
    server.until(&parent, |session| session["state"] == "IDLE").await;
    assert_eq!(conversation(&server, &heir).await, inherited);
}

#[tokio::test]
async fn an_inherited_message_opens_no_door() {
    let server = server_or_skip!();
    let (alice, bob) = (member(&server, "alice").await, member(&server, "bob").await);
    let (_, made) = call(&server, &alice, "POST", "/sessions", Some(json!({}))).await;
    let hers = made["id"].as_str().unwrap().to_owned();
    server.output(&hers, "echo secret > file").await;
    let (status, made) = call(&server, &alice, "POST", &format!("/sessions/{hers}/remix"), Some(json!({}))).await;
    assert_eq!(status, 201, "{made}");
    let heir = made["id"].as_str().unwrap();
    let (_, made) = call(&server, &bob, "POST", "/sessions", Some(json!({}))).await;
    let his = made["id"].as_str().unwrap();
    for message in server.messages(heir).await {
        let id = message["id"].as_str().unwrap();
        assert_eq!(call(&server, &alice, "GET", &format!("/sessions/{heir}/messages/{id}"), None).await.0, 200);
        for session in [heir, &hers, his] {
            let path = format!("/sessions/{session}/messages/{id}");
            assert_eq!(call(&server, &bob, "GET", &path, None).await.0, 404, "{path}");
            assert_eq!(call(&server, &bob, "POST", &format!("{path}/cancel"), None).await.0, 404, "{path}");
        }
    }
}

#[tokio::test]
async fn a_damaged_message_costs_its_remixes_itself_and_nothing_else() {
    let server = server_or_skip!();
    let parent = server.session(json!({})).await;
    for n in 0..3 {
        server.output(&parent, &format!("echo {n} > file; echo {n}")).await;
    }
    let heir = remix(&server, &parent, json!({})).await;
    server.until(&heir, |session| session["state"] == "READY").await;
    let before = conversation(&server, &heir).await;
    let log = server.events(&heir).await;
    let database = rusqlite::Connection::open(server.data_dir().join("raworc.db")).unwrap();
    database.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    database.pragma_update(None, "foreign_keys", "OFF").unwrap();
    let victim = before[2]["id"].as_str().unwrap();
    for (column, wrong) in [("role", "'x'"), ("n", "'x'"), ("seq", "'x'"), ("session_id", "'x'"), ("metadata", "'{'")] {
        let write = |value: &str| {
            database.execute(&format!("UPDATE messages SET {column} = {value} WHERE id = '{victim}'"), []).unwrap()
        };
        let read = format!("SELECT quote({column}) FROM messages WHERE id = '{victim}'");
        let right: String = database.query_row(&read, [], |row| row.get(0)).unwrap();
        write(wrong);
        let others: Vec<&Value> = before.iter().filter(|message| message["id"] != victim).collect();
        assert_eq!(server.messages(&heir).await.iter().collect::<Vec<_>>(), others, "{column}");
        let events = server.events(&heir).await;
        let place = before[2]["seq"].as_u64().unwrap() as usize - 1;
        if column != "metadata" {
            assert_eq!(events[place]["type"], "record.damaged", "{column}: {:#}", events[place]);
        }
        assert_eq!((&events[..place], &events[place + 1..]), (&log[..place], &log[place + 1..]), "{column}");
        let (_, health) = server.get("/health").await;
        let tables: BTreeSet<&str> =
            health["damaged"].as_array().unwrap().iter().map(|damage| damage["table"].as_str().unwrap()).collect();
        assert_eq!(tables, BTreeSet::from(["messages"]), "{column}: {health:#}");
        // A remix that is made meanwhile has what can be read.
        let young = remix(&server, &heir, json!({ "checkpoint": 1 })).await;
        assert_eq!(server.messages(&young).await.len(), others.len(), "{column}");
        assert_eq!(write(&right), 1);
        assert_eq!(conversation(&server, &heir).await, before, "{column}");
    }
    assert_eq!(server.get("/health").await.1["parts"]["records"], "ok");
}

#[tokio::test]
async fn of_too_many_parts_a_remix_has_a_copy() {
    let mut server = server_or_skip!();
    let parent = server.session(json!({})).await;
    server.output(&parent, "echo 1 > file; echo 1").await;
    let heir = remix(&server, &parent, json!({ "waiting_timeout_seconds": 3600 })).await;
    server.until(&heir, |session| session["state"] == "READY").await;
    server.stop();
    // As after a long chain of remixes: many parts, here all of the same two messages.
    let database = rusqlite::Connection::open(server.data_dir().join("raworc.db")).unwrap();
    for place in 0..MANY {
        let seq = 1000 + 2 * place;
        let text = format!(
            "INSERT INTO conversation_segments SELECT session_id, {seq}, source_id, from_n, to_n, to_seq, generation, \
             actor, at FROM conversation_segments WHERE session_id = '{heir}' AND seq = 2"
        );
        assert_eq!(database.execute(&text, []).unwrap(), 1);
    }
    drop(database);
    server.start_again();
    let before = server.messages(&heir).await;
    assert_eq!(before.len() as u64, 2 * (MANY + 1));
    // What is said next has its place behind all of them.
    let last = server.send(&heir, "echo last").await;
    assert!(last["seq"].as_u64().unwrap() > 1000 + 2 * MANY - 1, "{last:#}");
    let copied = remix(&server, &heir, json!({})).await;
    let all = conversation(&server, &copied).await;
    let text = |messages: &[Value]| messages.iter().map(|message| message["content"].clone()).collect::<Vec<_>>();
    assert_eq!(text(&all), text(&server.messages(&heir).await));
    let known: BTreeSet<&str> = before.iter().map(|message| message["id"].as_str().unwrap()).collect();
    assert!(all.iter().all(|message| !known.contains(message["id"].as_str().unwrap())), "they are the copy's own");
    let shared = remix(&server, &copied, json!({})).await;
    assert_eq!(text(&conversation(&server, &shared).await), text(&all));
}
