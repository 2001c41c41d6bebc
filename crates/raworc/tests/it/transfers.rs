//! Faults of transfers: kills, a full disk, damaged blobs.

use std::fs;
use std::path::{Path, PathBuf};

use reqwest::Method;
use serde_json::{Value, json};

use crate::daemon::{Daemon, Settings};
use crate::harness::{TestServer, can_run_containers};
use crate::portable::registry;

/// Starts a call with progress and reads `told` reports; returns true if it ended before.
async fn begin(request: reqwest::RequestBuilder, told: usize) -> (reqwest::Response, bool) {
    let mut response = request.header("accept", "text/event-stream").send().await.unwrap();
    assert!(response.status().is_success(), "{}", response.status());
    let mut text = String::new();
    while text.matches("event: progress").count() < told {
        match response.chunk().await.unwrap() {
            Some(chunk) => text.push_str(&String::from_utf8_lossy(&chunk)),
            None => return (response, true),
        }
        if text.contains("event: done") || text.contains("event: failed") {
            return (response, true);
        }
    }
    (response, false)
}

/// Layer directories, after garbage was removed.
async fn layers(server: &TestServer) -> Vec<PathBuf> {
    assert_eq!(server.post("/system/prune", json!({})).await.0, 200);
    let entries = fs::read_dir(server.data_dir().join("layers")).unwrap().flatten().map(|entry| entry.path());
    entries.filter(|path| path.file_name().unwrap().len() == 32).collect()
}

/// A blob in the registry's files.
fn blob(daemon: &Daemon, digest: &str) -> PathBuf {
    let hex = digest.trim_start_matches("sha256:");
    daemon.path("data").join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
}

