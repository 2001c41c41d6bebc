//! Commands besides the conversation.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{PATIENCE, TestServer};
use crate::raw::send;
use crate::server_or_skip;

/// Runs a command and returns its result.
async fn exec(server: &TestServer, id: &str, body: Value) -> Value {
    let (status, result) = server.post(&format!("/sessions/{id}/exec"), body.clone()).await;
    assert_eq!(status, 200, "{body}: {result}");
    result
}

/// Whether a process in this server's containers has this in its arguments.
fn runs(server: &TestServer, argument: &str) -> bool {
    let has = |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| contains(&line, argument));
    server.container_processes().iter().any(has)
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Waits until `done`.
async fn wait_for(what: &str, done: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_command_is_answered_with_what_it_wrote_and_how_it_ended() {
    let server = server_or_skip!();
    let id = server.session(json!({ "env": { "A": "session", "B": "session" } })).await;
    let long_script = format!("# {}\necho long", "x".repeat(200_000));
    let end = |code: i64, stdout: &str, stderr: &str| json!([code, null, false, stdout, stderr]);
    let cases = [
        (json!({ "command": "echo out; echo err >&2; exit 3" }), end(3, "out\n", "err\n")),
        (json!({ "command": ["echo", "$HOME", "a  b", "", "*"] }), end(0, "$HOME a  b  *\n", "")),
        (
            json!({ "command": "echo *; echo \"$#\"; [ \"$0\" = \"$BASH_SOURCE\" ] && echo \"${0%/*}\"" }),
            end(0, "*\n0\n/run/_\n", ""),
        ),
        (json!({ "command": ["cat"], "stdin": "größe\n" }), end(0, "größe\n", "")),
        (json!({ "command": ["true"], "stdin": "x".repeat(1 << 20) }), end(0, "", "")),
        (json!({ "command": ["cat"] }), end(0, "", "")),
        (json!({ "command": "cat" }), end(0, "", "")),
        (json!({ "command": "echo $A $B $C", "env": { "B": "b", "C": "c d" } }), end(0, "session b c d\n", "")),
        (json!({ "command": "pwd" }), end(0, "/workspace\n", "")),
        (json!({ "command": ["pwd"], "directory": "/tmp" }), end(0, "/tmp\n", "")),
        (json!({ "command": "kill -KILL $$" }), json!([null, 9, false, "", ""])),
        (json!({ "command": ["sh", "-c", "kill -TERM $$"] }), json!([null, 15, false, "", ""])),
        (json!({ "command": "echo begun; sleep 600", "timeout_seconds": 1 }), json!([null, null, true, "begun\n", ""])),
        (json!({ "command": "printf '\\xff\\0a'" }), end(0, "\u{fffd}\0a", "")),
        (json!({ "command": long_script }), end(0, "long\n", "")),
        (json!({ "command": "echo $RAWORC_SESSION_ID" }), end(0, &format!("{id}\n"), "")),
    ];
    for (body, expected) in cases {
        let r = exec(&server, &id, body.clone()).await;
        let text = body.to_string();
        let seen = json!([r["exit_code"], r["signal"], r["timed_out"], r["stdout"], r["stderr"]]);
        assert_eq!(seen, expected, "{}", &text[..text.len().min(200)]);
        assert!(r["duration_seconds"].as_f64().unwrap() > 0.0 && r["output_bytes_dropped"] == 0, "{r}");
    }
    // What cannot be started ends as it would in a shell, and says why.
    for (body, code, why) in [
        (json!({ "command": ["no-such-program"] }), 127, "no-such-program was not found"),
        (json!({ "command": ["/no/such/program", "-x"] }), 127, "/no/such/program was not found"),
        (json!({ "command": ["/etc/passwd"] }), 126, "ermission denied"),
        (json!({ "command": ["/usr"] }), 126, "ermission denied"),
        (json!({ "command": "#!/no/such/interpreter\necho" }), 127, "/no/such/interpreter was not found"),
        (json!({ "command": "true", "directory": "/nowhere" }), 126, "the directory /nowhere cannot be used"),
        (json!({ "command": ["true"], "directory": "/etc/passwd" }), 126, "the directory /etc/passwd cannot be used"),
        (json!({ "command": ["true"], "directory": "/run/_" }), 0, ""),
    ] {
        let r = exec(&server, &id, body.clone()).await;
        let seen = (&r["exit_code"], &r["signal"], &r["timed_out"]);
        assert_eq!(seen, (&json!(code), &Value::Null, &json!(false)), "{body}: {r}");
        assert!(r["stderr"].as_str().unwrap().contains(why), "{body}: {r}");
    }
    assert_eq!(server.get(&format!("/sessions/{id}/messages")).await.1["items"], json!([]), "nothing of it is said");
}

#[tokio::test]
async fn of_too_much_output_both_ends_are_kept() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let r = exec(&server, &id, json!({ "command": "head -c 3000000 /dev/zero | tr '\\0' x; echo end >&2" })).await;
    let (stdout, dropped) = (r["stdout"].as_str().unwrap(), 3_000_004 - 1024 * 1024);
    assert_eq!(
        (&r["stderr"], &r["exit_code"], &r["output_bytes_dropped"]),
        (&json!("end\n"), &json!(0), &json!(dropped))
    );
    let file = r["output_file"].as_str().unwrap();
    let mark = format!("\n[raworc: {dropped} bytes of standard output left out here; all of it is in {file}]\n");
    let (head, tail) = stdout.split_once(&mark).unwrap();
    assert_eq!((head.len(), tail.len()), (512 * 1024, 512 * 1024 - 4));
    let whole = server.request(Method::GET, &format!("/sessions/{id}/files/{file}")).send().await.unwrap();
    assert_eq!(whole.bytes().await.unwrap().len(), 3_000_004);
}

