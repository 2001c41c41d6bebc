//! Conditional and range requests as in RFC 9110; a condition is never ignored by a call that changes something.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::TestServer;
use crate::raw::{Answer, send};
use crate::server_or_skip;

const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
const FUTURE: &str = "Sat, 06 Nov 2094 08:49:37 GMT";

fn call(server: &TestServer, method: &str, target: &str, headers: &[&str], body: &[u8]) -> Answer {
    let plain = ["content-type: application/octet-stream"];
    send(server, method, target, &[&plain[..], headers].concat(), body)
}

/// The current bytes and tag of a file.
fn content(server: &TestServer, target: &str) -> Option<(Vec<u8>, String)> {
    let answer = send(server, "GET", target, &[], b"");
    (answer.status == 200).then(|| (answer.body.clone(), answer.header("etag").to_owned()))
}

#[tokio::test]
async fn conditions_on_files_do_what_rfc_9110_says() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let (here, gone) = (format!("/sessions/{id}/files/here"), format!("/sessions/{id}/files/none/gone"));
    let directory = format!("/sessions/{id}/files/dir");
    assert_eq!(call(&server, "PUT", &format!("{directory}/x"), &[], b"x").status, 201);
    let write = || call(&server, "PUT", &here, &[], b"first");
    assert_eq!(write().status, 201);
    let (_, tag) = content(&server, &here).unwrap();
    assert!(tag.starts_with('"') && tag.len() > 2, "{tag}");
    // GET and HEAD, PUT, DELETE of a file that is there; PUT, DELETE of one that is not; GET, DELETE of a directory.
    let table: [(&[&str], [u16; 7]); 24] = [
        (&[], [200, 204, 204, 201, 404, 200, 204]),
        (&["if-match: TAG"], [200, 204, 204, 412, 404, 412, 412]),
        (&["if-match: \"other\""], [412, 412, 412, 412, 404, 412, 412]),
        (&["if-match: W/TAG"], [412, 412, 412, 412, 404, 412, 412]),
        (&["if-match: \"a\", W/\"b\" , TAG"], [200, 204, 204, 412, 404, 412, 412]),
        (&["if-match: \"a\"", "if-match: TAG"], [200, 204, 204, 412, 404, 412, 412]),
        (&["if-match: *"], [200, 204, 204, 412, 404, 200, 204]),
        (&["if-none-match: *"], [304, 412, 412, 201, 404, 304, 412]),
        (&["if-none-match: TAG"], [304, 412, 412, 201, 404, 200, 204]),
        (&["if-none-match: W/TAG"], [304, 412, 412, 201, 404, 200, 204]),
        (&["if-none-match: \"a\",TAG"], [304, 412, 412, 201, 404, 200, 204]),
        (&["if-none-match: \"other\""], [200, 204, 204, 201, 404, 200, 204]),
        (&["if-modified-since: PAST"], [200, 204, 204, 201, 404, 200, 204]),
        (&["if-modified-since: FUTURE"], [304, 204, 204, 201, 404, 200, 204]),
        (&["if-modified-since: nonsense"], [200, 204, 204, 201, 404, 200, 204]),
        (&["if-unmodified-since: PAST"], [412, 412, 412, 412, 404, 200, 412]),
        (&["if-unmodified-since: FUTURE"], [200, 204, 204, 412, 404, 200, 412]),
        (&["if-unmodified-since: nonsense"], [200, 400, 400, 400, 400, 200, 400]),
        (&["if-none-match: \"other\"", "if-modified-since: FUTURE"], [200, 204, 204, 201, 404, 200, 204]),
        (&["if-match: TAG", "if-unmodified-since: PAST"], [200, 204, 204, 412, 404, 412, 412]),
        (&["if-match: TAG", "if-none-match: TAG"], [304, 412, 412, 412, 404, 412, 412]),
        (&["if-match: unquoted"], [400; 7]),
        (&["if-none-match: \"a"], [400; 7]),
        (&["if-match: "], [400; 7]),
    ];
    for (headers, expected) in table {
        let headers: Vec<String> = headers
            .iter()
            .map(|line| line.replace("TAG", &tag).replace("PAST", OLD).replace("FUTURE", FUTURE))
            .collect();
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let [get, put, delete, put_new, delete_none, list, delete_directory] = expected;
        for method in ["GET", "HEAD"] {
            let answer = send(&server, method, &here, &headers, b"");
            assert_eq!(answer.status, get, "{method} {headers:?}");
            if get == 304 {
                assert_eq!((answer.header("etag"), answer.body.len()), (tag.as_str(), 0), "{headers:?}");
            }
        }
        for (method, target, status) in [("PUT", &here, put), ("DELETE", &here, delete)] {
            let answer = call(&server, method, target, &headers, b"second");
            assert_eq!(answer.status, status, "{method} {headers:?} {}", answer.json());
            match status {
                412 => answer.must_be_problem(412, "stale", method),
                400 => answer.must_be_problem(400, "invalid_request", method),
                _ => {}
            }
            let now = content(&server, target);
            let expected = match (method, status) {
                (_, 400..) => Some((b"first".to_vec(), tag.clone())),
                ("PUT", _) => Some((b"second".to_vec(), answer.header("etag").to_owned())),
                _ => None,
            };
            assert_eq!(now, expected, "{method} {headers:?}");
            write();
        }
        assert_eq!(call(&server, "PUT", &gone, &headers, b"new").status, put_new, "{headers:?}");
        let parent = send(&server, "GET", gone.trim_end_matches("/gone"), &[], b"").status;
        assert_eq!(parent, if put_new == 201 { 200 } else { 404 }, "not even a directory is made: {headers:?}");
        send(&server, "DELETE", gone.trim_end_matches("/gone"), &[], b"");
        assert_eq!(send(&server, "DELETE", &gone, &headers, b"").status, delete_none, "{headers:?}");
        assert_eq!(send(&server, "GET", &directory, &headers, b"").status, list, "{headers:?}");
        assert_eq!(send(&server, "DELETE", &directory, &headers, b"").status, delete_directory, "{headers:?}");
        call(&server, "PUT", &format!("{directory}/x"), &[], b"x");
    }
}

