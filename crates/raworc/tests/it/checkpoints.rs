//! Checkpoints: taking, reading, comparing, restoring and remixing them.

use std::fs;
use std::path::{Path, PathBuf};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::daemon::Settings;
use crate::harness::{TestServer, eventually};
use crate::portable::registry;
use crate::server_or_skip;

/// Prints all properties of the workspace's content, for comparison.
const FINGERPRINT: &str = r#"cd /workspace; find . -mindepth 1 -printf '%p %y %m %U %G %s %T@ %l\n' | sed 's/^\([^ ]* d [^ ]* [^ ]* [^ ]*\) [0-9]*/\1 -/' | LC_ALL=C sort
find . -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum
find . -type f -links +1 -samefile links/a 2>/dev/null | LC_ALL=C sort
perl -e 'for (@ARGV) { my $f = $_; print "$f ", (stat $f)[12] * 512 < 1 << 20 ? "sparse" : "full", "\n" }' sparse 2>/dev/null; :"#;

/// A session's checkpoints, once none is in progress.
async fn list(server: &TestServer, id: &str) -> Vec<Value> {
    loop {
        let (status, page) = server.get(&format!("/sessions/{id}/checkpoints")).await;
        assert_eq!(status, 200, "{page:#}");
        let all = page["items"].as_array().unwrap();
        if all.iter().all(|checkpoint| checkpoint["status"] == "ready" || checkpoint["status"] == "failed") {
            return all.clone();
        }
    }
}

fn brief(checkpoints: &[Value]) -> Vec<(u64, &str, &str)> {
    let brief = |c: &Value| (c["n"].as_u64().unwrap(), c["cause"].clone(), c["status"].clone());
    let all: Vec<_> = checkpoints.iter().map(brief).collect();
    let text = |value: &Value| -> &'static str { Box::leak(value.as_str().unwrap().to_owned().into_boxed_str()) };
    all.iter().map(|(n, cause, status)| (*n, text(cause), text(status))).collect()
}

async fn read(server: &TestServer, path: &str) -> (StatusCode, String) {
    let response = server.request(reqwest::Method::GET, path).send().await.unwrap();
    (response.status(), response.text().await.unwrap())
}

async fn remix(server: &TestServer, parent: &str, body: Value) -> String {
    let (status, session) = server.post(&format!("/sessions/{parent}/remix"), body).await;
    assert_eq!(status, 201, "{session:#}\n{}", server.log());
    let id = session["id"].as_str().unwrap().to_owned();
    server.until(&id, |session| session["state"] == "READY").await;
    id
}

/// Existing layer directories.
fn layers(data: &Path) -> usize {
    let names = fs::read_dir(data.join("layers")).unwrap().flatten();
    names.filter(|entry| entry.file_name().len() == 32).count()
}