/// Scripts that interact with their shell, as programs in a terminal do.
#[tokio::test]
async fn a_script_is_to_its_shell_what_a_file_would_be() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    for (script, code, stdout) in [
        (
            "for w in script message shell raworc agent exec tmp workspace 8080 host main; do pkill -f $w; done; echo alive",
            0,
            "alive\n",
        ),
        ("pgrep -f a-mark-of-its-own | wc -l # a-mark-of-its-own", 0, "0\n"),
        (
            "echo $USER $LOGNAME $SHELL $HOME $PWD $(id -un) $(groups | wc -w)",
            0,
            "agent agent /bin/bash /workspace /workspace agent 2\n",
        ),
        ("#!/usr/bin/perl\nprint \"$ENV{USER} perl\\n\"", 0, "agent perl\n"),
        ("echo a >/dev/stdout; echo b | tee /dev/stderr >/dev/null; echo c >/proc/self/fd/1", 0, "a\nc\n"),
        ("-n; echo on", 0, "on\n"),
        ("head -c 400M /dev/zero > /tmp/full 2>/dev/null; exec true", 0, ""),
        ("echo still", 0, "still\n"),
        ("#!/no/such/shell", 127, ""),
    ] {
        let message = server.send(&id, script).await;
        let output = message["reply"]["content"].as_str().unwrap();
        assert_eq!(message["reply"]["usage"]["exit_code"], code, "{script}: {message}");
        let streamed: String = server
            .events(&id)
            .await
            .iter()
            .filter(|e| {
                e["type"] == "message.delta"
                    && e["data"]["message_id"] == message["id"]
                    && e["data"]["stream"] == "stdout"
            })
            .map(|e| e["data"]["text"].as_str().unwrap())
            .collect();
        assert_eq!(streamed, stdout, "{script}: {output}");
    }
}