#[tokio::test]
async fn a_tag_follows_the_content_and_nothing_else() {
    let server = server_or_skip!();
    let id = server.session(json!({ "waiting_timeout_seconds": 3600 })).await;
    let file = format!("/sessions/{id}/files/f");
    server.output(&id, "printf one > f; touch -d @1000 f").await;
    let (_, first) = content(&server, &file).unwrap();
    let head = send(&server, "HEAD", &file, &[], b"");
    assert_eq!(head.header("last-modified"), "Thu, 01 Jan 1970 00:16:40 GMT");
    // The same length and the same time, and yet another file.
    server.output(&id, "printf two > f; touch -d @1000 f").await;
    let (_, second) = content(&server, &file).unwrap();
    assert_ne!(first, second);
    // Saved, at rest and looked into as of a checkpoint, it is the same one.
    server.post(&format!("/sessions/{id}/pause"), json!({})).await;
    server.until(&id, |session| session["state"] == "IDLE").await;
    assert_eq!(content(&server, &file).unwrap().1, second);
    assert_eq!(content(&server, &format!("/sessions/{id}/checkpoints/now/files/f")).unwrap().1, second);
    let saved = send(
        &server,
        "GET",
        &format!("/sessions/{id}/checkpoints/now/files/f"),
        &[&format!("if-none-match: {second}")],
        b"",
    );
    assert_eq!(saved.status, 304);
}

#[tokio::test]
async fn no_update_is_lost_by_those_who_say_what_they_change() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let path = format!("/sessions/{id}/files/count");
    let create = |n: usize| {
        let request = server.request(Method::PUT, &path).header("if-none-match", "*");
        async move { request.body(format!("{n:04}")).send().await.unwrap().status() }
    };
    let made = futures::future::join_all((0..8).map(create)).await;
    assert_eq!(made.iter().filter(|status| **status == StatusCode::CREATED).count(), 1, "{made:?}");
    assert!(made.iter().all(|status| matches!(status.as_u16(), 201 | 412)), "{made:?}");
    assert_eq!(server.request(Method::PUT, &path).body("0000").send().await.unwrap().status(), 204);
    let count = || async {
        for _ in 0..5 {
            loop {
                let response = server.request(Method::GET, &path).send().await.unwrap();
                let tag = response.headers()["etag"].clone();
                let number: u32 = response.text().await.unwrap().parse().unwrap();
                let put = server.request(Method::PUT, &path).header("if-match", tag).body(format!("{:04}", number + 1));
                match put.send().await.unwrap().status().as_u16() {
                    204 => break,
                    412 => {}
                    other => panic!("{other}"),
                }
            }
        }
    };
    futures::future::join_all((0..6).map(|_| count())).await;
    assert_eq!(content(&server, &path).unwrap().0, b"0030");
}

