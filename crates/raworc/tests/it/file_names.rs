//! Names, links, modes and times of files, in the workspace and in the API.

use std::fs;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::TestServer;
use crate::raw::send;
use crate::server_or_skip;

async fn put(server: &TestServer, target: &str, content: &'static str) -> u16 {
    server.request(Method::PUT, target).body(content).send().await.unwrap().status().as_u16()
}

fn entries(listing: &Value) -> Vec<Value> {
    listing["entries"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_file_keeps_its_mode_and_a_link_leads_where_it_does_inside() {
    let server = server_or_skip!();
    let id = server.session(json!({ "waiting_timeout_seconds": 3600 })).await;
    let files = format!("/sessions/{id}/files");
    let script = "mkdir d; printf f > d/f; ln -s /workspace/d absolute; ln -s $PWD/d/f file; ln -s ../workspace/d up; \
        ln -s d/later dangling; for mode in 0755 0600 0444 0000; do printf x > m$mode; chmod $mode m$mode; done; mkfifo pipe; \
        ln -s pipe to-pipe; ln -s /etc/passwd out; setfattr -n user.note -v kept m0755 2>/dev/null || true";
    server.output(&id, script).await;
    for round in ["READY", "IDLE"] {
        if round == "IDLE" {
            server.post(&format!("/sessions/{id}/pause"), json!({})).await;
            server.until(&id, |session| session["state"] == "IDLE").await;
        }
        for mode in ["0755", "0600", "0444", "0000"] {
            assert_eq!(put(&server, &format!("{files}/m{mode}"), "new").await, 204);
            let head = send(&server, "HEAD", &format!("{files}/m{mode}"), &[], b"");
            assert_eq!(head.header("raworc-mode"), mode, "{round}");
        }
        for (path, target) in [("absolute/f", "d/f"), ("file", "d/f"), ("up/f", "d/f"), ("dangling", "d/later")] {
            let content = if round == "READY" { "first" } else { "second" };
            assert!(matches!(put(&server, &format!("{files}/{path}"), content).await, 201 | 204), "{path}");
            let there = send(&server, "GET", &format!("{files}/{target}"), &[], b"");
            assert_eq!((there.status, &there.body[..]), (200, content.as_bytes()), "{path}");
        }
        let listing = server.get(&files).await.1;
        for name in ["absolute", "file", "up", "dangling"] {
            let entry = entries(&listing).into_iter().find(|entry| entry["name"] == name).unwrap();
            assert_eq!(entry["kind"], "symlink", "{name} is a link still");
        }
        let link = send(&server, "GET", &format!("{files}/absolute?follow=false"), &[], b"");
        assert_eq!((link.header("raworc-kind"), &link.body[..]), ("symlink", &b"/workspace/d"[..]));
        for (method, path) in [("GET", "out"), ("PUT", "out"), ("GET", "out/x"), ("PUT", "out/x"), ("DELETE", "out/x")]
        {
            let answer = send(&server, method, &format!("{files}/{path}"), &[], b"");
            answer.must_be_problem(422, "invalid_input", &format!("{method} {path}"));
        }
        for (method, path) in
            [("GET", "pipe"), ("PUT", "pipe"), ("GET", "to-pipe"), ("PUT", "to-pipe"), ("PUT", "pipe/x")]
        {
            let answer = send(&server, method, &format!("{files}/{path}"), &[], b"");
            answer.must_be_problem(409, "file_conflict", &format!("{method} {path}"));
        }
    }
    for path in ["new?mode=0750", "m0600?mode=750"] {
        assert!(matches!(put(&server, &format!("{files}/{path}"), "#!/bin/sh\n").await, 201 | 204));
    }
    assert_eq!(put(&server, &format!("{files}/file?follow=false"), "no link").await, 204);
    server.post(&format!("/sessions/{id}/resume"), json!({})).await;
    let seen = server.output(&id, "stat -c '%a %F' new m0600 file; cat d/f; id -u; stat -c %u new m0755").await;
    let agent = server.output(&id, "id -u").await;
    let agent = agent.trim();
    assert_eq!(
        seen,
        format!("750 regular file\n750 regular file\n644 regular file\nsecond{agent}\n{agent}\n{agent}\n")
    );
    // Removing a link removes the link.
    assert_eq!(server.delete(&format!("{files}/absolute")).await.0, 204);
    assert_eq!(server.delete(&format!("{files}/out")).await.0, 204);
    assert_eq!(server.output(&id, "cat d/f; ls -d absolute out 2>/dev/null || true").await, "second");
}

#[tokio::test]
async fn a_listing_has_every_name_in_pages_and_every_time() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let files = format!("/sessions/{id}/files");
    let script = "mkdir many; cd many; seq 10300 | xargs touch; cd ..; mkdir times; cd times; touch -d '1931-05-06 07:08:09.5Z' old; \
        touch -d '2100-01-02 03:04:05Z' late; touch -d @-0.25 before";
    server.output(&id, script).await;
    let mut expected: Vec<String> = (1..=10_300).map(|n| n.to_string()).collect();
    expected.sort();
    for limit in ["", "limit=999&"] {
        let (mut names, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let (status, listing) = server.get(&format!("{files}/many?{limit}{cursor}")).await;
            assert_eq!(status, 200, "{listing}");
            names.extend(entries(&listing).iter().map(|entry| entry["name"].as_str().unwrap().to_owned()));
            pages += 1;
            assert_eq!(listing["truncated"], json!(listing["next_cursor"].is_string()));
            let Some(next) = listing["next_cursor"].as_str() else { break };
            cursor = format!("cursor={next}");
            // What comes and goes before the place does not move it.
            if pages == 1 {
                server.output(&id, "cd many; rm 1; touch 0; touch 1").await;
            }
        }
        assert!(pages > 1);
        names.retain(|name| name != "0");
        assert_eq!(names, expected, "{limit}");
    }
    let output = server.cli(&["session", "files", "ls", &id, "many", "--output", "json"]);
    let listing: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(entries(&listing).len(), 10_301);
    let times = server.get(&format!("{files}/times")).await.1;
    let times: Vec<(String, String)> = entries(&times)
        .iter()
        .map(|entry| (entry["name"].as_str().unwrap().to_owned(), entry["modified_at"].as_str().unwrap().to_owned()))
        .collect();
    let expected =
        [("before", "1969-12-31T23:59:59.75Z"), ("late", "2100-01-02T03:04:05Z"), ("old", "1931-05-06T07:08:09.5Z")];
    assert_eq!(times, expected.map(|(name, time)| (name.to_owned(), time.to_owned())));
    let old = send(&server, "HEAD", &format!("{files}/times/old"), &[], b"");
    assert_eq!(old.header("last-modified"), "Wed, 06 May 1931 07:08:09 GMT");
}

#[tokio::test]
async fn names_that_are_no_text_are_told_and_used_as_the_bytes_they_are() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let files = format!("/sessions/{id}/files");
    server.output(&id, "printf one > $'bad\\xff'; printf two > $'bad\\xfe'; mkdir $'dir\\x80'; ln -s $'bad\\xff' link; touch .wh.x").await;
    let listing = server.get(&files).await.1;
    let told: Vec<(Value, Value)> =
        entries(&listing).iter().map(|entry| (entry["name"].clone(), entry["name_bytes"].clone())).collect();
    let odd = |text: &str, bytes: &str| (json!(text), json!(bytes));
    let plain = |text: &str| (json!(text), Value::Null);
    let expected = [
        plain(".wh.x"),
        odd("bad\u{fffd}", "YmFk/g=="),
        odd("bad\u{fffd}", "YmFk/w=="),
        odd("dir\u{fffd}", "ZGlygA=="),
        plain("link"),
    ];
    assert_eq!(told, expected);
    let link = entries(&listing).pop().unwrap();
    assert_eq!((&link["target"], &link["target_bytes"]), (&json!("bad\u{fffd}"), &json!("YmFk/w==")));
    let get = |path: &str| String::from_utf8(send(&server, "GET", &format!("{files}/{path}"), &[], b"").body).unwrap();
    assert_eq!((get("bad%ff"), get("bad%FE"), get("link")), ("one".into(), "two".into(), "one".into()));
    assert_eq!(put(&server, &format!("{files}/dir%80/new%ff"), "in").await, 201);
    assert_eq!(server.get(&format!("{files}/dir%80")).await.1["path_bytes"], "ZGlygA==");
    assert_eq!(server.delete(&format!("{files}/bad%fe")).await.0, 204);
    assert_eq!(
        server.output(&id, "cat $'dir\\x80'/$'new\\xff' $'bad\\xff'; ls $'bad\\xfe' 2>/dev/null || true").await,
        "inone"
    );
    let events = server.events(&id).await;
    let last = events.iter().rfind(|event| event["type"] == "file.deleted").unwrap();
    assert_eq!((&last["data"]["path"], &last["data"]["path_bytes"]), (&json!("bad\u{fffd}"), &json!("YmFk/g==")));
    let output = server.shell(&format!(
        "raworc session files cat {id} $'bad\\xff'; raworc session files rm {id} $'bad\\xff'; raworc session files ls {id}"
    ));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("one") && text.contains("dir\\x80/") && text.contains("→ bad\\xff"), "{text}");
    assert_eq!(send(&server, "GET", &format!("{files}/bad%ff"), &[], b"").status, 404);
}

