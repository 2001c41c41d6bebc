//! Damaged records: every column of every table, while the server runs and while it does not.

use std::collections::BTreeSet;
use std::fs;

use reqwest::Method;
use rusqlite::types::Value as Sql;
use serde_json::{Value, json};

use crate::harness::{TestServer, eventually};
use crate::server_or_skip;

/// The value of a damaged column.
fn damages() -> Vec<Sql> {
    vec![
        Sql::Null,
        Sql::Text("{".into()),
        Sql::Text(String::new()),
        Sql::Text("WRONG".into()),
        Sql::Text("x".repeat(1 << 20)),
        // An id of nothing.
        Sql::Text("00000000-0000-7000-8000-00000000dead".into()),
        Sql::Integer(-1),
        Sql::Integer(i64::MAX),
        Sql::Real(1.5),
        Sql::Blob(vec![0xff, 0x00, 0xfe]),
    ]
}

/// One record of a table.
struct Victim {
    table: String,
    columns: Vec<String>,
    rowid: i64,
}

/// The database, accessed without the server.
fn database(server: &TestServer) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(server.data_dir().join("raworc.db")).unwrap();
    connection.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    connection.pragma_update(None, "foreign_keys", "OFF").unwrap();
    connection
}

/// Inserts a stale terminal, whose record is removed when the session has another container.
fn leave_over(database: &rusqlite::Connection, session: &str) {
    let row = "INSERT OR IGNORE INTO streams VALUES \
               ('00000000-0000-7000-8000-000000000001', ?1, 1, 'terminal', 'sh', 'admin', 1)";
    database.execute(row, [session]).unwrap();
}

/// A record of each table: those of the session, agent, account and image named `victim`.
fn victims(database: &rusqlite::Connection, session: &str) -> Vec<Victim> {
    leave_over(database, session);
    let mut tables = database
        .prepare("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name")
        .unwrap();
    let tables: Vec<String> = tables.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let of = |table: String| {
        let mut columns = database.prepare(&format!("SELECT name FROM pragma_table_info('{table}')")).unwrap();
        let columns: Vec<String> = columns.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        let condition = match table.as_str() {
            "sessions" => format!("id = '{session}'"),
            "accounts" | "agents" | "images" | "providers" | "secrets" => "name LIKE 'victim%'".to_owned(),
            "tokens" => "account_id = (SELECT id FROM accounts WHERE name = 'victim')".to_owned(),
            "layers" => format!("id = (SELECT layer_id FROM sessions WHERE id = '{session}')"),
            "settings" => "name = 'host_secret'".to_owned(),
            "conversation_segments" => format!("source_id = '{session}'"),
            _ if columns.iter().any(|column| column == "session_id") => format!("session_id = '{session}'"),
            _ => "1 = 1".to_owned(),
        };
        let rowid = format!("SELECT rowid FROM {table} WHERE {condition} ORDER BY rowid LIMIT 1");
        let rowid = database.query_row(&rowid, [], |row| row.get(0));
        let rowid = rowid.unwrap_or_else(|error| panic!("there is no victim in {table}: {error}"));
        Victim { table, columns, rowid }
    };
    tables.into_iter().map(of).collect()
}

impl Victim {
    fn read(&self, database: &rusqlite::Connection, column: &str) -> Sql {
        let text = format!("SELECT {column} FROM {} WHERE rowid = {}", self.table, self.rowid);
        database.query_row(&text, [], |row| row.get(0)).unwrap()
    }

    /// Returns false if the table rejects the value.
    fn write(&self, database: &rusqlite::Connection, column: &str, value: &Sql) -> bool {
        let text = format!("UPDATE {} SET {column} = ?1 WHERE rowid = {}", self.table, self.rowid);
        database.execute(&text, [value]).is_ok_and(|rows| rows == 1)
    }
}