#[tokio::test]
async fn a_part_of_a_file_is_read_and_never_written() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let file = format!("/sessions/{id}/files/f");
    let whole: Vec<u8> = (0..1000_u32).map(|n| (n % 251) as u8).collect();
    assert_eq!(call(&server, "PUT", &file, &[], &whole).status, 201);
    assert_eq!(call(&server, "PUT", &format!("/sessions/{id}/files/empty"), &[], b"").status, 201);
    let (_, tag) = content(&server, &file).unwrap();
    for target in [&file, &format!("/sessions/{id}/checkpoints/now/files/f")] {
        assert_eq!(send(&server, "HEAD", target, &[], b"").header("accept-ranges"), "bytes");
        for (range, expected) in [
            ("bytes=0-9", Some((0, 10))),
            ("bytes=990-", Some((990, 10))),
            ("bytes=-10", Some((990, 10))),
            ("bytes=500-5000", Some((500, 500))),
            ("bytes=-5000", Some((0, 1000))),
            ("bytes=9-0", None),
            ("bytes=0-1,5-6", None),
            ("lines=0-1", None),
            ("nonsense", None),
        ] {
            let answer = send(&server, "GET", target, &[&format!("range: {range}")], b"");
            let (status, start, length) = expected.map_or((200, 0, 1000), |(start, length)| (206, start, length));
            assert_eq!((answer.status, &answer.body[..]), (status, &whole[start..start + length]), "{range}");
            let told = if status == 206 { format!("bytes {start}-{}/1000", start + length - 1) } else { String::new() };
            assert_eq!(answer.header("content-range"), told, "{range}");
            assert_eq!((answer.header("content-length"), answer.header("etag")), (&*length.to_string(), &*tag));
        }
        for range in ["bytes=1000-", "bytes=1000-2000", "bytes=-0"] {
            let answer = send(&server, "GET", target, &[&format!("range: {range}")], b"");
            answer.must_be_problem(416, "range_not_satisfiable", range);
            assert_eq!(answer.header("content-range"), "bytes */1000");
        }
        for (headers, status) in [
            ([format!("if-range: {tag}"), String::new()], 206),
            (["if-range: \"other\"".into(), String::new()], 200),
            ([format!("if-range: W/{tag}"), String::new()], 200),
            ([format!("if-range: {OLD}"), String::new()], 200),
            ([format!("if-none-match: {tag}"), String::new()], 304),
            ([format!("if-match: {tag}"), format!("if-range: {tag}")], 206),
            (["if-match: \"other\"".into(), String::new()], 412),
        ] {
            let headers: Vec<&str> = headers.iter().map(String::as_str).chain(["range: bytes=1-2"]).collect();
            assert_eq!(send(&server, "GET", target, &headers, b"").status, status, "{headers:?}");
        }
        let conditions = [format!("if-none-match: {tag}")];
        let beyond = send(&server, "GET", target, &[&conditions[0], "range: bytes=5000-"], b"");
        assert_eq!(beyond.status, 304, "conditions come before ranges");
        assert_eq!(send(&server, "HEAD", target, &["range: bytes=0-1"], b"").status, 200, "ranges are for GET only");
    }
    let empty = send(&server, "GET", &format!("/sessions/{id}/files/empty"), &["range: bytes=0-"], b"");
    assert_eq!((empty.status, empty.header("content-range")), (416, "bytes */0"));
    for (header, status, code) in [
        ("content-range: bytes 500-999/1000", 400, "partial_upload"),
        ("content-range: nonsense", 400, "partial_upload"),
        ("content-encoding: gzip", 415, "unsupported_media_type"),
        ("content-encoding: identity, br", 415, "unsupported_media_type"),
    ] {
        let answer = call(&server, "PUT", &file, &[header], b"tail");
        answer.must_be_problem(status, code, header);
        assert_eq!(content(&server, &file).unwrap().0, whole, "{header}");
    }
    assert_eq!(call(&server, "PUT", &file, &["content-encoding: identity"], &whole).status, 204);
    // curl goes on with a download that broke off, and cannot go on with an upload.
    let script = format!(
        "cd \"$RAWORC_DATA_DIR\"; url={}/api/v0/sessions/{id}/files/f; auth='Authorization: Bearer {}'; \
         curl -sf -H \"$auth\" -o all \"$url\"; head -c 300 all > part; curl -sf -H \"$auth\" -C - -o part \"$url\"; cmp all part; \
         curl -s -H \"$auth\" -C 500 -T all -o answer -w '%{{http_code}}' \"$url\"",
        server.url, server.token
    );
    let output = server.shell(&script);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "400");
    assert_eq!(content(&server, &file).unwrap().0, whole);
}

#[tokio::test]
async fn whatever_has_a_tag_is_asked_for_anew_only_when_it_changed() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    for target in [format!("/sessions/{id}"), "/agents/shell".into()] {
        let first = send(&server, "GET", &target, &[], b"");
        let tag = first.header("etag").to_owned();
        assert_ne!(tag, "");
        let same = send(&server, "GET", &target, &[&format!("if-none-match: {tag}")], b"");
        assert_eq!((same.status, same.header("etag"), same.body.len()), (304, tag.as_str(), 0), "{target}");
        assert_eq!(send(&server, "GET", &target, &["if-none-match: \"v999999\""], b"").status, 200);
        assert_eq!(send(&server, "GET", &target, &["if-match: \"v999999\""], b"").status, 412);
        assert_eq!(
            send(&server, "GET", &target, &["range: bytes=0-1"], b"").status,
            200,
            "there are no ranges of these"
        );
    }
}