#[tokio::test]
async fn a_message_that_changes_something_leaves_a_checkpoint() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    server.output(&id, "true").await;
    assert_eq!(list(&server, &id).await, [] as [Value; 0]);
    server.output(&id, "printf 'one\\ntwo\\n' > text; printf x > gone; ln -s /etc/passwd out").await;
    server.output(&id, "cat text").await;
    server.output(&id, "printf 'one\\n2\\n' > text; rm gone; mkdir -p d/e; echo deep > d/e/f").await;
    let all = list(&server, &id).await;
    assert_eq!(brief(&all), [(1, "message", "ready"), (2, "message", "ready")]);
    assert_eq!((&all[0]["size_bytes"], &all[0]["files"]), (&json!(9), &json!(2)), "{all:#?}");
    assert_eq!((&all[1]["size_bytes"], &all[1]["files"]), (&json!(11), &json!(2)), "{all:#?}");
    assert_eq!(all[1]["changed_bytes"], 11);
    let (_, session) = server.get(&format!("/sessions/{id}")).await;
    assert_eq!(session["checkpoint"], 2);
    let events = server.events(&id).await;
    let told: Vec<&Value> = events.iter().filter(|event| event["type"] == "checkpoint.created").collect();
    assert_eq!(told.iter().map(|event| &event["data"]["n"]).collect::<Vec<_>>(), [1, 2]);
    let finished = events.iter().filter(|event| event["type"] == "message.finished").map(|event| &event["seq"]);
    let finished: Vec<&Value> = finished.collect();
    assert!(all[0]["seq"].as_u64() >= finished[1].as_u64() && all[0]["seq"].as_u64() < finished[2].as_u64());

    // Looked into and compared without a container.
    server.post(&format!("/sessions/{id}/pause"), json!(null)).await;
    server.until(&id, |session| session["state"] == "IDLE").await;
    let base = format!("/sessions/{id}/checkpoints");
    assert_eq!(read(&server, &format!("{base}/1/files/text")).await, (StatusCode::OK, "one\ntwo\n".into()));
    assert_eq!(read(&server, &format!("{base}/2/files/d/e/f")).await, (StatusCode::OK, "deep\n".into()));
    assert_eq!(read(&server, &format!("{base}/1/files/d/e/f")).await.0, 404);
    assert_ne!(read(&server, &format!("{base}/1/files/out")).await.0, 200, "a link leads nowhere");
    let (_, listing) = server.get(&format!("{base}/1/files")).await;
    let names: Vec<&Value> = listing["entries"].as_array().unwrap().iter().map(|item| &item["name"]).collect();
    assert_eq!(names, ["gone", "out", "text"]);
    let (_, diff) = server.get(&format!("{base}/2/diff")).await;
    let items = diff["items"].as_array().unwrap();
    let changes: Vec<_> = items.iter().map(|i| (i["path"].as_str().unwrap(), i["change"].as_str().unwrap())).collect();
    let expected = [("d", "added"), ("d/e", "added"), ("d/e/f", "added"), ("gone", "deleted"), ("text", "changed")];
    assert_eq!((diff["from"].as_str().unwrap(), changes), ("1", expected.to_vec()));
    assert_eq!((&items[4]["size_before"], &items[4]["size_after"]), (&json!(8), &json!(6)));
    let (_, diff) = server.get(&format!("{base}/2/diff?from=1&path=text")).await;
    assert_eq!(diff["unified"], "--- a/text\n+++ b/text\n@@ -1,2 +1,2 @@\n one\n-two\n+2\n");
    let (_, diff) = server.get(&format!("{base}/1/diff")).await;
    assert_eq!((&diff["from"], diff["items"].as_array().map(Vec::len)), (&json!("empty"), Some(3)), "{diff:#}");
    let (_, diff) = server.get(&format!("{base}/now/diff?from=2")).await;
    assert_eq!(diff["items"], json!([]));

    for (path, status) in [("9", 404), ("9/diff", 404), ("2/diff?from=9", 404), ("x/diff", 404), ("1/files/../..", 404)]
    {
        let (answered, problem) = server.get(&format!("{base}/{path}")).await;
        assert!(answered == status || answered == 400 || answered == 422, "{path}: {answered} {problem}");
    }
    let (status, problem) = server.post(&base, json!({ "label": "x".repeat(200) })).await;
    assert_eq!((status.as_u16(), &problem["errors"][0]["field"]), (422, &json!("label")));
}

