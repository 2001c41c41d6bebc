//! Files of a workspace, accessed from outside, with hostile agents inside.

use std::fs;
use std::time::Instant;

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::harness::{PATIENCE, TestServer};
use crate::raw::{encoded, exchange_cut, request, send};
use crate::server_or_skip;

async fn put(server: &TestServer, id: &str, path: &str, content: impl Into<reqwest::Body>) -> StatusCode {
    let target = format!("/sessions/{id}/files/{path}");
    server.request(Method::PUT, &target).body(content).send().await.unwrap().status()
}

async fn get(server: &TestServer, id: &str, path: &str) -> (u16, String) {
    let target = format!("/sessions/{id}/files/{path}");
    let response = server.request(Method::GET, &target).send().await.unwrap();
    (response.status().as_u16(), String::from_utf8_lossy(&response.bytes().await.unwrap()).into_owned())
}

/// The entries of a directory: name, kind and size (of files).
async fn list(server: &TestServer, id: &str, path: &str) -> Vec<(String, String, u64)> {
    let target = format!("/sessions/{id}/files{path}");
    let (status, listing) = server.get(&target).await;
    assert_eq!(status, 200, "{listing}");
    let entries = listing["entries"].as_array().unwrap().iter().map(|entry| {
        let kind = entry["kind"].as_str().unwrap();
        let size = if kind == "file" { entry["size"].as_u64().unwrap() } else { 0 };
        (entry["name"].as_str().unwrap().to_owned(), kind.to_owned(), size)
    });
    entries.collect()
}