#[tokio::test]
async fn what_a_session_does_is_in_nobodys_way_who_configures_it() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let target = format!("/sessions/{id}");
    let tag = || send(&server, "GET", &target, &[], b"").header("etag").to_owned();
    let update = |tag: &str, name: &str| {
        let body = json!({ "name": name }).to_string();
        let answer = send(&server, "PUT", &target, &[&format!("if-match: {tag}")], body.as_bytes());
        (answer.status, answer.header("etag").to_owned())
    };
    let first = tag();
    let script = "i=0; until [ -e go ]; do i=$((i + 1)); echo $i; sleep 0.01; done";
    let (_, message) = server.post(&format!("{target}/messages"), json!({ "content": script })).await;
    server.until(&id, |session| session["state"] == "BUSY" && session["last_seq"].as_u64() > Some(10)).await;
    assert_ne!(tag(), first, "each state has a tag of its own");
    let (status, second) = update(&first, "one");
    assert_eq!(status, 200, "nobody else has changed how it is configured");
    // Whoever has looked before that would undo it.
    assert_eq!(update(&first, "two").0, 412);
    assert_eq!(send(&server, "DELETE", &target, &[&format!("if-match: {first}")], b"").status, 412);
    let other = format!("\"v{}\"", &second[2..second.find('.').unwrap()]);
    assert_eq!(update(&other, "two").0, 412, "that is no tag of this server");
    assert_eq!(server.put(&format!("{target}/agents"), json!({ "agent_ids": ["shell"] })).await.0, 200);
    assert_eq!(update(&second, "two").0, 412, "agents are configuration, too");
    server.put(&format!("{target}/files/go"), json!(1)).await;
    let done = format!("{target}/messages/{}?wait_seconds=60", message["id"].as_str().unwrap());
    assert_eq!(server.get(&done).await.1["status"], "done");
    assert_eq!(server.get(&target).await.1["name"], "one");
}

#[tokio::test]
async fn no_call_overlooks_a_condition_that_it_does_not_heed() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    server.post("/agents", json!({ "name": "mine", "description": "", "instructions": "" })).await;
    server.post("/providers", json!({ "name": "mine", "kind": "openai" })).await;
    server.post("/secrets", json!({ "name": "mine", "value": "v", "env": "A" })).await;
    let (_, document) = server.get("/openapi.json").await;
    let state = || async {
        let lists = ["/sessions", "/agents", "/accounts", "/providers", "/secrets"].map(|list| server.get(list));
        futures::future::join_all(lists).await
    };
    let before = state().await;
    let mut tried = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in
            item.as_object().unwrap().keys().filter(|method| ["put", "post", "delete"].contains(&method.as_str()))
        {
            let own = if path.contains("/agents/{id}") {
                "mine"
            } else if path.contains("/accounts/{id}") {
                "admin"
            } else {
                &id
            };
            let target =
                path.trim_start_matches("/api/v0").replace("{id}", own).replace("{path}", "f").replace("{n}", "1");
            let target = target.replace("{name}", "mine");
            for header in [
                "if-match: \"v999999\"",
                "if-match: \"other\"",
                "if-none-match: *",
                "if-unmodified-since: Sun, 06 Nov 1994 08:49:37 GMT",
                "content-range: bytes 0-1/2",
                "content-encoding: gzip",
            ] {
                // Of a file that is not there, this says what is wanted.
                if method == "put" && target.contains("/files/") && header.starts_with("if-none-match") {
                    continue;
                }
                let answer = send(&server, &method.to_uppercase(), &target, &[header], b"{}");
                let is_refused =
                    matches!(answer.status, 400 | 412 | 415) || (answer.status == 404 && target.ends_with("/files/f"));
                // What is wrong with the body may be said first.
                let is_refused = is_refused || (answer.status == 422 && header.starts_with("if-"));
                assert!(is_refused, "{method} {target} {header}: {} {}", answer.status, answer.json());
                tried += 1;
            }
        }
    }
    assert!(tried > 100, "{tried}");
    let count = |(_, page): &(StatusCode, Value)| page["items"].as_array().unwrap().len();
    let counts = |state: Vec<(StatusCode, Value)>| state.iter().map(count).collect::<Vec<_>>();
    assert_eq!(counts(state().await), counts(before));
    let session = server.get(&format!("/sessions/{id}")).await.1;
    assert_eq!((&session["state"], &session["generation"]), (&json!("READY"), &json!(1)));
}