/// Digests of an image's layers, lowest first.
fn layers_of(daemon: &Daemon, manifest: &Value) -> Vec<String> {
    let bytes = fs::read(blob(daemon, manifest["digest"].as_str().unwrap())).unwrap();
    let manifest: Value = serde_json::from_slice(&bytes).unwrap();
    let all = manifest["layers"].as_array().unwrap();
    all.iter().map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_server_that_is_killed_on_the_way_leaves_nothing_and_begins_again() {
    let Some(daemon) = registry(Settings::default()) else { return };
    let (mut here, mut there) = (TestServer::start(&[]), TestServer::start(&[]));
    let id = here.session(json!({})).await;
    // Long enough on its way to be met there: a few thousand files, and much that cannot be made smaller.
    here.output(&id, "mkdir d; seq 3000 | (cd d; xargs touch); head -c 60000000 /dev/urandom > much; echo end > end")
        .await;
    let seen = here.output(&id, "find . | sort | sha256sum; cat much end | sha256sum").await;
    let reference = format!("{}/killed:v1", daemon.address);
    let push = format!("/sessions/{id}/checkpoints/now/push");
    for told in 1..4 {
        let request = here.request(Method::POST, &push).json(&json!({ "reference": reference }));
        let (_response, _) = begin(request, told).await;
        here.kill();
        here.start_again();
    }
    assert_eq!(here.output(&id, "find . | sort | sha256sum; cat much end | sha256sum").await, seen);
    let (status, pushed) = here.post(&push, json!({ "reference": reference })).await;
    assert_eq!(status, 200, "{pushed:#}");

    let before = layers(&there).await;
    for told in 1..5 {
        let request = there.request(Method::POST, "/images").json(&json!({ "reference": reference }));
        let (_response, has_ended) = begin(request, told).await;
        there.kill();
        there.start_again();
        // It goes on while nobody reads what it tells: it may have ended before it was killed.
        if has_ended || there.get("/images").await.1["items"] != json!([]) {
            break;
        }
        assert_eq!(layers(&there).await, before, "after {told}");
    }
    let (status, session) = there.post("/sessions", json!({ "from": reference })).await;
    assert_eq!(status, 201, "{session:#}");
    let arrived = session["id"].as_str().unwrap();
    assert_eq!(there.output(arrived, "find . | sort | sha256sum; cat much end | sha256sum").await, seen);
}

#[tokio::test]
async fn what_is_spoiled_is_named_and_the_rest_is_still_there() {
    let Some(daemon) = registry(Settings::default()) else { return };
    let (here, there) = (TestServer::start(&[]), TestServer::start(&[]));
    let id = here.session(json!({})).await;
    here.output(&id, "head -c 300000 /dev/urandom > first").await;
    let good = format!("{}/spoiled:good", daemon.address);
    assert_eq!(here.post(&format!("/sessions/{id}/checkpoints/now/push"), json!({ "reference": good })).await.0, 200);
    here.output(&id, "head -c 300000 /dev/urandom > second").await;
    let bad = format!("{}/spoiled:bad", daemon.address);
    let (_, pushed) = here.post(&format!("/sessions/{id}/checkpoints/now/push"), json!({ "reference": bad })).await;
    let digest = layers_of(&daemon, &pushed).pop().unwrap();
    let whole = fs::read(blob(&daemon, &digest)).unwrap();
    let mut spoiled = whole.clone();
    spoiled[100_000] ^= 1;
    for content in [spoiled.as_slice(), &whole[..whole.len() / 2], b""] {
        fs::write(blob(&daemon, &digest), content).unwrap();
        let (status, problem) = there.post("/images", json!({ "reference": bad })).await;
        let said = problem["detail"].as_str().unwrap_or_default();
        assert!(status.is_client_error() || status == 503, "{problem:#}");
        assert!(said.contains(&digest) || problem["code"] == "registry_unavailable", "{problem:#}");
        assert_eq!(there.get("/images").await.1["items"], json!([]));
    }
    fs::remove_file(blob(&daemon, &digest)).unwrap();
    let (status, problem) = there.post("/images", json!({ "reference": bad })).await;
    assert!(status == 404 || status == 422, "{problem:#}");
    let (status, session) = there.post("/sessions", json!({ "from": good })).await;
    assert_eq!(status, 201, "{session:#}");
    assert_eq!(there.output(session["id"].as_str().unwrap(), "ls").await, "first\n");
    // Whoever still has it can send it again.
    fs::write(blob(&daemon, &digest), &whole).unwrap();
    assert_eq!(there.post("/images", json!({ "reference": bad })).await.0, 201);
    // A blob that is spoiled here, on its way out, is packed again.
    here.output(&id, "head -c 300000 /dev/urandom > third").await;
    let late = format!("{}/spoiled:late", daemon.address);
    let mut daemon = daemon;
    daemon.kill();
    let push = format!("/sessions/{id}/checkpoints/now/push");
    assert_eq!(here.post(&push, json!({ "reference": late })).await.0, 503);
    here.blobs().iter().for_each(|blob| spoil(blob));
    daemon.again();
    let (status, pushed) = here.post(&push, json!({ "reference": late })).await;
    assert_eq!(status, 200, "{pushed:#}\n{}", here.log());
    let (status, session) = there.post("/sessions", json!({ "from": late })).await;
    assert_eq!(status, 201, "{session:#}");
}

/// Changes a byte of a file.
fn spoil(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_disk_that_fills_up_on_the_way_loses_nothing() {
    if !can_run_containers() {
        return;
    }
    let big = TestServer::start(&[]);
    let id = big.session(json!({})).await;
    big.output(&id, "head -c 40000000 /dev/urandom > much").await;
    let file = big.data_dir().with_file_name("big.tar");
    let file = file.to_str().unwrap();
    assert!(big.cli(&["checkpoint", "export", &id, file]).status.success());

    let small = TestServer::start_on_disk(64);
    let own = small.session(json!({})).await;
    small.output(&own, "echo mine > mine; head -c 10000000 /dev/urandom > some").await;
    // What that message left is being saved still, and makes a layer.
    small.post(&format!("/sessions/{own}/checkpoints"), json!({})).await;
    let before = layers(&small).await;
    // The archive fits, what is in it does not fit beside it.
    let output = small.cli(&["checkpoint", "import", file, "--name", "big", "--output", "json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("disk_full"), "{output:?}");
    assert_eq!(small.get("/images").await.1["items"], json!([]));
    assert_eq!(layers(&small).await, before);
    assert_eq!(small.output(&own, "cat mine; echo more > more").await, "mine\n");
    // On its way out, nothing more is needed than what is packed; where that has no room, the session goes on.
    small.output(&own, "head -c 20000000 /dev/urandom > fills").await;
    // (A device is written to, and not replaced.)
    let output = small.cli(&["checkpoint", "export", &own, "/dev/null"]);
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    let is_full = String::from_utf8_lossy(&output.stderr).contains("disk is full");
    assert!(output.status.success() || is_full || output.status.code() == Some(1), "{output:?}");
    assert_eq!(small.output(&own, "cat mine more").await, "mine\nmore\n");
}