#[tokio::test]
async fn commands_run_side_by_side_and_beside_a_message() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let waits = "mkfifo fifo; cat fifo";
    server.post(&format!("/sessions/{id}/messages"), json!({ "content": waits })).await;
    server.until(&id, |session| session["state"] == "BUSY").await;
    // Each of these waits for the next one, so they only end where they run at the same time.
    let links = (0..8).map(|n| {
        let script = match n {
            7 => "until [ -p pipe7 ]; do :; done; echo done > pipe7".to_owned(),
            _ if n == 0 => "mkfifo pipe1; cat pipe1".to_owned(),
            _ => format!("mkfifo pipe{}; until [ -p pipe{n} ]; do :; done; cat pipe{} > pipe{n}", n + 1, n + 1),
        };
        exec(&server, &id, Value::from(serde_json::Map::from_iter([("command".to_owned(), json!(script))])))
    });
    let ended = futures::future::join_all(links).await;
    assert!(ended.iter().all(|r| r["exit_code"] == 0 && r["stderr"] == ""), "{ended:?}");
    assert_eq!(ended[0]["stdout"], "done\n");
    assert_eq!(server.get(&format!("/sessions/{id}")).await.1["state"], "BUSY");
    exec(&server, &id, json!({ "command": "echo free > fifo" })).await;
    server.until(&id, |session| session["state"] == "READY" && session["usage"]["messages"] == 1).await;
    let page = server.get(&format!("/sessions/{id}/messages")).await.1;
    assert_eq!(page["items"][1]["content"], "free\n");
}

#[tokio::test]
async fn a_command_wakes_a_session_that_rests_and_is_in_its_log() {
    let server = server_or_skip!();
    let id = server.session(json!({ "waiting_timeout_seconds": 1 })).await;
    server.until(&id, |session| session["state"] == "IDLE").await;
    let r = exec(&server, &id, json!({ "command": ["echo", "awake"] })).await;
    assert_eq!(r["stdout"], "awake\n");
    // It keeps the session from resting for as long as it runs.
    let r = exec(&server, &id, json!({ "command": "sleep 2; echo still" })).await;
    assert_eq!(r["stdout"], "still\n");
    let session = server.get(&format!("/sessions/{id}")).await.1;
    assert_eq!((&session["generation"], &session["usage"]["messages"]), (&json!(2), &json!(0)));
    let events = server.events(&id).await;
    let of = |kind: &str| -> Vec<&Value> { events.iter().filter(|event| event["type"] == kind).collect() };
    let (started, finished) = (of("exec.started"), of("exec.finished"));
    assert_eq!((started.len(), finished.len()), (2, 2));
    assert_eq!((&started[0]["data"]["command"], &started[0]["actor"]), (&json!("echo awake"), &json!("admin")));
    assert_eq!(started[0]["data"]["exec_id"], finished[0]["data"]["exec_id"]);
    assert_eq!(finished[0]["data"]["exit_code"], 0);
}

#[tokio::test]
async fn a_command_ends_when_nobody_waits_for_it_or_its_session_ends() {
    let server = server_or_skip!();
    let id = server.session(json!({ "waiting_timeout_seconds": 3600 })).await;
    let path = format!("/sessions/{id}/exec");
    let body = json!({ "command": "trap '' TERM HUP; sleep 7001 & sleep 7002" });
    let request = server.request(Method::POST, &path).json(&body).send();
    tokio::select! {
        response = request => panic!("{response:?}"),
        () = wait_for("the command runs", async || runs(&server, "7001") && runs(&server, "7002")) => {}
    }
    wait_for("the command ends", async || !runs(&server, "7001") && !runs(&server, "7002")).await;
    let last = async || server.events(&id).await.pop().unwrap();
    wait_for("its end is in the log", async || last().await["type"] == "exec.finished").await;
    assert_eq!(last().await["data"]["error"], "abandoned");
    // Its session is terminated under it.
    let (response, ()) = tokio::join!(server.post(&path, json!({ "command": ["sleep", "7003"] })), async {
        wait_for("the command runs", async || runs(&server, "7003")).await;
        assert_eq!(server.post(&format!("/sessions/{id}/terminate"), json!({})).await.0, 200);
    });
    assert_eq!((response.0.as_u16(), &response.1["code"]), (409, &json!("invalid_state")), "{response:?}");
    wait_for("the command ends", async || !runs(&server, "7003")).await;
    let finished = async || server.events(&id).await.iter().filter(|event| event["type"] == "exec.finished").count();
    wait_for("its end is in the log", async || finished().await == 2).await;
}

