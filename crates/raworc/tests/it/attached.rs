//! Commands with attached streams, over WebSockets and from the command line.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use raworc_api::client::{Receiver, Sender};
use raworc_api::terminal::{ClientFrame, OpenTerminal};
use raworc_api::workspace::{Exec, ExecCommand};
use serde_json::json;

use crate::harness::{PATIENCE, RAWORC, TestServer, eventually};
use crate::server_or_skip;
use crate::terminal::{Attached, End, client, of_kind, open, program};

#[tokio::test]
async fn a_command_gets_and_gives_its_streams_as_they_come() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let body = |script: &str| Exec { command: ExecCommand::Script(script.into()), ..Exec::default() };
    let start = async |body: Exec| {
        let (sender, receiver) = client(&server).open_exec(&id, body).await.unwrap();
        Attached { sender, receiver, id: String::new() }
    };
    let mut command = start(body("read a; echo out-$a; read b; echo err-$b >&2; read c || echo end; exit 5")).await;
    command.types("\0one\n").await;
    assert_eq!(command.until("one\n").await, "\x01out-one\n");
    command.types("\0two\n").await;
    assert_eq!(command.until("two\n").await, "\x02err-two\n");
    assert!(command.sender.frame(&ClientFrame::EndOfInput {}).await);
    assert_eq!(command.until("end\n").await, "\x01end\n");
    assert_eq!(command.status().await, 5);
    eventually("its end is in the log", async || of_kind(&server, &id, "exec.finished").await.len() == 1).await;
    assert_eq!(of_kind(&server, &id, "exec.finished").await[0]["data"]["exit_code"], 5);
    for (body, status) in [
        (body("kill -9 $$"), 137),
        (Exec { timeout_seconds: Some(1), ..body("sleep 1000") }, 124),
        (Exec { command: ExecCommand::Words(vec!["no-such-program".into()]), ..Exec::default() }, 127),
    ] {
        assert_eq!(start(body).await.status().await, status);
    }
    for wrong in
        [body(""), Exec { stdin: "x".into(), command: ExecCommand::Words(vec!["cat".into()]), ..Exec::default() }]
    {
        let (_, end) = start(wrong).await.rest().await;
        let End::Notice(notice) = end else { panic!("{end:?}") };
        assert_eq!(notice.problem.map(|problem| problem.status), Some(422));
    }
    // One whose client does not read holds up nobody.
    let unread = start(body("yes")).await;
    for _ in 0..3 {
        assert_eq!(server.output(&id, "echo message").await, "message\n");
        assert_eq!(start(body("exit 3")).await.status().await, 3);
    }
    drop(unread);
    eventually("it ends with its client", async || of_kind(&server, &id, "exec.finished").await.len() == 8).await;
    assert!(server.get(&format!("/sessions/{id}")).await.1["state"] == "READY", "the host was never lost");
    assert_eq!(server.get(&format!("/sessions/{id}")).await.1["generation"], 1);
}

#[tokio::test]
async fn what_is_piped_through_the_command_line_arrives() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let shell = |script: &str| {
        let output = server.shell(&script.replace("EXEC", &format!("raworc session exec {id}")));
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let big =
        "head -c 52428800 /dev/urandom > big; sha256sum < big; cat big | EXEC -- sh -c 'sleep 1; sha256sum'; rm big";
    let (status, sums) = shell(&format!("cd $(mktemp -d); {big}; rmdir $PWD"));
    let sums: Vec<&str> = sums.lines().collect();
    assert_eq!((status, sums.len(), sums[0]), (Some(0), 2, sums[1]));
    let (status, sums) =
        shell("EXEC -- sh -c 'head -c 52428800 /dev/zero | tee /dev/stderr' 2>&1 >/dev/null | sha256sum");
    let (_, expected) = shell("head -c 52428800 /dev/zero | sha256sum");
    assert_eq!((status, sums), (Some(0), expected));
    let round = "printf 'a\\377\\000b' | EXEC -- cat | od -An -c";
    assert_eq!(shell(round).1.split_whitespace().collect::<Vec<_>>(), ["a", "377", "\\0", "b"]);
    for (script, status, expected) in [
        ("(set +o pipefail; yes | EXEC -- head -1)", Some(0), "y\n"),
        ("(set +o pipefail; EXEC -- yes | head -1)", Some(0), "y\n"),
        ("echo script | EXEC --script 'read x; echo $x'", Some(0), "script\n"),
        ("printf 'a\\nb\\n' | while read -r x; do EXEC --no-stdin -- echo $x; done", Some(0), "a\nb\n"),
        ("EXEC -- sh -c 'echo out; echo err >&2; exit 9' 2>/dev/null", Some(9), "out\n"),
        ("EXEC --timeout 1 -- sleep 100 2>/dev/null", Some(124), ""),
        ("EXEC -- no-such-program 2>/dev/null", Some(127), ""),
        ("mkdir -p d/e; echo x > d/e/f; tar c d | EXEC -- tar x; EXEC -- cat d/e/f; rm -r d", Some(0), "x\n"),
        ("EXEC -- tar c d | tar t", Some(0), "d/\nd/e/\nd/e/f\n"),
        ("echo 'echo from-shell; exit 6' | raworc session shell ID", Some(6), "from-shell\n"),
    ] {
        let script = format!("cd $(mktemp -d); {}", script.replace("ID", &id));
        assert_eq!(shell(&script), (status, expected.to_owned()), "{script}");
    }
    let (code, refused) = shell("EXEC -t -- true 2>&1 || exit $?");
    assert!(code == Some(2) && refused.contains("terminal"), "{refused}");
}