#[tokio::test]
async fn going_back_takes_workspace_and_conversation_and_loses_nothing() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    server.output(&id, "echo good > state; mkdir kept; touch kept/empty").await;
    server.output(&id, "echo bad > state; rm -r kept; echo junk > junk").await;
    server
        .output(&id, "(while :; do date > busy; sleep 0.01; done) >/dev/null 2>&1 & until [ -s busy ]; do :; done")
        .await;
    let (status, session) = server.post(&format!("/sessions/{id}/checkpoints/1/restore"), json!(null)).await;
    assert_eq!((status.as_u16(), &session["rewinding_to"]), (200, &Value::Null), "{session:#}\n{}", server.log());
    assert_eq!(server.output(&id, "cat state; ls; ls kept").await, "good\nkept\nstate\nempty\n");
    let (_, page) = server.get(&format!("/sessions/{id}/messages")).await;
    let said: Vec<&str> = page["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|m| m["role"] == "user")
        .map(|m| m["content"].as_str().unwrap())
        .collect();
    assert_eq!(said, ["echo good > state; mkdir kept; touch kept/empty", "cat state; ls; ls kept"]);
    // What was there is in the checkpoint that was taken before, its conversation with it.
    let all = list(&server, &id).await;
    let saved = all.iter().find(|checkpoint| checkpoint["cause"] == "rewind").unwrap();
    assert_eq!(saved["status"], "ready");
    let n = saved["n"].as_u64().unwrap();
    let (status, _) = server.post(&format!("/sessions/{id}/checkpoints/{n}/restore"), json!(null)).await;
    assert_eq!(status, 200);
    assert_eq!(server.output(&id, "cat state; ls | tr '\\n' ' '").await, "bad\nbusy junk state ");
    let (_, page) = server.get(&format!("/sessions/{id}/messages")).await;
    assert_eq!(page["items"].as_array().unwrap().iter().filter(|m| m["role"] == "user").count(), 4, "{page:#}");
    // A session that has ended stays as it is.
    server.post(&format!("/sessions/{id}/terminate"), json!(null)).await;
    server.until(&id, |session| session["state"] == "IDLE").await;
    let (status, problem) = server.post(&format!("/sessions/{id}/checkpoints/1/restore"), json!(null)).await;
    assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("session_terminated")), "{problem}");
}

#[tokio::test]
async fn a_remix_is_the_same_and_goes_its_own_way() {
    let server = server_or_skip!();
    let parent = server.session(json!({ "metadata": { "k": "v" }, "env": { "A": "b" } })).await;
    let script = r#"mkdir -p links deep/er 'with space' empty; echo a > links/a; ln links/a links/b; ln -s ../links/a deep/link
        ln -s /nowhere dangling; truncate -s 8M sparse; printf end >> sparse; chmod 4755 links/a; chmod 700 deep; chmod 1777 empty
        touch -d '2001-02-03 04:05:06.789' deep/er; printf x > "$(printf 'not\377utf8')"; printf y > 'with space/new
line'; mkfifo pipe; : > zero; printf '%s' "$A" > env"#;
    server.output(&parent, script).await;
    let before = server.output(&parent, FINGERPRINT).await;
    server
        .output(&parent, "rm -r deep; mkdir deep; echo other > deep/other; mv 'with space' moved; rm links/b; rm zero")
        .await;
    let after = server.output(&parent, FINGERPRINT).await;
    assert_ne!(before, after);
    assert!(before.contains("sparse sparse") && before.contains("./links/b"), "{before}");

    let old = remix(&server, &parent, json!({ "checkpoint": 1, "name": "old", "metadata": { "k": "w" } })).await;
    assert_eq!(server.output(&old, FINGERPRINT).await, before);
    let new = remix(&server, &parent, json!({})).await;
    assert_eq!(server.output(&new, FINGERPRINT).await, after);
    let (_, session) = server.get(&format!("/sessions/{old}")).await;
    assert_eq!((&session["parent_session_id"], &session["parent_checkpoint"]), (&json!(parent), &json!(1)));
    assert_eq!((&session["metadata"], &session["env"]), (&json!({ "k": "w" }), &json!({ "A": "b" })));
    let (_, page) = server.get(&format!("/sessions?parent={parent}")).await;
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
    let (_, page) = server.get(&format!("/sessions/{old}/messages")).await;
    assert_eq!(page["items"][0]["content"], script, "the conversation up to there");

    server.output(&new, "rm -r *; echo mine > mine").await;
    assert_eq!(server.output(&parent, FINGERPRINT).await, after);
    server.output(&parent, "rm -r *").await;
    assert_eq!(server.output(&old, FINGERPRINT).await, before);
    let grandchild = remix(&server, &old, json!({})).await;
    assert_eq!(server.output(&grandchild, FINGERPRINT).await, before);
}

