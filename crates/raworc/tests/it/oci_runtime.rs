//! Sessions on another OCI runtime: Debian's runc.

use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::TestServer;

const RUNC: &str = "/usr/sbin/runc";

/// A server that uses runc, or SKIPPED.
fn start() -> Option<TestServer> {
    if !Path::new(RUNC).exists() {
        eprintln!("SKIPPED: there is no {RUNC}; apt-get install runc");
        return None;
    }
    crate::harness::can_run_containers().then(|| TestServer::start(&["--oci-runtime", RUNC]))
}

#[tokio::test]
async fn runc_runs_limits_and_confines_a_session() {
    let Some(server) = start() else { return };
    let (_, health) = server.get("/health").await;
    let id = server.session(json!({ "name": "box", "resources": { "cpu": 0.5, "memory": "64Mi", "pids": 40 } })).await;
    let script = "id -u; cat /proc/sys/kernel/hostname; ls -A /home; env | grep TOKEN
        grep -cE '^(NoNewPrivs:.1|Seccomp:.2|CapEff:.0+)$' /proc/self/status";
    let message = server.send(&id, script).await;
    assert_eq!(message["reply"]["content"], "1000\nbox\n3\n", "{health} {message:#}");
    let container = server.container(&id).await;
    let value = |files: &[&str]| server.cgroup_value(&container, files);
    assert_eq!(value(&["memory.max", "memory.limit_in_bytes"]), Some((64 << 20).to_string()));
    assert_eq!(value(&["pids.max"]), Some("40".into()));
    assert_eq!(value(&["cpu.max", "cpu.cfs_quota_us"]).unwrap().split(' ').next(), Some("50000"));
    server.signal_host(&container, Signal::SIGKILL);
    let session = server.until(&id, |session| session["state"] == "ERROR").await;
    assert_eq!(session["error"]["code"], "container_killed", "{session:#}");
    server.until(&id, |session| session["state"] == "READY" && session["generation"] == 2).await;
    let eat = "perl -e '$x = \"x\" x (1 << 20); push @all, $x . $_ while $_ = ++$i'; exit $?";
    let message = server.send(&id, eat).await;
    assert_eq!(message["reply"]["usage"]["exit_code"], 137, "{message:#}");
    assert_eq!(server.output(&id, "echo alive").await, "alive\n");
    server.delete(&format!("/sessions/{id}")).await;
    until_nothing_is_left(&server).await;
}

#[tokio::test]
async fn containers_of_runc_outlive_their_server() {
    let Some(mut server) = start() else { return };
    let id = server.session(json!({})).await;
    let process = server.host_pid(&format!("{id}-1"));
    let path = format!("/sessions/{id}/messages");
    let script = "for i in $(seq 30); do echo $i; sleep 0.02; done";
    let (_, message) = server.post(&path, json!({ "content": script })).await;
    server.until(&id, |session| session["state"] == "BUSY").await;
    server.kill();
    server.start_again();
    let (_, message) = server.get(&format!("{path}/{}?wait_seconds=60", message["id"].as_str().unwrap())).await;
    let output: String = (1..=30).map(|i| format!("{i}\n")).collect();
    assert_eq!((&message["attempts"], &message["reply"]["content"]), (&json!(1), &json!(output)), "{message:#}");
    assert_eq!(server.host_pid(&format!("{id}-1")), process);
    server.signal_host(&format!("{id}-1"), Signal::SIGKILL);
    server.until(&id, |session| session["state"] == "READY" && session["generation"] == 2).await;
    assert_eq!(server.output(&id, "echo again").await, "again\n");
    server.delete(&format!("/sessions/{id}")).await;
    until_nothing_is_left(&server).await;
}

/// Checks that no bundle, cgroup or runc state is left.
async fn until_nothing_is_left(server: &TestServer) {
    let state = server.data_dir().join("run/state");
    let deadline = std::time::Instant::now() + crate::harness::PATIENCE;
    // Spare ones stay.
    let is_ours = |name: &str| server.slots().get(name).is_none_or(|bundle| bundle != name);
    let known =
        || std::fs::read_dir(&state).unwrap().flatten().any(|entry| is_ours(entry.file_name().to_str().unwrap()));
    while !server.containers().is_empty() || known() {
        assert!(std::time::Instant::now() < deadline, "{:?}\n{}", server.containers(), server.log());
        tokio::task::yield_now().await;
    }
}
