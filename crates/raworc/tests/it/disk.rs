//! What takes space, and how it is given back.

use serde_json::{Value, json};

use crate::server_or_skip;

/// Bytes of what is written once in these tests.
const MUCH: u64 = 3_000_000;

#[tokio::test]
async fn space_is_told_and_given_back() {
    let server = server_or_skip!();
    let kept = server.session(json!({ "name": "kept", "checkpoints": { "keep_last": 1 } })).await;
    let gone = server.session(json!({ "name": "gone" })).await;
    // Overwritten again and again: what nobody can go back to is of no use.
    for _ in 0..4 {
        server.output(&kept, &format!("head -c {MUCH} /dev/urandom > data")).await;
    }
    server.output(&gone, &format!("head -c {MUCH} /dev/urandom > data")).await;
    let remix = server.post(&format!("/sessions/{gone}/remix"), json!({ "name": "heir" })).await.1;
    let heir = remix["id"].as_str().unwrap().to_owned();
    let seen = server.output(&kept, "sha256sum data").await;
    let usage = server.get("/system/disk").await.1;
    assert!(usage["sessions"]["bytes"].as_u64().unwrap() >= 5 * MUCH, "{usage:#}");
    assert!(usage["free_bytes"].as_u64() > Some(0) && usage["records_bytes"].as_u64() > Some(0));

    let (status, pruned) = server.post("/system/prune", json!({})).await;
    assert_eq!((status.as_u16(), &pruned["sessions"]), (200, &json!(0)), "{pruned:#}");
    assert!(pruned["bytes"].as_u64().unwrap() >= 3 * MUCH, "what was overwritten three times: {pruned:#}");
    assert_eq!(server.output(&kept, "sha256sum data").await, seen);

    // What a deleted session has stays until someone says otherwise; its remix keeps what it needs.
    assert_eq!(server.delete(&format!("/sessions/{gone}")).await.0, 200);
    server.until(&gone, |session| session["state"] == "IDLE").await;
    let heir_seen = server.output(&heir, "sha256sum data").await;
    let (_, pruned) = server.post("/system/prune", json!({ "deleted_sessions_after_seconds": 3600 })).await;
    assert_eq!(pruned["sessions"], 0, "it was deleted just now");
    server.until(&gone, |session| session["state"] == "IDLE").await;
    let prune = || server.post("/system/prune", json!({ "deleted_sessions_after_seconds": 0 }));
    // Its container may be on its way out still.
    while prune().await.1["sessions"] != 1 {}
    assert_eq!(prune().await.1["sessions"], 0);
    assert_eq!(server.output(&heir, "sha256sum data").await, heir_seen);
    let (_, session) = server.get(&format!("/sessions/{gone}")).await;
    assert!(session["purged_at"].is_string(), "{session:#}");
    assert_eq!(server.messages(&gone).await.len(), 2, "the conversation stays");
    for (path, body) in [("restore", Value::Null), ("remix", json!({}))] {
        let (status, problem) = server.post(&format!("/sessions/{gone}/{path}"), body).await;
        assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("session_deleted")), "{problem:#}");
    }
    assert_eq!(server.delete(&format!("/sessions/{heir}")).await.0, 200);
    while server.get("/system/disk").await.1["deleted_sessions"]["layers"] == 0 {}
    while prune().await.1["sessions"] != 1 {}
    let usage = server.get("/system/disk").await.1;
    assert_eq!(usage["deleted_sessions"]["layers"], 0, "{usage:#}");
    assert!(usage["sessions"]["bytes"].as_u64().unwrap() < 2 * MUCH, "{usage:#}");

    let output = server.cli(&["system", "df"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("sessions"), "{output:?}");
    assert!(server.cli(&["system", "prune", "--images", "--deleted-before", "7d"]).status.success());
}