#[tokio::test]
async fn a_hundred_remixes_share_what_they_start_from() {
    let server = server_or_skip!();
    let parent = server.session(json!({})).await;
    server.output(&parent, "head -c 5000000 /dev/urandom > much; truncate -s 5G large; printf end >> large").await;
    let bytes = async || server.get("/system/disk").await.1["sessions"]["bytes"].as_u64().unwrap();
    eventually("it is saved", async || bytes().await > 0).await;
    let alone = bytes().await;
    assert!((5_000_000..6_000_000).contains(&alone), "{alone}: holes take no space");
    let mut last = parent.clone();
    for _ in 0..100 {
        last = remix(&server, &parent, json!({ "checkpoint": 1, "waiting_timeout_seconds": 1 })).await;
    }
    assert_eq!(bytes().await, alone);
    assert_eq!(server.output(&last, "stat -c %s large; tail -c 3 large").await, "5368709123\nend");
}

#[tokio::test]
async fn a_layer_that_is_missing_is_named_and_the_rest_goes_on() {
    let mut server = server_or_skip!();
    let id = server.session(json!({ "name": "hurt" })).await;
    let other = server.session(json!({ "name": "other" })).await;
    server.output(&id, "echo first > file").await;
    server.output(&other, "echo mine > mine").await;
    let layers = |server: &TestServer| -> std::collections::BTreeSet<PathBuf> {
        let all = fs::read_dir(server.data_dir().join("layers")).unwrap().flatten().map(|entry| entry.path());
        all.filter(|path| path.join("fs/new").is_file()).collect()
    };
    server.output(&id, "echo second > new").await;
    let lost = layers(&server).pop_first().unwrap();
    server.output(&id, "echo third > third").await;
    for session in [&id, &other] {
        server.post(&format!("/sessions/{session}/pause"), json!(null)).await;
        server.until(session, |session| session["state"] == "IDLE").await;
    }
    server.stop();
    let aside = server.data_dir().join("aside");
    fs::rename(&lost, &aside).unwrap();
    server.start_again();
    let base = format!("/sessions/{id}/checkpoints");
    let name = lost.file_name().unwrap().to_str().unwrap().parse::<raworc_core::ids::LayerId>().unwrap().to_string();
    for path in ["2/files", "3/diff", "3/export", "now/files"] {
        let (status, problem) = server.get(&format!("{base}/{path}")).await;
        assert_eq!((status.as_u16(), &problem["code"]), (500, &json!("workspace_damaged")), "{path}: {problem:#}");
        assert!(problem["detail"].as_str().unwrap().contains(&name), "{problem:#}");
    }
    for n in [2, 3] {
        let new = server.post(&format!("/sessions/{id}/remix"), json!({ "checkpoint": n })).await.1;
        let new = server.until(new["id"].as_str().unwrap(), |session| session["state"] == "ERROR").await;
        assert_eq!(new["error"]["code"], "start_failed", "{new:#}");
    }
    assert_eq!(read(&server, &format!("{base}/1/files/file")).await.1, "first\n");
    server.post(&format!("/sessions/{other}/resume"), json!(null)).await;
    assert_eq!(server.output(&other, "cat mine").await, "mine\n");
    let before = remix(&server, &id, json!({ "checkpoint": 1 })).await;
    assert_eq!(server.output(&before, "ls").await, "file\n");
    // Where it comes back, all is well.
    fs::rename(&aside, &lost).unwrap();
    server.post(&format!("/sessions/{id}/resume"), json!(null)).await;
    assert_eq!(server.output(&id, "cat file new third").await, "first\nsecond\nthird\n");
}

