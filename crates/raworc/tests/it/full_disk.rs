//! Servers on a full disk.

use std::fs;
use std::time::Instant;

use nix::sys::statvfs::{Statvfs, statvfs};
use serde_json::json;

use crate::crash::{ended, post};
use crate::harness::{TestServer, eventually};

/// Waits until no process in a container has this name.
fn until_none_runs(server: &TestServer, name: &str) {
    let is_it = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|found| found.trim_end() == name);
    let deadline = Instant::now() + crate::harness::PATIENCE;
    while server.container_processes().iter().any(is_it) {
        assert!(Instant::now() < deadline, "{name} still runs");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_new_work_and_corrupts_nothing() {
    if !crate::harness::can_run_containers() {
        return;
    }
    let mut server = TestServer::start_on_disk(48);
    // What is in a checkpoint would stay there when it is deleted, and what is added to a file that is would need room.
    let manual = json!({ "checkpoints": { "policy": "manual" } });
    let (filling, other) = (server.session(manual.clone()).await, server.session(manual).await);
    // Its first block is taken while there is one.
    server.send(&other, "echo 0 >order").await;
    let filler = post(&server, &filling, "cat /dev/zero >big; echo big").await;
    let path = format!("/sessions/{other}/messages");
    let (mut sent, deadline) = (1, Instant::now() + crate::harness::PATIENCE);
    while server.get(&format!("/sessions/{filling}/files/big")).await.0 != 200 {
        assert!(Instant::now() < deadline, "nobody fills the disk");
    }
    let problem = loop {
        let script = format!("echo {sent} >>order # {}", "x".repeat(64 << 10));
        let (status, answer) = server.post(&path, json!({ "content": script })).await;
        if status != 201 {
            assert_eq!((status.as_u16(), &answer["code"]), (503, &json!("disk_full")), "{answer}");
            break answer;
        }
        sent += 1;
        assert!(Instant::now() < deadline, "the disk never fills up");
    };
    assert!(problem["detail"].as_str().unwrap().contains("disk"), "{problem}");
    // What is there can be read, and room be made: by whoever has a file open not before it is closed.
    assert_eq!(server.get(&format!("/sessions/{filling}/files")).await.0, 200);
    until_none_runs(&server, "cat");
    let (status, answer) = server.delete(&format!("/sessions/{filling}/files/big")).await;
    assert!(status.is_success(), "{status} {answer}");
    assert_eq!(
        ended(&server, &filling, &filler).await["reply"]["content"].as_str().map(|text| text.ends_with("big\n")),
        Some(true)
    );
    server.until(&other, |session| session["queued_messages"] == 0 && session["state"] == "READY").await;
    let done: String = (0..sent).map(|n| format!("{n}\n")).collect();
    assert_eq!(server.output(&other, "cat order").await, done, "what was accepted was done, once and in order");
    server.stop();
    let records = rusqlite::Connection::open(server.data_dir().join("raworc.db")).unwrap();
    let verdict: String = records.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    drop(records);
    server.start_again();
    assert_eq!(server.output(&other, "cat order | wc -l").await, format!("{sent}\n"));
}

#[tokio::test]
async fn a_server_starts_on_a_full_disk_and_room_can_be_made() {
    let is_full = |disk: &Statvfs| disk.blocks_available() * disk.fragment_size() <= 64 << 10;
    starts_when_full("size=128m", ("cat", "cat /dev/zero >big 2>/dev/null"), is_full).await;
}

#[tokio::test]
async fn a_server_starts_without_inodes_and_room_can_be_made() {
    let fill = "perl -e 'for (1..30000) { open(F, \">$_\") or last }'";
    starts_when_full("size=512m,nr_inodes=20000", ("perl", fill), |disk| disk.files_available() == 0).await;
}

/// Fills a disk with these mount options from a session, kills and restarts the server, and checks that the session
/// can be deleted.
async fn starts_when_full(options: &str, (filler, fill): (&str, &str), is_full: fn(&Statvfs) -> bool) {
    if !crate::harness::can_run_containers() {
        return;
    }
    let mut server = TestServer::start_on_small_disk(options);
    let reserve = server.data_dir().join("reserve");
    let (filling, other) = (server.session(json!({})).await, server.session(json!({})).await);
    server.output(&other, "echo mine > mine").await;
    assert!(reserve.exists(), "there was room when the server started");
    post(&server, &filling, fill).await;
    // One that still writes would take what the server gives up. That it has ended can perhaps not be recorded.
    let deadline = Instant::now() + crate::harness::PATIENCE;
    while !is_full(&statvfs(&server.data_dir()).unwrap()) {
        assert!(Instant::now() < deadline, "it does not get full");
        tokio::task::yield_now().await;
    }
    until_none_runs(&server, filler);
    server.kill();
    server.start_again();
    assert!(!reserve.exists());
    assert_eq!(server.get(&format!("/sessions/{other}/files/mine")).await.0, 200);
    assert_eq!(server.delete(&format!("/sessions/{filling}")).await.0, 200);
    let prune = || server.post("/system/prune", json!({ "deleted_sessions_after_seconds": 0 }));
    // Its container may be on its way out still.
    eventually("its files go", async || prune().await.1["sessions"] == 1).await;
    server.send(&other, "cat mine").await;
    server.stop();
    server.start_again();
    assert_eq!(server.output(&other, "cat mine").await, "mine\n");
}