#[tokio::test]
async fn files_go_in_and_out_whether_the_session_works_or_rests() {
    let server = server_or_skip!();
    let id = server.session(json!({ "waiting_timeout_seconds": 3600 })).await;
    for round in ["READY", "IDLE"] {
        if round == "IDLE" {
            server.post(&format!("/sessions/{id}/pause"), json!({})).await;
            server.until(&id, |session| session["state"] == "IDLE").await;
        }
        assert_eq!(put(&server, &id, "a/b/c.txt", "one").await, 201, "{round}");
        assert_eq!(put(&server, &id, "a/b/c.txt", "two").await, 204);
        assert_eq!(put(&server, &id, "a/empty", "").await, 201);
        assert_eq!(get(&server, &id, "a/b/c.txt").await, (200, "two".into()));
        let expected = [("b".to_owned(), "directory".to_owned(), 0), ("empty".to_owned(), "file".to_owned(), 0)];
        assert_eq!(list(&server, &id, "/a").await, expected);
        assert_eq!(list(&server, &id, "").await, [("a".to_owned(), "directory".to_owned(), 0)]);
        let head = server.request(Method::HEAD, &format!("/sessions/{id}/files/a/b/c.txt")).send().await.unwrap();
        assert_eq!((head.status().as_u16(), &head.headers()["content-length"]), (200, &"3".parse().unwrap()));
        assert_eq!(head.headers()["raworc-kind"], "file");
        assert_eq!(head.headers()["x-content-type-options"], "nosniff");
        for (method, path, code, status) in [
            ("PUT", "a/b", "file_conflict", 409),
            ("PUT", "a/empty/x", "file_conflict", 409),
            ("GET", "a/empty/x", "file_conflict", 409),
            ("GET", "nothing", "not_found", 404),
            ("DELETE", "nothing", "not_found", 404),
            ("DELETE", "no/thing", "not_found", 404),
        ] {
            let answer = send(&server, method, &format!("/sessions/{id}/files/{path}"), &[], b"");
            answer.must_be_problem(status, code, &format!("{method} {path}"));
        }
        assert_eq!(server.delete(&format!("/sessions/{id}/files/a")).await.0, 204, "with all that is in it");
        assert_eq!(list(&server, &id, "").await, []);
    }
    let session = server.get(&format!("/sessions/{id}")).await.1;
    assert_eq!(
        (&session["state"], &session["generation"]),
        (&json!("IDLE"), &json!(1)),
        "no container was started for it"
    );
    let events = server.events(&id).await;
    let paths = |kind: &str| -> Vec<String> {
        let of_kind = events.iter().filter(|event| event["type"] == kind);
        of_kind.map(|event| event["data"]["path"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(paths("file.written")[..3], ["a/b/c.txt", "a/b/c.txt", "a/empty"]);
    assert_eq!(paths("file.deleted"), ["a", "a"]);
    // What has ended is kept as it is, and can still be read.
    assert_eq!(put(&server, &id, "kept", "kept").await, 201);
    server.post(&format!("/sessions/{id}/terminate"), json!({})).await;
    assert_eq!(get(&server, &id, "kept").await, (200, "kept".into()));
    assert_eq!(put(&server, &id, "kept", "changed").await, 409);
    assert_eq!(server.delete(&format!("/sessions/{id}/files/kept")).await.0, 409);
    assert_eq!(get(&server, &id, "kept").await, (200, "kept".into()));
}

#[tokio::test]
async fn the_agent_owns_what_was_put_there_and_what_it_makes_can_be_read() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    assert_eq!(put(&server, &id, "dir/in", "from outside\n").await, 201);
    let script = "set -e; cat dir/in; echo more >> dir/in; mkdir dir/made; mv dir/in dir/made/in; \
        umask 077; echo private > private; mkdir closed; echo deep > closed/deep; chmod 000 private; stat -c '%u %g' dir";
    let id_inside = server.output(&id, "id -u; id -g").await.replace('\n', " ");
    assert_eq!(server.output(&id, script).await, format!("from outside\n{}\n", id_inside.trim()));
    assert_eq!(get(&server, &id, "dir/made/in").await, (200, "from outside\nmore\n".into()));
    assert_eq!(get(&server, &id, "private").await, (200, "private\n".into()));
    assert_eq!(get(&server, &id, "closed/deep").await, (200, "deep\n".into()));
    assert_eq!(put(&server, &id, "private?mode=0600", "replaced").await, 204);
    assert_eq!(server.output(&id, "cat private; rm -r dir closed private").await, "replaced");
}

#[tokio::test]
async fn nothing_leads_out_of_the_workspace() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let secret = server.data_dir().join("secret");
    fs::write(&secret, "SECRET").unwrap();
    let script = format!(
        "ln -s {} absolute; ln -s ../../secret relative; ln -s ../.. up; ln -s / root; ln -s /etc/hostname host; \
         ln -s self self; ln -s /proc/self/root proc; mkdir inner; echo inside > inner/file; ln -s inner/file within; \
         ln -s inner door; mkfifo pipe",
        secret.display()
    );
    server.output(&id, &script).await;
    let files = format!("/sessions/{id}/files");
    let deep = "%2e%2e/".repeat(12);
    for path in [
        "absolute",
        "relative",
        "up/secret",
        "up",
        "root/etc/hostname",
        "host",
        "self",
        "proc/etc/hostname",
        "..",
        "../secret",
        "%2e%2e/%2e%2e/secret",
        "%2E%2E%2F%2E%2E%2Fsecret",
        "inner/..%2f..%2f..%2fsecret",
        "inner/../../../secret",
        &format!("{deep}etc/hostname"),
    ] {
        let answer = send(&server, "GET", &format!("{files}/{path}"), &[], b"");
        answer.must_be_problem(422, "invalid_input", path);
        assert_eq!(answer.fields(), ["path"], "{path}");
    }
    // What decodes to no way out is just not there.
    for path in [&*encoded(secret.to_str().unwrap()), "%252e%252e/secret", "..%5c..%5csecret", "....//secret"] {
        send(&server, "GET", &format!("{files}/{path}"), &[], b"").must_be_problem(404, "not_found", path);
    }
    assert_eq!(get(&server, &id, "within").await, (200, "inside\n".into()), "links inside are followed");
    assert_eq!(get(&server, &id, "door/file").await, (200, "inside\n".into()));
    send(&server, "GET", &format!("{files}/pipe"), &[], b"").must_be_problem(409, "file_conflict", "a pipe has no end");
    for path in ["up/x", "root/x", "../x", "%2e%2e%2fx"] {
        send(&server, "PUT", &format!("{files}/{path}"), &[], b"x").must_be_problem(422, "invalid_input", path);
        send(&server, "DELETE", &format!("{files}/{path}"), &[], b"").must_be_problem(422, "invalid_input", path);
    }
    // Writing follows a link as reading does; removing removes it, never what it leads to.
    assert_eq!(put(&server, &id, "absolute", "mine").await, 422);
    assert_eq!(put(&server, &id, "absolute?follow=false", "mine").await, 204);
    assert_eq!(put(&server, &id, "pipe", "no pipe").await, 409);
    for path in ["relative", "up", "root"] {
        assert_eq!(server.delete(&format!("{files}/{path}")).await.0, 204, "{path}");
    }
    assert_eq!(get(&server, &id, "absolute").await, (200, "mine".into()));
    assert_eq!(fs::read_to_string(&secret).unwrap(), "SECRET");
}

#[tokio::test]
async fn a_link_that_changes_while_we_look_leads_nowhere_else() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    fs::create_dir(server.data_dir().join("target")).unwrap();
    fs::write(server.data_dir().join("target/file"), "SECRET").unwrap();
    // `link` leads in and out by turns; `swap` is a directory and a link by turns.
    let out = server.data_dir().join("target").display().to_string();
    let script = format!(
        "mkdir real swap; echo inside > real/file; echo inside > swap/file; ln -s {out} out; ln -s real in; echo go > begun; \
         while :; do cp -P in t; mv -T t link; mv swap away; cp -P out swap; cp -P out t; mv -T t link; rm swap; mv away swap; done"
    );
    server.post(&format!("/sessions/{id}/messages"), json!({ "content": script })).await;
    let deadline = Instant::now() + PATIENCE;
    while get(&server, &id, "begun").await.1 != "go\n" {
        assert!(Instant::now() < deadline, "the script does not begin");
    }
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..400 {
        let path = ["link/file", "swap/file"][n % 2];
        let (status, text) = get(&server, &id, path).await;
        assert!(matches!((status, text.as_str()), (200, "inside\n") | (404 | 422, _)), "{path}: {status} {text}");
        assert!(!text.contains("SECRET"), "{path}: {text}");
        seen.insert((path, status));
    }
    for both in [("link/file", 200), ("link/file", 422), ("swap/file", 200)] {
        assert!(seen.contains(&both), "the race was not run: {seen:?}");
    }
    // Nor does writing or removing reach out.
    for n in 0..100 {
        let written = put(&server, &id, &format!("link/new{n}"), "x").await.as_u16();
        assert!(matches!(written, 201 | 422), "{written}");
        let removed = server.delete(&format!("/sessions/{id}/files/link/new{n}")).await.0.as_u16();
        assert!(matches!(removed, 204 | 404 | 422), "{removed}");
    }
    let outside: Vec<_> = fs::read_dir(server.data_dir().join("target")).unwrap().flatten().collect();
    assert_eq!(outside.len(), 1, "{outside:?}");
    assert_eq!(fs::read_to_string(server.data_dir().join("target/file")).unwrap(), "SECRET");
    server.post(&format!("/sessions/{id}/cancel"), json!({})).await;
}