#[tokio::test]
async fn a_parent_may_be_in_any_state() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    server.output(&id, "echo here > file").await;
    let (_, message) = server
        .post(&format!("/sessions/{id}/messages"), json!({ "content": "echo more >> file; touch busy; sleep 1000" }))
        .await;
    while server.get(&format!("/sessions/{id}/files/busy")).await.0 != 200 {}
    let of_busy = remix(&server, &id, json!({})).await;
    assert_eq!(server.output(&of_busy, "cat file").await, "here\nmore\n");
    let (_, page) = server.get(&format!("/sessions/{of_busy}/messages")).await;
    let done =
        page["items"].as_array().unwrap().iter().all(|m| m["status"] != "processing" && m["id"] != message["id"]);
    assert!(done, "what the parent works on is the parent's: {page:#}");
    server.signal_host(&server.container(&id).await, nix::sys::signal::Signal::SIGKILL);
    server.until(&id, |session| session["state"] == "ERROR" || session["generation"] == 2).await;
    let of_failed = remix(&server, &id, json!({})).await;
    assert_eq!(server.output(&of_failed, "cat file").await, "here\nmore\n");
    server.post(&format!("/sessions/{id}/cancel"), json!(null)).await;
    server.post(&format!("/sessions/{id}/terminate"), json!(null)).await;
    server.until(&id, |session| session["terminated_at"] != Value::Null).await;
    let of_ended = remix(&server, &id, json!({})).await;
    assert_eq!(server.output(&of_ended, "cat file | head -n 2").await, "here\nmore\n");
    server.delete(&format!("/sessions/{id}")).await;
    let of_deleted = remix(&server, &id, json!({ "checkpoint": 1 })).await;
    assert_eq!(server.output(&of_deleted, "cat file").await, "here\n");
}

#[tokio::test]
async fn what_is_written_all_the_time_is_saved_as_of_one_moment() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    // Each line is in the one file before it is in the other.
    let script =
        "(n=0; while :; do n=$((n+1)); echo $n >> first; echo $n >> second; : > f$((n % 50))
            mkdir -p d$((n % 9))/e; : > d$((n % 9))/e/a; : > d$((n % 9))/e/b; rm d$((n % 9))/e/?; done) >/dev/null 2>&1 &
        while [ ! -s second ]; do :; done";
    server.output(&id, script).await;
    for _ in 0..5 {
        let (status, checkpoint) =
            server.post(&format!("/sessions/{id}/checkpoints"), json!({ "label": "busy" })).await;
        assert_eq!(
            (status.as_u16(), &checkpoint["status"]),
            (201, &json!("ready")),
            "{checkpoint:#}\n{}",
            server.log()
        );
        let n = &checkpoint["n"];
        let [first, second] = ["first", "second"].map(|name| format!("/sessions/{id}/checkpoints/{n}/files/{name}"));
        let (first, second) = (read(&server, &first).await.1, read(&server, &second).await.1);
        let (first, second): (Vec<&str>, Vec<&str>) = (first.lines().collect(), second.lines().collect());
        assert!(!second.is_empty() && first.starts_with(&second) && first.len() - second.len() <= 1);
        // What was deleted in what is new is not there, not even by name.
        let new = remix(&server, &id, json!({ "checkpoint": n })).await;
        assert_eq!(server.output(&new, "ls -lR 2>&1 | grep -c '?' || true").await, "0\n");
    }
    assert_eq!(server.output(&id, "[ $(wc -l < first) -gt 1 ] && echo on").await, "on\n");
}