#[tokio::test]
async fn all_processes_of_a_command_end_with_its_client() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    // Out of sight: a session of its own, whose parent has ended, deaf to what asks it to end.
    let script = "trap '' HUP TERM INT; setsid sh -c 'setsid sh -c \"sleep 4321; :\" & :'; echo begun; cat";
    let mut client = Command::new(RAWORC)
        .args(["session", "exec", &id, "--script", script])
        .env("RAWORC_URL", &server.url)
        .env("RAWORC_TOKEN", &server.token)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut begun = [0; 6];
    client.stdout.as_mut().unwrap().read_exact(&mut begun).unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    eventually("its end is in the log", async || of_kind(&server, &id, "exec.finished").await.len() == 1).await;
    assert_eq!(of_kind(&server, &id, "exec.finished").await[0]["data"]["error"], "closed");
    assert_eq!(server.output(&id, "pgrep -x sleep | wc -l").await, "0\n");
}

/// The server's memory, in bytes.
fn memory(server: &TestServer) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[tokio::test]
async fn who_does_not_read_holds_up_nobody_and_takes_little() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let quiet = program(&server, &id, "read line; echo got-$line").await;
    let mut unread = vec![quiet];
    let before = memory(&server);
    for number in 0..12 {
        let command = if number % 2 == 0 { r#"["yes"]"# } else { r#"["cat", "/dev/urandom"]"# };
        let mut terminal = program(&server, &id, command).await;
        terminal.received().await.unwrap();
        let watch = OpenTerminal { terminal: Some(terminal.id.clone()), watch: Some(true), ..OpenTerminal::default() };
        unread.extend([open(&server, &id, &watch).await, open(&server, &id, &watch).await, terminal]);
    }
    for _ in 0..12 {
        let yes = Exec { command: ExecCommand::Words(vec!["yes".into()]), ..Exec::default() };
        let (sender, receiver) = client(&server).open_exec(&id, yes).await.unwrap();
        let mut command = Attached { sender, receiver, id: String::new() };
        command.received().await.unwrap();
        unread.push(command);
    }
    // One more, which is read, gets what it asks for; so do others.
    let mut endless = program(&server, &id, r#"["cat", "/dev/urandom"]"#).await;
    let mut seen = 0;
    while seen < 8 << 20 {
        seen += endless.received().await.unwrap().len();
    }
    assert_eq!(server.output(&id, "echo message").await, "message\n");
    let mut quiet = unread.swap_remove(0);
    quiet.types("x\r").await;
    quiet.until("got-x").await;
    let more = memory(&server).saturating_sub(before);
    assert!(more < 32 << 20, "{} KiB for {} clients", more >> 10, unread.len());
    let session = server.get(&format!("/sessions/{id}")).await.1;
    assert_eq!((&session["state"], &session["generation"]), (&json!("READY"), &json!(1)), "the host was never lost");
}

#[tokio::test]
async fn frames_that_are_none_end_their_connection_only() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let mut kept = program(&server, &id, "while read line; do echo got-$line; done").await;
    let refused = async |attached: Attached| match attached.rest().await.1 {
        End::Notice(notice) => notice.problem.map(|problem| problem.code.as_str().to_owned()),
        End::Closed(_) => None,
    };
    for frame in [
        ClientFrame::Resize { columns: 0, rows: 1 },
        ClientFrame::EndOfInput {},
        ClientFrame::Start(Exec { command: ExecCommand::Script("true".into()), ..Exec::default() }),
    ] {
        let mut terminal = program(&server, &id, "read line").await;
        assert!(terminal.sender.frame(&frame).await);
        assert_eq!(refused(terminal).await.as_deref(), Some("invalid_body"), "{frame:?}");
    }
    let start = async |first: &ClientFrame, then: &[u8]| {
        let (mut sender, receiver) = raw_exec(&server, &id).await;
        sender.frame(first).await;
        if !then.is_empty() {
            sender.bytes(then.to_vec()).await;
        }
        Attached { sender, receiver, id: String::new() }
    };
    let cat = ClientFrame::Start(Exec { command: ExecCommand::Words(vec!["cat".into()]), ..Exec::default() });
    assert_eq!(refused(start(&ClientFrame::EndOfInput {}, b"").await).await.as_deref(), Some("invalid_body"));
    assert_eq!(refused(start(&cat, b"\x01to standard output").await).await.as_deref(), Some("invalid_body"));
    let long = ClientFrame::Start(Exec { command: ExecCommand::Script("x".repeat(1 << 20)), ..Exec::default() });
    // What is too long is not read, so whether its client hears why depends on what is on its way.
    refused(start(&long, b"").await).await;
    refused(start(&cat, &vec![0; 1 << 20]).await).await;
    // Bytes that are no frames at all.
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 4096],
        &[0x81, 0x05, b'h', b'e', b'l', b'l', b'o'],
        &[0x82, 0x7f, 0xff],
    ] {
        let mut stream = std::net::TcpStream::connect(server.url.trim_start_matches("http://")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!(
            "GET /api/v0/sessions/{id}/terminal?command=cat HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
             connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            server.token
        );
        stream.write_all(&[head.as_bytes(), garbage].concat()).unwrap();
        if garbage.len() > 3 {
            let _ = stream.read_to_end(&mut Vec::new());
        }
    }
    kept.types("on\r").await;
    kept.until("got-on").await;
}

/// A command's WebSocket before the first frame.
async fn raw_exec(server: &TestServer, id: &str) -> (Sender, Receiver) {
    client(server).connect_exec(id).await.unwrap()
}