/// Creates an intact session, and one to be damaged, with an agent, an account, an image, and a record in every other
/// table.
async fn furnish(server: &TestServer) -> (String, String) {
    let agent = json!({ "name": "victim", "metadata": { "a": 1 } });
    assert_eq!(server.post("/agents", agent).await.0, 201);
    let provider = json!({ "name": "victim", "kind": "openai", "base_url": "http://127.0.0.1:9", "api_key": "sk-victim",
                           "models": [{ "id": "m", "aliases": ["a"], "price": { "input_per_million": 1, "output_per_million": 2 } }] });
    assert_eq!(server.post("/providers", provider).await.0, 201);
    let provider = json!({ "name": "sound", "kind": "openai", "api_key": "sk-sound", "models": [{ "id": "sound" }] });
    assert_eq!(server.post("/providers", provider).await.0, 201);
    assert_eq!(server.post("/accounts", json!({ "name": "victim", "role": "member" })).await.0, 201);
    assert_eq!(server.post("/accounts/victim/tokens", json!({ "name": "t" })).await.0, 201);
    let secret = json!({ "name": "victim", "value": "secret", "hosts": ["api.test"] });
    assert_eq!(server.post("/secrets", secret).await.0, 201);
    let whole = server.session(json!({ "name": "whole" })).await;
    let victim = server.session(json!({ "name": "victim" })).await;
    server.output(&whole, "echo whole > file").await;
    let path = format!("/sessions/{victim}/messages?wait_seconds=60");
    let request = server.request(Method::POST, &path).header("idempotency-key", "victim");
    let sent = request.json(&json!({ "content": "echo kept > file" })).send().await.unwrap();
    assert!(sent.status().is_success(), "{sent:?}");
    saved(server, &victim).await;
    let call = r#"curl -sS "$OPENAI_BASE_URL/chat/completions" -H 'content-type: application/json' \
                  -d '{"model": "replay/fix-the-tests", "messages": [{"role": "user", "content": "a title"}]}'"#;
    let (status, ran) = server.post(&format!("/sessions/{victim}/exec"), json!({ "command": call })).await;
    assert!(status.is_success() && ran["stdout"].as_str().unwrap().contains("Fix the tests"), "{ran:#}");
    let has_called = async || server.events(&victim).await.iter().any(|event| event["type"] == "model.called");
    eventually("the call is recorded", has_called).await;
    let archive = server.data_dir().join("victim.tar");
    let archive = archive.to_str().unwrap();
    for arguments in
        [&["checkpoint", "export", "victim", archive][..], &["checkpoint", "import", archive, "--name", "victim"]]
    {
        let output = server.cli(arguments);
        assert!(output.status.success(), "{output:?}");
    }
    fs::remove_file(archive).unwrap();
    let (status, heir) = server.post(&format!("/sessions/{victim}/remix"), json!({ "name": "heir" })).await;
    assert_eq!(status, 201, "{heir:#}");
    server.until(heir["id"].as_str().unwrap(), |session| session["state"] == "READY").await;
    (whole, victim)
}

async fn saved(server: &TestServer, id: &str) {
    eventually("everything is saved", async || {
        let page = server.get(&format!("/sessions/{id}/checkpoints")).await.1;
        let all = page["items"].as_array().unwrap().clone();
        !all.is_empty() && all.iter().all(|checkpoint| checkpoint["status"] == "ready")
    })
    .await;
}

/// With any damage, the server reports it, lists work, and no call fails with `internal`.
async fn holds(server: &TestServer, victim: &str, what: &str) -> Value {
    let anonymous = reqwest::get(format!("{}/api/v0/health", server.url)).await.unwrap();
    assert_eq!(anonymous.status(), 200, "{what}");
    let told: Value = anonymous.json().await.unwrap();
    assert!(told.get("damaged").is_none() && told.get("problems").is_none(), "{what}: {told}");
    let (status, health) = server.get("/health").await;
    assert_eq!(status, 200, "{what}: {health}");
    for list in
        ["/sessions?include_deleted=true", "/agents", "/accounts", "/images", "/providers", "/models", "/models/sound"]
    {
        let (status, page) = server.get(list).await;
        assert_eq!(status, 200, "{what}: {list}: {page}");
    }
    let member = format!("/sessions/{victim}");
    let own = ["", "/messages", "/events", "/checkpoints", "/agents", "/files", "/checkpoints/1/files"];
    let own = own.iter().map(|path| format!("{member}{path}"));
    let others = [
        "/agents/victim",
        "/providers/victim",
        "/models/victim%2Fm",
        "/secrets",
        "/secrets/victim",
        "/accounts/victim",
        "/accounts/victim/tokens",
        "/system/disk",
        "/sessions/heir/messages",
        "/sessions/heir/events",
    ];
    for path in own.chain(others.map(str::to_owned)) {
        let (status, answer) = server.get(&path).await;
        let is_told = status.as_u16() < 500 || answer["code"] == "workspace_damaged";
        assert!(is_told, "{what}: {path}: {status} {answer}");
    }
    health
}