#[tokio::test]
async fn chains_stay_short_and_what_nobody_needs_goes() {
    let mut server = server_or_skip!();
    let id = server.session(json!({ "checkpoints": { "keep_last": 3 } })).await;
    server.output(&id, "seq 1 200 | xargs touch; echo 0 > n").await;
    let (_, labelled) = server.post(&format!("/sessions/{id}/checkpoints"), json!({ "label": "start" })).await;
    for n in 1..=70 {
        server
            .output(
                &id,
                &format!("echo {n} > n; rm {n}; mkdir d{n}; [ {n} = 1 ] || mv d$(({n} - 1)) d{n}/inner; echo > d{n}/f"),
            )
            .await;
    }
    let check = "ls | wc -l; cat n; find d70 | wc -l; ls d70/inner/inner";
    let now = server.output(&id, check).await;
    assert_eq!(now, "132\n70\n140\nf\ninner\n");
    let all = list(&server, &id).await;
    assert_eq!(all.len(), 4, "three and the labelled one: {all:#?}");
    assert_eq!(all[0]["n"], labelled["n"]);
    // Merging and removing are done behind the session's back; what its container has mounted stays until it gets other ones.
    server.post(&format!("/sessions/{id}/pause"), json!(null)).await;
    server.until(&id, |session| session["state"] == "IDLE" && layers(&server.data_dir()) < 30).await;
    // What is left restores: in a new container, after a restart, and from the beginning.
    server.stop();
    server.start_again();
    server.post(&format!("/sessions/{id}/resume"), json!(null)).await;
    assert_eq!(server.output(&id, check).await, now);
    let first = remix(&server, &id, json!({ "checkpoint": all[0]["n"] })).await;
    assert_eq!(server.output(&first, "ls | wc -l; cat n").await, "201\n0\n");
    for checkpoint in &all {
        let path = format!("/sessions/{id}/checkpoints/{}", checkpoint["n"]);
        let (status, _) = server.delete(&path).await;
        assert_eq!(status, 204);
        assert_eq!(server.get(&path).await.0, 404);
    }
    assert_eq!(server.output(&id, check).await, now);
    assert_eq!(server.output(&first, "ls | wc -l").await, "201\n");
}

#[tokio::test]
async fn plans_decide_when() {
    let server = server_or_skip!();
    let manual = server.session(json!({ "checkpoints": { "policy": "manual" } })).await;
    let on_stop = server.session(json!({ "checkpoints": { "policy": "on_stop" } })).await;
    let every = server.session(json!({ "checkpoints": { "policy": "every", "every_seconds": 5 } })).await;
    for id in [&manual, &on_stop, &every] {
        server.output(id, "echo x > f").await;
        assert_eq!(list(&server, id).await, [] as [Value; 0]);
    }
    for id in [&manual, &on_stop] {
        server.post(&format!("/sessions/{id}/pause"), json!(null)).await;
        server.until(id, |session| session["state"] == "IDLE").await;
    }
    server.until(&on_stop, |session| session["checkpoint"] == 1).await;
    assert_eq!(list(&server, &manual).await, [] as [Value; 0]);
    assert_eq!(brief(&list(&server, &on_stop).await), [(1, "stop", "ready")]);
    server.until(&every, |session| session["checkpoint"] == 1).await;
    assert_eq!(brief(&list(&server, &every).await), [(1, "every", "ready")]);
    let (status, asked) = server.post(&format!("/sessions/{manual}/checkpoints"), json!({ "label": "mine" })).await;
    assert_eq!((status.as_u16(), &asked["label"], &asked["files"]), (201, &json!("mine"), &json!(1)));
    for wrong in [
        json!({ "policy": "sometimes" }),
        json!({ "policy": "every" }),
        json!({ "policy": "every", "every_seconds": 1 }),
        json!({ "keep_last": 0 }),
    ] {
        let (status, problem) = server.post("/sessions", json!({ "checkpoints": wrong })).await;
        assert!(status == 422 || status == 400, "{wrong}: {status} {problem}");
    }
}

