//! Health reports each failing part; administrators also see problems and remedies.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{TestServer, can_run_containers, eventually};
use crate::server_or_skip;

/// The health as seen by everyone, and by an administrator.
async fn health(server: &TestServer) -> (Value, Value) {
    let anonymous = reqwest::get(format!("{}/api/v0/health", server.url)).await.unwrap();
    assert_eq!(anonymous.status(), 200);
    (anonymous.json().await.unwrap(), server.get("/health").await.1)
}

#[tokio::test]
async fn a_layer_that_is_missing_is_told() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    server.output(&id, "echo a > file").await;
    eventually("it is saved", async || {
        server.get(&format!("/sessions/{id}/checkpoints/1")).await.1["status"] == "ready"
    })
    .await;
    let (_, told) = health(&server).await;
    assert_eq!(told["status"], "ok", "{told:#}");
    let loops = told["loops"].as_object().unwrap();
    assert!(loops.len() >= 11 && loops.values().all(|each| each["status"] == "ok"), "{told:#}");
    let list = server.get("/system/loops").await.1;
    let items = list["items"].as_array().unwrap();
    assert!(items.iter().map(|each| each["name"].as_str().unwrap()).eq(loops.keys().map(String::as_str)), "{list:#}");
    let is_told = |each: &Value| ["trigger", "bound"].iter().all(|field| !each[field].as_str().unwrap().is_empty());
    assert!(items.iter().all(is_told), "{list:#}");
    server.post(&format!("/sessions/{id}/pause"), json!({})).await;
    server.until(&id, |session| session["state"] == "IDLE").await;
    let database = rusqlite::Connection::open(server.data_dir().join("raworc.db")).unwrap();
    let layer: String = database.query_row("SELECT layer_id FROM sessions", [], |row| row.get(0)).unwrap();
    let (from, to) =
        (server.data_dir().join("layers").join(layer.replace('-', "")), server.data_dir().join("elsewhere"));
    fs::rename(&from, &to).unwrap();
    eventually("health says so", async || health(&server).await.0["parts"]["layers"] == "missing").await;
    let (anonymous, told) = health(&server).await;
    assert_eq!((&anonymous["status"], &told["status"]), (&json!("degraded"), &json!("degraded")));
    assert!(!anonymous.to_string().contains(&layer), "{anonymous}");
    assert!(told["problems"][0]["problem"].as_str().unwrap().contains(&layer), "{told:#}");
    let output = server.cli(&["health"]);
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stdout).contains(&layer), "{output:?}");
    fs::rename(&to, &from).unwrap();
    eventually("all is well again", async || health(&server).await.0["status"] == "ok").await;
    // A member is told as much as everyone.
    server.post("/accounts", json!({ "name": "m", "role": "member" })).await;
    let token = server.post("/accounts/m/tokens", json!({ "name": "t" })).await.1;
    let request = server.request_as(token["token"].as_str().unwrap_or_default(), reqwest::Method::GET, "/health");
    let told: Value = request.send().await.unwrap().json().await.unwrap();
    assert!(told.get("loops").is_none(), "{told}");
}

#[tokio::test]
async fn a_disk_that_is_full_is_told() {
    if !can_run_containers() {
        return;
    }
    let server = TestServer::start_on_disk(96);
    assert_eq!(health(&server).await.0["parts"]["disk"], "ok");
    let filler = server.data_dir().join("filler");
    let mut size = 96 << 20;
    // What is left of the disk.
    while size >= 1 << 16 {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&filler).unwrap();
        if std::io::Write::write_all(&mut file, &vec![1; size]).is_err() {
            size /= 2;
        }
    }
    let (anonymous, told) = health(&server).await;
    assert_eq!((&anonymous["parts"]["disk"], &anonymous["status"]), (&json!("full"), &json!("degraded")), "{told:#}");
    assert!(told["problems"][0]["remedy"].as_str().unwrap().contains("prune"), "{told:#}");
    fs::remove_file(filler).unwrap();
    eventually("all is well again", async || health(&server).await.0["status"] == "ok").await;
}

#[tokio::test]
async fn a_launcher_that_dies_is_told_or_back_at_once() {
    let server = server_or_skip!();
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", server.pid())).unwrap();
    let launcher = children.split_whitespace().find(|pid| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.windows(8).any(|word| word == b"launcher"))
    });
    if let Some(pid) = launcher {
        let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    eventually("it is back", async || health(&server).await.0["parts"]["launcher"] == "ok").await;
    server.session(json!({})).await;
}