/// All layer directories.
fn layers(server: &TestServer) -> BTreeSet<String> {
    let all = fs::read_dir(server.data_dir().join("layers")).unwrap();
    all.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// Whether `{` is invalid in any column of this table, so that it must be reported.
fn is_strict(table: &str, column: &str) -> bool {
    let free = [
        "sessions.name",
        "sessions.starting_prompt",
        "sessions.owner_name",
        "sessions.state",
        "sessions.container",
        "sessions.deadline_at",
        "sessions.deleted_at",
        "agents.builtin",
        "accounts.name",
        "tokens.name",
        "images.owner_name",
        "images.name",
        "images.digest",
        "layers.diff_id",
        "checkpoints.label",
        "checkpoints.error",
        "checkpoints.created_by",
        "messages.content",
        "messages.agent",
        "events.kind",
        "events.actor",
        "events.session_id",
        "conversation_segments.actor",
        "model_calls.agent",
        "model_calls.provider",
        "model_calls.model",
        "model_calls.request",
        "model_calls.answer",
        "streams.command",
        "streams.actor",
        "idempotency_keys.account_id",
        "idempotency_keys.key",
        "idempotency_keys.fingerprint",
        "idempotency_keys.resource_id",
        "settings.name",
        // What a running server uses it has read; at its start it looks what it is.
        "settings.value",
    ];
    table != "audit" && !free.contains(&format!("{table}.{column}").as_str())
}

#[tokio::test]
async fn every_column_of_every_table_may_be_damaged_while_it_runs() {
    let server = server_or_skip!();
    let (whole, victim) = furnish(&server).await;
    server.post(&format!("/sessions/{victim}/pause"), json!({})).await;
    server.until(&victim, |session| session["state"] == "IDLE").await;
    let before = layers(&server);
    let database = database(&server);
    for record in victims(&database, &victim) {
        for column in &record.columns {
            leave_over(&database, &victim);
            let right = record.read(&database, column);
            // A key that seems old is given up, as old ones are.
            if (record.table.as_str(), column.as_str()) == ("idempotency_keys", "created_at") {
                continue;
            }
            for (place, wrong) in damages().iter().enumerate() {
                leave_over(&database, &victim);
                if !record.write(&database, column, wrong) {
                    continue;
                }
                let what = format!("{}.{column} is damage {place}", record.table);
                if matches!(wrong, Sql::Text(text) if text == "{") {
                    let health = holds(&server, &victim, &what).await;
                    let named = |damage: &Value| damage["table"] == record.table.as_str();
                    let is_named = health["damaged"].as_array().into_iter().flatten().any(named);
                    assert!(is_named || !is_strict(&record.table, column), "{what}: {health:#}");
                    assert!(health["status"] == "degraded" || !is_named, "{what}: {health:#}");
                    server.output(&whole, "cat file").await;
                } else {
                    server.get("/health").await;
                    let (status, answer) = server.get(&format!("/sessions/{victim}")).await;
                    assert!(status.as_u16() < 500, "{what}: {answer}");
                    for list in ["/sessions", "/agents", "/accounts", "/images", "/providers", "/models/sound"] {
                        assert_eq!(server.get(list).await.0, 200, "{what}: {list}");
                    }
                }
                let is_mended = record.write(&database, column, &right) || record.table == "streams";
                assert!(is_mended, "{what}: it cannot be mended");
            }
        }
    }
    let (_, health) = server.get("/health").await;
    assert_eq!(health["parts"]["records"], "ok", "{health:#}");
    assert!(before.is_subset(&layers(&server)), "something was removed");
    let (status, answer) = server.post(&format!("/sessions/{victim}/resume"), json!({})).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(server.output(&victim, "cat file").await, "kept\n");
    let (status, made) = server.post(&format!("/sessions/{victim}/checkpoints"), json!({})).await;
    assert_eq!((status.as_u16(), &made["status"]), (201, &json!("ready")), "{made:#}");
}

#[tokio::test]
async fn every_column_of_every_table_may_be_damaged_before_it_starts() {
    let mut server = server_or_skip!();
    let (whole, victim) = furnish(&server).await;
    let wrong = damages();
    let before = layers(&server);
    let mut damaged: Vec<(Victim, String, Sql)> = Vec::new();
    for round in 0.. {
        server.kill();
        let database = database(&server);
        for (record, column, right) in damaged.drain(..) {
            let is_mended = record.write(&database, &column, &right) || record.table == "streams";
            assert!(is_mended, "{}.{column}", record.table);
        }
        // A setting of another name is none, and another one is made.
        for record in victims(&database, &victim).into_iter().filter(|record| record.table != "settings" || round == 1)
        {
            let Some(column) = record.columns.get(round) else { continue };
            let right = record.read(&database, column);
            // Another kind each time; where the table does not take it, the one that it takes.
            let mut kinds = (0..wrong.len()).map(|kind| &wrong[(round + kind + 1) % wrong.len()]);
            if kinds.any(|kind| record.write(&database, column, kind)) {
                let column = column.clone();
                damaged.push((record, column, right));
            }
        }
        drop(database);
        server.start_again();
        if damaged.is_empty() {
            break;
        }
        let what: Vec<String> =
            damaged.iter().map(|(record, column, _)| format!("{}.{column}", record.table)).collect();
        holds(&server, &victim, &format!("{what:?}")).await;
        assert_eq!(server.output(&whole, "cat file").await, "whole\n", "{what:?}");
    }
    eventually("all records are whole", async || server.get("/health").await.1["parts"]["records"] == "ok").await;
    assert!(before.is_subset(&layers(&server)), "something was removed");
    server.post(&format!("/sessions/{victim}/restart"), json!({})).await;
    assert_eq!(server.output(&victim, "cat file").await, "kept\n");
}

#[tokio::test]
async fn a_damaged_session_that_runs_is_stopped_and_goes_on_when_it_is_mended() {
    let server = server_or_skip!();
    let (whole, victim) = furnish(&server).await;
    server.output(&victim, "echo written > new").await;
    let database = database(&server);
    let all = victims(&database, &victim);
    let record = all.iter().find(|record| record.table == "sessions").unwrap();
    let (container, right) = (server.container(&victim).await, record.read(&database, "machine"));
    assert!(record.write(&database, "machine", &Sql::Text("{".into())));
    let (_, health) = server.get("/health").await;
    assert_eq!(health["status"], "degraded", "{health:#}");
    assert_eq!(health["damaged"][0]["column"], "machine", "{health:#}");
    let (status, problem) = server.get("/sessions/victim").await;
    assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("record_damaged")), "{problem}");
    let (_, page) = server.get("/sessions").await;
    assert_eq!(page["damaged"], json!([victim]), "{page:#}");
    eventually("its container is stopped", async || !server.containers().contains(&container)).await;
    assert!(record.write(&database, "machine", &right));
    eventually("it is whole again", async || server.get("/health").await.1["status"] == "ok").await;
    assert_eq!(server.output(&victim, "cat file new").await, "kept\nwritten\n");
    // Damaged again, it may be deleted all the same; it is, properly, once it is mended.
    let right = record.read(&database, "machine");
    assert!(record.write(&database, "machine", &Sql::Text("{".into())));
    assert_eq!(server.delete(&format!("/sessions/{victim}")).await.0, 204);
    assert_eq!(server.get("/sessions").await.1["damaged"], Value::Null);
    assert!(record.write(&database, "machine", &right));
    eventually("it is whole again", async || server.get("/health").await.1["status"] == "ok").await;
    let session = server.until(&victim, |session| session["state"] == "IDLE").await;
    assert!(session["deleted_at"].is_string(), "{session:#}");
    assert_eq!(server.post(&format!("/sessions/{victim}/restore"), Value::Null).await.0, 200);
    assert_eq!(server.output(&victim, "cat file").await, "kept\n");
    assert_eq!(server.output(&whole, "cat file").await, "whole\n");
}

#[tokio::test]
async fn a_database_that_is_none_or_newer_is_said_at_start() {
    let mut server = server_or_skip!();
    server.stop();
    let path = server.data_dir().join("raworc.db");
    let right = fs::read(&path).unwrap();
    let mut cut = right.clone();
    cut.truncate(right.len() / 2);
    for (content, said) in [(b"this is no database at all, and long enough".repeat(100), "damaged"), (cut, "damaged")] {
        fs::write(&path, content).unwrap();
        assert!(fails_to_start(&server).contains(said), "{}", fails_to_start(&server));
    }
    fs::write(&path, right).unwrap();
    let database = database(&server);
    let version: i64 = database.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    database.pragma_update(None, "user_version", version + 1).unwrap();
    assert!(fails_to_start(&server).contains("newer release"), "{}", fails_to_start(&server));
    database.pragma_update(None, "user_version", version).unwrap();
    drop(database);
    server.start_again();
}

/// The error of a server that does not start.
fn fails_to_start(server: &TestServer) -> String {
    let output = server.cli(&["serve", "--listen", "127.0.0.1:0"]);
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).replace('│', " ").split_whitespace().collect::<Vec<_>>().join(" ")
}