#[tokio::test]
async fn whoever_watches_inside_sees_a_new_file_when_it_is_whole() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let files = format!("/sessions/{id}/files");
    // A watch with nothing but Python: every name that comes or goes, until the name `end`.
    let script = r#"python3 - <<'E'
import ctypes, os, struct
libc = ctypes.CDLL(None)
fd = libc.inotify_init()
assert libc.inotify_add_watch(fd, b".", 0xfff) > 0
open("watching", "w").close()
names, sizes = [], []
while "end" not in names:
    data = os.read(fd, 65536)
    while data:
        _, mask, _, length = struct.unpack("iIII", data[:16])
        name = data[16:16 + length].rstrip(b"\0").decode()
        data = data[16 + length:]
        if name == "new" and mask & 0x100:
            sizes.append(os.path.getsize(name))
        # Made, moved or removed.
        if mask & 0x3c0:
            names.append(name)
print(sorted(set(names) - {"watching"}), sizes)
E"#;
    if !fs::exists("/usr/bin/python3").unwrap() {
        eprintln!("SKIPPED: watching inside needs python3");
        return;
    }
    let (_, message) = server.post(&format!("/sessions/{id}/messages"), json!({ "content": script })).await;
    crate::harness::eventually("the watch begins", async || {
        send(&server, "GET", &format!("{files}/watching"), &[], b"").status == 200
    })
    .await;
    assert_eq!(put(&server, &format!("{files}/new"), "0123456789").await, 201);
    assert_eq!(put(&server, &format!("{files}/end"), "").await, 201);
    let path = format!("/sessions/{id}/messages/{}?wait_seconds=60", message["id"].as_str().unwrap());
    let message = server.get(&path).await.1;
    assert_eq!(message["reply"]["content"], "['end', 'new'] [10]\n", "{message:#}");
}
