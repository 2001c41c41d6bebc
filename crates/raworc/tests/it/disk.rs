//! Disk usage, and freeing space.

use serde_json::{Value, json};

use crate::harness::eventually;
use crate::server_or_skip;

/// Bytes written at once in these tests.
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
    eventually("its files go", async || prune().await.1["sessions"] == 1).await;
    assert_eq!(prune().await.1["sessions"], 0);
    assert_eq!(server.output(&heir, "sha256sum data").await, heir_seen);
    let (_, session) = server.get(&format!("/sessions/{gone}")).await;
    assert!(session["purged_at"].is_string(), "{session:#}");
    assert_eq!(server.messages(&gone).await.len(), 2, "the conversation stays");
    for (path, body) in [("restore", Value::Null), ("remix", json!({}))] {
        let (status, problem) = server.post(&format!("/sessions/{gone}/{path}"), body).await;
        assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("session_deleted")), "{problem:#}");
    }
    for path in ["files", "files/data", "checkpoints/now/files", "checkpoints/now/diff"] {
        let (status, problem) = server.get(&format!("/sessions/{gone}/{path}")).await;
        assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("session_deleted")), "{path}: {problem:#}");
    }
    assert_eq!(server.delete(&format!("/sessions/{heir}")).await.0, 200);
    let deleted = async || server.get("/system/disk").await.1["deleted_sessions"]["layers"].clone();
    eventually("its files are a deleted session's", async || deleted().await != 0).await;
    eventually("they go", async || prune().await.1["sessions"] == 1).await;
    let usage = server.get("/system/disk").await.1;
    assert_eq!(usage["deleted_sessions"]["layers"], 0, "{usage:#}");
    assert!(usage["sessions"]["bytes"].as_u64().unwrap() < 2 * MUCH, "{usage:#}");

    let output = server.cli(&["system", "df"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("sessions"), "{output:?}");
    assert!(server.cli(&["system", "prune", "--images", "--deleted-before", "7d"]).status.success());
}

#[tokio::test]
async fn a_session_takes_no_more_than_it_may() {
    let server = server_or_skip!();
    let id = server.session(json!({ "resources": { "disk": "20Mi" } })).await;
    server.output(&id, "head -c 5000000 /dev/zero > small; echo mine > mine").await;
    // What writes too much ends, with what runs in the background; what was saved stays, and what was written, too.
    let message = server.send(&id, "(while :; do head -c 1000000 /dev/zero >> more; done) & wait").await;
    assert_eq!((&message["status"], &message["error"]["code"]), (&json!("failed"), &json!("disk_quota_exceeded")));
    let session = server.until(&id, |session| session["state"] == "IDLE").await;
    assert_eq!((&session["error"], &session["resources"]["disk"]), (&Value::Null, &json!(20 << 20)), "{session:#}");
    assert!(server.events(&id).await.iter().any(|event| event["type"] == "session.disk_quota_exceeded"));
    let path = format!("/sessions/{id}/files/from-outside");
    let put = || server.request(reqwest::Method::PUT, &path).body("x").send();
    assert_eq!(put().await.unwrap().status(), 507);
    // It can still be looked into and cleaned up, but not grow.
    assert_eq!(server.output(&id, "cat mine; rm more").await, "mine\n");
    // What was removed counts until that is saved, which is soon.
    eventually("there is room", async || put().await.unwrap().status() == 201).await;
    let message = server.send(&id, "head -c 30000000 /dev/zero > again; sleep 1000").await;
    assert_eq!(message["error"]["code"], "disk_quota_exceeded", "{message:#}");
    // More can be given, also while it runs.
    let (status, _) = server.put(&format!("/sessions/{id}"), json!({ "resources": { "disk": "1Gi" } })).await;
    assert_eq!(status, 200);
    assert_eq!(server.output(&id, "head -c 30000000 /dev/zero > third; ls | wc -l").await, "5\n");
    let (_, remix) = server.post(&format!("/sessions/{id}/remix"), json!({})).await;
    assert_eq!(remix["resources"]["disk"], 1 << 30);
    for wrong in [json!("12"), json!(-1), json!("2048Ti")] {
        let (status, problem) = server.post("/sessions", json!({ "resources": { "disk": wrong } })).await;
        assert_eq!((status.as_u16(), &problem["errors"][0]["field"]), (422, &json!("resources.disk")), "{problem:#}");
    }
}

#[tokio::test]
async fn nothing_is_hidden_from_the_limit() {
    let server = server_or_skip!();
    let id = server.session(json!({ "resources": { "disk": "20Mi" } })).await;
    let hidden = [
        // Removed, but open: no directory has it.
        "exec 3> gone; rm gone; head -c 30000000 /dev/zero >&3; sleep 1000",
        // Empty files, which take no block.
        "mkdir many; cd many; seq 1 9000 | xargs touch; sleep 1000",
        // So many open files that to look at each of them would take its time.
        "ulimit -n $(ulimit -Hn); for n in $(seq 130); do perl -e 'open $f[$_], \">&STDIN\" for 0..2199; sleep 1000' & done; wait",
    ];
    for script in hidden {
        let message = server.send(&id, script).await;
        assert_eq!(message["error"]["code"], "disk_quota_exceeded", "{script}: {message:#}");
    }
    assert_eq!(server.output(&id, "rm -r many; ls").await, "");
}

#[tokio::test]
async fn what_is_saved_counts_as_what_it_takes() {
    let server = server_or_skip!();
    let id = server.session(json!({ "resources": { "disk": "20Mi" } })).await;
    // A file that says it is large, and has nothing but a hole.
    server.output(&id, "truncate -s 10G hole; echo mine > mine").await;
    assert_eq!(server.output(&id, "cat mine; ln hole again; rm hole").await, "mine\n");
    // Links have no content, and take their place; so do further names of a file.
    let script = "mkdir $0; cd $0; for n in $(seq 3000); do ln $1 $n; done";
    let make = |name: &str, how: &str| script.replace("$0", name).replace("$1", how);
    server.output(&id, &make("links", "-s nowhere")).await;
    let message = server.send(&id, &format!("{}; sleep 1000", make("names", "../mine"))).await;
    assert_eq!(message["error"]["code"], "disk_quota_exceeded", "{message:#}");
    // What was removed is free again, also where files had several names.
    eventually("there is room", async || {
        server.output(&id, "rm -rf links names").await;
        let message = server.send(&id, "head -c 15000000 /dev/zero > more; sleep 3; rm more").await;
        message["status"] == "done"
    })
    .await;
}

#[tokio::test]
async fn a_session_far_over_its_limit_is_cleaned_up_before_it_starts() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    server.output(&id, "fallocate -l 1300M much; echo mine > mine").await;
    let (status, _) = server.put(&format!("/sessions/{id}"), json!({ "resources": { "disk": "1Mi" } })).await;
    assert_eq!(status, 200);
    server.post(&format!("/sessions/{id}/pause"), json!(null)).await;
    server.post(&format!("/sessions/{id}/resume"), json!(null)).await;
    let session = server.until(&id, |session| session["state"] == "ERROR").await;
    assert_eq!(session["error"]["code"], "disk_quota_exceeded", "{session:#}");
    assert!(session["error"]["message"].as_str().unwrap().contains("files rm"), "{session:#}");
    assert_eq!(server.delete(&format!("/sessions/{id}/files/much")).await.0, 204);
    server.post(&format!("/sessions/{id}/restart"), json!(null)).await;
    assert_eq!(server.output(&id, "cat mine; ls").await, "mine\nmine\n");
}