#[tokio::test]
async fn every_kind_of_entry_is_listed_and_every_name_can_be_used() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let script = "mkdir d; printf 12345 > f; chmod 750 f; ln -s f l; ln f h; mkfifo p; printf x > $'bad\\xff'; \
        perl -MSocket -e 'socket(S,AF_UNIX,SOCK_STREAM,0); bind(S,sockaddr_un(\"s\")) or die'";
    server.output(&id, script).await;
    let seen = list(&server, &id, "").await;
    let expected = [
        ("bad\u{fffd}", "file", 1),
        ("d", "directory", 0),
        ("f", "file", 5),
        ("h", "file", 5),
        ("l", "symlink", 0),
        ("p", "other", 0),
        ("s", "other", 0),
    ];
    assert_eq!(seen, expected.map(|(name, kind, size)| (name.to_owned(), kind.to_owned(), size)));
    let listing = server.get(&format!("/sessions/{id}/files")).await.1;
    let entry = |name: &str| listing["entries"].as_array().unwrap().iter().find(|e| e["name"] == name).unwrap().clone();
    assert_eq!((&entry("f")["mode"], &entry("l")["target"]), (&json!(0o750), &json!("f")));
    assert_eq!((&listing["path"], &listing["truncated"]), (&json!(""), &json!(false)));
    for path in ["p", "s"] {
        let answer = send(&server, "GET", &format!("/sessions/{id}/files/{path}"), &[], b"");
        answer.must_be_problem(409, "file_conflict", path);
    }
    // Replacing one name of a file leaves its other name alone.
    assert_eq!(put(&server, &id, "h", "new").await, 204);
    assert_eq!(get(&server, &id, "f").await, (200, "12345".into()));
    for name in [
        "a b",
        "größe 💥",
        "100%",
        "a?b#c&d=e",
        "..x",
        "x..",
        "-rf",
        "a\nb",
        "%2e%2e",
        ".hidden",
        "a\\b",
        &"n".repeat(255),
    ] {
        let path = format!("d/{}", encoded(name));
        assert_eq!(put(&server, &id, &path, name.to_owned()).await, 201, "{name:?}");
        assert_eq!(get(&server, &id, &path).await, (200, name.to_owned()));
        let quoted = name.replace('\'', "'\\''");
        assert_eq!(server.output(&id, &format!("cat 'd/{quoted}'")).await, name, "the agent sees the same name");
        assert_eq!(list(&server, &id, "/d").await, [(name.to_owned(), "file".to_owned(), name.len() as u64)]);
        assert_eq!(server.delete(&format!("/sessions/{id}/files/{path}")).await.0, 204, "{name:?}");
    }
}