#[tokio::test]
async fn one_that_cannot_be_taken_is_told_and_harms_nothing() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    server.output(&id, "echo fine > fine").await;
    let deep = "perl -e 'for (1..600) { mkdir \"d\" or die; chdir \"d\" or die }'; echo after > after";
    server.output(&id, deep).await;
    let (status, checkpoint) = server.post(&format!("/sessions/{id}/checkpoints"), json!({})).await;
    assert_eq!((status.as_u16(), &checkpoint["status"]), (201, &json!("failed")), "{checkpoint:#}");
    assert!(checkpoint["error"].as_str().unwrap().contains("512 levels deep"), "{checkpoint}");
    assert!(server.events(&id).await.iter().any(|event| event["type"] == "checkpoint.failed"));
    assert_eq!(server.output(&id, "cat fine after").await, "fine\nafter\n");
    let (status, problem) = server.post(&format!("/sessions/{id}/remix"), json!({})).await;
    assert_eq!((status.as_u16(), &problem["code"]), (503, &json!("checkpoint_failed")), "{problem}");
    server.output(&id, "rm -r d").await;
    let (_, checkpoint) = server.post(&format!("/sessions/{id}/checkpoints"), json!({})).await;
    assert_eq!((&checkpoint["status"], &checkpoint["files"]), (&json!("ready"), &json!(2)), "{checkpoint:#}");
}

#[tokio::test]
async fn they_are_called_by_number_or_label_and_compared_across_sessions() {
    let server = server_or_skip!();
    let one = server.session(json!({ "name": "one" })).await;
    server.output(&one, "echo first > file").await;
    server.post(&format!("/sessions/{one}/checkpoints"), json!({ "label": "good start" })).await;
    server.output(&one, "echo second > file").await;
    let run = |arguments: &[&str]| {
        let output = server.cli(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(run(&["checkpoint", "get", "one", "good start"]).contains("good start"));
    assert!(run(&["session", "remix", "one", "--checkpoint", "good start", "--name", "two"]).contains("READY"));
    assert_eq!(server.output("two", "cat file").await, "first\n");
    let text = run(&["checkpoint", "diff", "one", "--from", "two@now", "--path", "file"]);
    assert!(text.contains("-first") && text.contains("+second"), "{text}");
    assert_eq!(run(&["session", "files", "cat", "one", "file", "--checkpoint", "good start"]), "first\n");
    // A link is compared as one, and not what it leads to.
    server.output(&one, "ln -s file link").await;
    assert!(run(&["checkpoint", "diff", "one", "--from", "good start", "--path", "link"]).starts_with("+ link"));
    server.output(&one, "rm link").await;
    assert!(run(&["session", "files", "ls", "one", "--checkpoint", "1"]).contains("file"));
    run(&["checkpoint", "restore", "one", "good start"]);
    assert_eq!(server.output(&one, "cat file").await, "first\n");
    // What is not there is an error, and not the same in both.
    for query in ["from=1&path=nothing", "from=nothing", "from=nobody@now"] {
        let (status, problem) = server.get(&format!("/sessions/{one}/checkpoints/now/diff?{query}")).await;
        assert_eq!((status.as_u16(), &problem["code"]), (404, &json!("not_found")), "{query}: {problem}");
    }
    // One that leaves is the newest, where nothing was done or said since.
    let before = list(&server, &one).await.len();
    let file = server.data_dir().with_file_name("one.tar");
    for _ in 0..3 {
        run(&["checkpoint", "export", "one", file.to_str().unwrap()]);
    }
    assert!(list(&server, &one).await.len() <= before + 1);
}

/// Runs the example in docs/workspaces.md.
#[tokio::test]
async fn the_example_of_the_documentation_works() {
    let Some(daemon) = registry(Settings::default()) else { return };
    let (server, other) = (TestServer::start(&[]), TestServer::start(&[]));
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/workspaces.md")).unwrap();
    let page = page.replace("127.0.0.1:5000", &daemon.address.to_string());
    let run = |server: &TestServer, page: &str| {
        let blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
        let output = server.shell(&blocks.collect::<String>());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}\n{}\n{}", String::from_utf8_lossy(&output.stderr), server.log());
        text
    };
    let (here, elsewhere) = page.split_once("On another server").unwrap();
    let text = run(&server, here);
    assert!(run(&other, elsewhere).contains("5\n4\n3\n2\n1\n"));
    for told in ["sum: 15", "- numbers", "~ sum.sh", "+exit 1", "with-sort", "+5\n+4\n", "- sum.sh", "+ result"] {
        assert!(text.contains(told), "{told} is not in:\n{text}");
    }
}