#[tokio::test]
async fn too_many_commands_at_once_are_refused() {
    let server = server_or_skip!();
    let id = server.session(json!({ "waiting_timeout_seconds": 3600 })).await;
    let path = format!("/sessions/{id}/exec");
    let many = (0..32)
        .map(|_| server.post(&path, json!({ "command": "echo x >> begun; until [ -e go ]; do sleep 0.01; done" })));
    let (ended, ()) = tokio::join!(futures::future::join_all(many), async {
        wait_for("all of them run", async || {
            let file = server.request(Method::GET, &format!("/sessions/{id}/files/begun")).send().await.unwrap();
            file.status() == 200 && file.text().await.unwrap().len() == 64
        })
        .await;
        send(&server, "POST", &path, &[], br#"{"command":"true"}"#).must_be_problem(429, "busy", "one too many");
        server.put(&format!("/sessions/{id}/files/go"), json!(1)).await;
    });
    assert!(ended.iter().all(|(status, r)| *status == 200 && r["exit_code"] == 0), "{ended:?}");
    assert_eq!(exec(&server, &id, json!({ "command": "true" })).await["exit_code"], 0, "there is room again");
    let events = server.events(&id).await;
    let count = |kind: &str| events.iter().filter(|event| event["type"] == kind).count();
    assert_eq!((count("exec.started"), count("exec.finished")), (33, 33));
}

#[tokio::test]
async fn what_begins_in_the_log_ends_there_whatever_dies() {
    let mut server = server_or_skip!();
    let id = server.session(json!({ "waiting_timeout_seconds": 3600 })).await;
    let path = format!("/sessions/{id}/exec");
    let begin = |server: &TestServer, gate: &str| {
        let script = format!("touch {gate}-begun; until [ -e {gate} ]; do sleep 0.01; done; exit 5");
        let request = server.request(Method::POST, &path).json(&json!({ "command": script })).send();
        tokio::spawn(request)
    };
    let begun = async |server: &TestServer, gate: &str| {
        let file = format!("/sessions/{id}/files/{gate}-begun");
        wait_for("it runs", async || server.get(&file).await.0 == 200).await;
    };
    let finished = async |server: &TestServer, count: usize| {
        let ends = async || {
            let events = server.events(&id).await.into_iter();
            events.filter(|event| event["type"] == "exec.finished").collect::<Vec<_>>()
        };
        wait_for("its end is in the log", async || ends().await.len() == count).await;
        ends().await.pop().unwrap()
    };
    // It goes on without the server that began it, and ends under the next one.
    let asked = begin(&server, "one");
    begun(&server, "one").await;
    server.kill();
    server.start_again();
    assert!(asked.await.unwrap().is_err());
    server.put(&format!("/sessions/{id}/files/one"), json!(1)).await;
    assert_eq!(finished(&server, 1).await["data"]["exit_code"], 5);
    // It ends while no server is there.
    let asked = begin(&server, "two");
    begun(&server, "two").await;
    server.kill();
    server.shell("touch \"$RAWORC_DATA_DIR\"/layers/*/fs/two");
    assert!(asked.await.unwrap().is_err());
    server.start_again();
    finished(&server, 2).await;
    // Its container dies.
    let asked = begin(&server, "three");
    begun(&server, "three").await;
    server.signal_host(&server.container(&id).await, Signal::SIGKILL);
    asked.await.unwrap().unwrap();
    assert_eq!(finished(&server, 3).await["data"]["error"], "lost");
    let events = server.events(&id).await;
    let of = |kind: &str| {
        let ids = events.iter().filter(|event| event["type"] == kind).map(|event| event["data"]["exec_id"].to_string());
        ids.collect::<Vec<_>>()
    };
    assert_eq!(of("exec.started"), of("exec.finished"));
}