/// Peak memory of the server, in KiB.
fn peak_memory_kib(server: &TestServer) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn a_large_file_streams_and_a_replaced_one_is_whole() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    const SIZE: usize = 64 * 1024 * 1024;
    let before = peak_memory_kib(&server);
    let content: Vec<u8> = (0..SIZE).map(|n| (n % 251) as u8).collect();
    assert_eq!(put(&server, &id, "large", content.clone()).await, 201);
    let sum = server.output(&id, "wc -c < large").await;
    assert_eq!(sum.trim(), SIZE.to_string());
    let response = server.request(Method::GET, &format!("/sessions/{id}/files/large")).send().await.unwrap();
    assert!(response.bytes().await.unwrap() == content, "it came back as it went");
    let grown = peak_memory_kib(&server) - before;
    assert!(grown < 24 * 1024, "{grown} KiB for a file of {SIZE} bytes");

    // Whoever reads while it is replaced gets the old one or the new one, to its end.
    let version = |n: usize| vec![b'0' + n as u8; 100_000 + n];
    assert_eq!(put(&server, &id, "f", version(0)).await, 201);
    let writes = async {
        for n in 1..10 {
            assert_eq!(put(&server, &id, "f", version(n)).await, 204);
        }
    };
    let reads = async {
        for _ in 0..50 {
            let (status, text) = get(&server, &id, "f").await;
            let n = text.len() - 100_000;
            assert!(status == 200 && text.as_bytes() == version(n), "{status} {}", text.len());
        }
    };
    tokio::join!(writes, reads);
    // A write that breaks off changes nothing and leaves nothing.
    let token = format!("authorization: Bearer {}", server.token);
    let target = format!("/sessions/{id}/files/f");
    let mut half = request("PUT", target.as_bytes(), &[&token, "content-length: 1000000"], None);
    half.extend_from_slice(&[b'x'; 300_000]);
    exchange_cut(&server, &half);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let names: Vec<String> = list(&server, &id, "").await.into_iter().map(|(name, _, _)| name).collect();
        if names == ["f", "large"] {
            break;
        }
        assert!(Instant::now() < deadline, "left behind: {names:?}");
    }
    assert_eq!(get(&server, &id, "f").await.1.as_bytes(), version(9));
    // A file that grows while it is read ends where it ended when the reading began.
    server.post(&format!("/sessions/{id}/messages"), json!({ "content": "while :; do date; done > growing" })).await;
    let deadline = Instant::now() + PATIENCE;
    while get(&server, &id, "growing").await.1.len() < 1000 {
        assert!(Instant::now() < deadline, "nothing is written");
    }
    for _ in 0..20 {
        assert_eq!(get(&server, &id, "growing").await.0, 200);
    }
    server.post(&format!("/sessions/{id}/cancel"), json!({})).await;
}

#[tokio::test]
async fn a_tree_is_removed_whole_while_the_agent_works_in_it() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    // Some of it goes by the path from the top, some is in the directory itself and goes on there.
    let script = "mkdir -p tree/in; (cd tree/in; n=0; while :; do : > $((n++)); done) & \
        n=0; while :; do mkdir -p tree/a/b/c; (: > tree/a/b/c/$((n++))); done 2>/dev/null";
    server.post(&format!("/sessions/{id}/messages"), json!({ "content": script })).await;
    for round in 0..5 {
        let deadline = Instant::now() + PATIENCE;
        let path = if round == 0 { "tree/in/50" } else { "tree/a/b/c" };
        while get(&server, &id, path).await.0 != 200 {
            assert!(Instant::now() < deadline, "nothing is written");
        }
        assert_eq!(server.delete(&format!("/sessions/{id}/files/tree")).await.0, 204, "{round}");
    }
    assert_eq!(get(&server, &id, "tree/in").await.0, 404);
    server.post(&format!("/sessions/{id}/terminate"), json!({})).await;
    server.until(&id, |session| session["state"] == "IDLE").await;
}
