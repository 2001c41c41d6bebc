//! Terminals, and commands whose streams are attached: over WebSockets, and from the command line.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use raworc_api::client::{Client, ClientError, Received, Receiver, Sender};
use raworc_api::terminal::{ClientFrame, Notice, OpenTerminal};
use raworc_api::workspace::{Exec, ExecCommand};
use raworc_core::limits::DETACHED_MAX;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{PATIENCE, RAWORC, TestServer, eventually};
use crate::server_or_skip;

/// A client of a stream.
struct Attached {
    sender: Sender,
    receiver: Receiver,
    id: String,
}

/// How it ended.
#[derive(Debug)]
enum End {
    Notice(Box<Notice>),
    Closed(Option<u16>),
}

impl Attached {
    async fn types(&mut self, text: &str) {
        assert!(self.sender.bytes(text.as_bytes().to_vec()).await);
    }

    async fn received(&mut self) -> Result<Vec<u8>, End> {
        loop {
            match tokio::time::timeout(PATIENCE, self.receiver.next()).await.expect("something should come") {
                Some(Received::Bytes(bytes)) => return Ok(bytes.to_vec()),
                Some(Received::Notice(notice)) if notice.exit_code.is_some() || notice.problem.is_some() => {
                    return Err(End::Notice(notice));
                }
                Some(Received::Notice(notice)) => self.id = notice.terminal.unwrap(),
                Some(Received::Closed(frame)) => return Err(End::Closed(frame.map(|(code, _)| code))),
                None => {}
            }
        }
    }

    /// Reads until this was shown.
    async fn until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            match self.received().await {
                Ok(bytes) => seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(end) => panic!("{end:?} before {text:?}, after {seen:?}"),
            }
        }
        seen
    }

    /// What comes until it ends.
    async fn rest(mut self) -> (Vec<u8>, End) {
        let mut seen = Vec::new();
        loop {
            match self.received().await {
                Ok(bytes) => seen.extend(bytes),
                Err(end) => return (seen, end),
            }
        }
    }

    async fn status(self) -> i32 {
        match self.rest().await {
            (_, End::Notice(notice)) => notice.exit_code.unwrap_or_else(|| panic!("{notice:?}")),
            (seen, end) => panic!("{end:?} after {:?}", String::from_utf8_lossy(&seen)),
        }
    }
}

fn client(server: &TestServer) -> Client {
    Client::new(&server.url, &server.token).unwrap()
}

fn sized(columns: u16, rows: u16) -> OpenTerminal {
    OpenTerminal { columns: Some(columns), rows: Some(rows), ..OpenTerminal::default() }
}

async fn try_open(server: &TestServer, session: &str, query: &OpenTerminal) -> Result<Attached, ClientError> {
    let (sender, receiver) = client(server).open_terminal(session, query).await?;
    Ok(Attached { sender, receiver, id: String::new() })
}

async fn open(server: &TestServer, session: &str, query: &OpenTerminal) -> Attached {
    try_open(server, session, query).await.unwrap()
}

/// Opens a terminal with this program.
async fn program(server: &TestServer, session: &str, command: &str) -> Attached {
    open(server, session, &OpenTerminal { command: Some(command.to_owned()), ..sized(80, 24) }).await
}

async fn refusal(server: &TestServer, session: &str, query: &OpenTerminal) -> (u16, String) {
    match try_open(server, session, query).await {
        Err(ClientError::Problem(problem)) => (problem.status, problem.code.as_str().to_owned()),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was opened"),
    }
}

async fn of_kind(server: &TestServer, id: &str, kind: &str) -> Vec<Value> {
    server.events(id).await.into_iter().filter(|event| event["type"] == kind).collect()
}

async fn until_closed(server: &TestServer, id: &str, count: usize) -> Vec<Value> {
    eventually("its end is in the log", async || of_kind(server, id, "terminal.closed").await.len() >= count).await;
    of_kind(server, id, "terminal.closed").await
}

/// Whether programs are installed; says so where not.
fn has(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().filter(|name| !Path::new("/usr/bin").join(name).exists()).collect();
    if !missing.is_empty() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: {missing:?} are not installed");
    }
    missing.is_empty()
}

#[tokio::test]
async fn a_terminal_is_opened_used_and_closed() {
    let server = server_or_skip!();
    let id = server.session(json!({ "env": { "OWN": "variable" } })).await;
    let mut terminal = open(&server, &id, &OpenTerminal { term: Some("vt100".into()), ..sized(101, 31) }).await;
    terminal.types("stty size; echo $TERM $OWN $PWD; id -u; stat -c '%u %g' $(tty); echo e''nd\r").await;
    let seen = terminal.until("end\r\n").await;
    for part in ["31 101\r\n", "vt100 variable /workspace\r\n", "\n1000\r\n", "\n1000 5\r\n"] {
        assert!(seen.contains(part), "{part:?} in {seen:?}");
    }
    assert!(terminal.sender.frame(&ClientFrame::Resize { columns: 60, rows: 20 }).await);
    terminal.types("until [ \"$(stty size)\" = '20 60' ]; do :; done; echo resi''zed\r").await;
    terminal.until("resized").await;
    let listed = server.get(&format!("/sessions/{id}/terminals")).await.1;
    assert_eq!((&listed["items"][0]["id"], &listed["items"][0]["opened_by"]), (&json!(terminal.id), &json!("admin")));
    let terminal_id = terminal.id.clone();
    terminal.types("exit 42\r").await;
    assert_eq!(terminal.status().await, 42);
    let closed = until_closed(&server, &id, 1).await;
    assert_eq!((&closed[0]["data"]["exit_code"], &closed[0]["data"]["terminal_id"]), (&json!(42), &json!(terminal_id)));
    let opened = of_kind(&server, &id, "terminal.opened").await;
    assert_eq!((&opened[0]["data"]["terminal_id"], &opened[0]["data"]["columns"]), (&json!(terminal_id), &json!(101)));
    assert_eq!(server.get(&format!("/sessions/{id}/terminals")).await.1["items"], json!([]));
    // Closed from outside.
    let mut terminal = program(&server, &id, r#"["sleep", "1000"]"#).await;
    assert!(matches!(tokio::time::timeout(PATIENCE, terminal.receiver.next()).await, Ok(Some(Received::Notice(_)))));
    let listed = server.get(&format!("/sessions/{id}/terminals")).await.1;
    let path = format!("/sessions/{id}/terminals/{}", listed["items"][0]["id"].as_str().unwrap());
    assert_eq!(server.delete(&path).await.0, 204);
    assert_eq!(terminal.status().await, 130);
    assert_eq!(until_closed(&server, &id, 2).await[1]["data"]["error"], "closed");
    assert_eq!(server.delete(&path).await.0, 404);
}

#[tokio::test]
async fn vim_top_and_tmux_work() {
    let server = server_or_skip!();
    let vim = ["vim", "vim.tiny", "vi"].into_iter().find(|name| Path::new("/usr/bin").join(name).exists());
    let id = server.session(json!({})).await;
    if let Some(vim) = vim.filter(|vim| has(&[vim])) {
        let mut terminal = program(&server, &id, &json!([vim, "-u", "NONE", "note.txt"]).to_string()).await;
        terminal.until("note.txt").await;
        terminal.types("ihello from vim\x1b:wq\r").await;
        assert_eq!(terminal.status().await, 0);
        let file = server.request(Method::GET, &format!("/sessions/{id}/files/note.txt")).send().await.unwrap();
        assert_eq!(file.text().await.unwrap(), "hello from vim\n");
    } else {
        has(&["vim"]);
    }
    if has(&["top"]) {
        let mut terminal = program(&server, &id, r#"["top"]"#).await;
        terminal.until("PID").await;
        terminal.types("q").await;
        assert_eq!(terminal.status().await, 0);
    }
    if has(&["tput"]) {
        let terminal = program(&server, &id, "tput cols; tput lines").await;
        let (seen, _) = terminal.rest().await;
        assert_eq!(String::from_utf8_lossy(&seen), "80\r\n24\r\n");
    }
    if has(&["tmux"]) {
        let mut terminal = program(&server, &id, r#"["tmux", "-u", "new-session", "-x", "80", "-y", "24"]"#).await;
        terminal.types("echo in-${TMUX_PANE#%}-tmux\r").await;
        terminal.until("in-0-tmux").await;
        // The connection is lost; tmux draws everything again.
        let lost = open(&server, &id, &OpenTerminal { terminal: Some(terminal.id.clone()), ..sized(100, 30) }).await;
        drop(std::mem::replace(&mut terminal, lost));
        terminal.until("in-0-tmux").await;
        // Its server goes on in the background where the terminal is hung up, as over ssh.
        let path = format!("/sessions/{id}/terminals/{}", terminal.id);
        assert_eq!(server.delete(&path).await.0, 204);
        assert_eq!(terminal.status().await, 130);
        let mut terminal = program(&server, &id, r#"["tmux", "-u", "attach"]"#).await;
        terminal.until("in-0-tmux").await;
        terminal.types("exit\r").await;
        assert_eq!(terminal.status().await, 0);
    }
}

#[tokio::test]
async fn a_terminal_survives_a_lost_connection_and_a_restart_of_the_server() {
    let mut server = server_or_skip!();
    let id = server.session(json!({})).await;
    let script = "printf 'begun\\033[6n\\033]11;?\\007-asked\\n'; until [ -e go ]; do sleep 0.01; done; echo missed; touch gone; \
                  while read line; do echo got-$line; done";
    let mut terminal = program(&server, &id, script).await;
    assert!(terminal.until("-asked").await.contains("begun\x1b[6n\x1b]11;?\x07-asked"));
    let again = OpenTerminal { terminal: Some(terminal.id.clone()), ..sized(80, 24) };
    drop(terminal);
    server.output(&id, "touch go; until [ -e gone ]; do sleep 0.01; done").await;
    let mut terminal = open(&server, &id, &again).await;
    // What was asked before is not asked again.
    assert!(terminal.until("missed").await.contains("begun-asked"));
    let mut watcher = open(&server, &id, &OpenTerminal { watch: Some(true), ..again.clone() }).await;
    watcher.until("begun").await;
    watcher.types("unheard\r").await;
    terminal.types("one\r").await;
    terminal.until("got-one").await;
    assert!(!watcher.until("got-one").await.contains("unheard"));
    server.kill();
    assert!(matches!(terminal.rest().await.1, End::Closed(_)));
    server.start_again();
    let mut terminal = open(&server, &id, &again).await;
    let seen = terminal.until("got-one").await;
    assert!(seen.contains("begun"), "{seen:?}");
    terminal.types("two\r").await;
    terminal.until("got-two").await;
    // Its container dies.
    server.signal_host(&server.container(&id).await, Signal::SIGKILL);
    assert!(matches!(terminal.rest().await.1, End::Closed(Some(1012))));
    let closed = until_closed(&server, &id, 1).await;
    assert_eq!((closed.len(), &closed[0]["data"]["error"]), (1, &json!("lost")));
    server.until(&id, |session| session["state"] == "READY").await;
    assert_eq!(refusal(&server, &id, &again).await, (404, "not_found".into()));
}

#[tokio::test]
async fn a_terminal_wakes_its_session_and_keeps_it_awake() {
    let server = server_or_skip!();
    let id = server.session(json!({ "waiting_timeout_seconds": 1 })).await;
    server.until(&id, |session| session["state"] == "IDLE").await;
    let mut terminal = program(&server, &id, "echo awake; sleep 3; echo still; read line").await;
    terminal.until("still").await;
    assert_eq!(server.get(&format!("/sessions/{id}")).await.1["state"], "READY");
    terminal.types("\r").await;
    assert_eq!(terminal.status().await, 0);
    server.until(&id, |session| session["state"] == "IDLE").await;
    // Ended with its session.
    let mut terminal = program(&server, &id, "echo awake; sleep 1000").await;
    terminal.until("awake").await;
    assert_eq!(server.post(&format!("/sessions/{id}/pause"), json!({})).await.0, 200);
    assert!(!matches!(terminal.rest().await.1, End::Notice(notice) if notice.exit_code == Some(0)));
    until_closed(&server, &id, 2).await;
    assert_eq!(refusal(&server, &id, &sized(80, 24)).await, (409, "session_paused".into()));
    assert_eq!(server.post(&format!("/sessions/{id}/terminate"), json!({})).await.0, 200);
    assert_eq!(refusal(&server, &id, &sized(80, 24)).await, (409, "session_terminated".into()));
}

#[tokio::test]
async fn who_may_not_is_refused_and_who_may_no_longer_is_cut_off() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    for query in [
        OpenTerminal { term: Some("$(reboot)".into()), ..sized(80, 24) },
        OpenTerminal { term: Some(String::new()), ..sized(80, 24) },
        sized(0, 24),
        sized(80, 60_000),
        OpenTerminal { directory: Some("x".repeat(5000)), command: Some("true".into()), ..sized(80, 24) },
        OpenTerminal { command: Some("[\"\"]".into()), ..sized(80, 24) },
        OpenTerminal { watch: Some(true), ..sized(80, 24) },
    ] {
        assert_eq!(refusal(&server, &id, &query).await, (422, "invalid_input".into()), "{query:?}");
    }
    let nothing = OpenTerminal { terminal: Some("no-such-terminal".into()), ..sized(80, 24) };
    assert_eq!(refusal(&server, &id, &nothing).await.0, 404);
    let path = format!("/sessions/{id}/terminal");
    let (status, problem) = server.get(&path).await;
    assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("invalid_request")), "no WebSocket: {problem}");
    // A member sees nothing of it, and their own ends with their token.
    let (_, account) = server.post("/accounts", json!({ "name": "alice", "role": "member" })).await;
    let token = async |name: &str| {
        let (_, token) = server.post("/accounts/alice/tokens", json!({ "name": name })).await;
        (token["id"].as_str().unwrap().to_owned(), token["token"].as_str().unwrap().to_owned())
    };
    assert_eq!(account["name"], "alice", "{account}");
    let (token_id, secret) = token("one").await;
    let alice = Client::new(&server.url, &secret).unwrap();
    let Err(ClientError::Problem(problem)) = alice.open_terminal(&id, &sized(80, 24)).await else { panic!("opened") };
    assert_eq!(problem.status, 404);
    let own = server.request_as(&secret, Method::POST, "/sessions").json(&json!({})).send().await.unwrap();
    let own: Value = own.json().await.unwrap();
    let own = own["id"].as_str().unwrap();
    let (sender, receiver) = alice.open_terminal(own, &sized(80, 24)).await.unwrap();
    let mut terminal = Attached { sender, receiver, id: String::new() };
    terminal.types("echo rea''dy\r").await;
    terminal.until("ready").await;
    // Nobody is attached to another one, and a third was opened with another token.
    drop(alice.open_terminal(own, &sized(80, 24)).await.unwrap());
    let (_, second) = token("two").await;
    let _stays = Client::new(&server.url, &second).unwrap().open_terminal(own, &sized(80, 24)).await.unwrap();
    let revoked = server.delete(&format!("/accounts/alice/tokens/{token_id}")).await;
    assert!(revoked.0.is_success(), "{revoked:?}");
    let (_, end) = terminal.rest().await;
    let End::Notice(notice) = end else { panic!("{end:?}") };
    assert_eq!(notice.problem.map(|problem| problem.status), Some(401));
    until_closed(&server, own, 2).await;
    let open = server.get(&format!("/sessions/{own}/terminals")).await.1;
    assert_eq!(open["items"].as_array().unwrap().len(), 1, "{open:#}");
    // A browser names its token as a subprotocol.
    let encoded = base64url(&server.token);
    let upgrade = |protocols: String| {
        let request = server.request_as("wrong", Method::GET, &path);
        let request = reqwest::Client::new().get(request.build().unwrap().url().clone());
        request
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-protocol", protocols)
            .send()
    };
    let answer = upgrade(format!("raworc.v0, base64url.bearer.authorization.raworc.{encoded}")).await.unwrap();
    assert_eq!(answer.status(), 101);
    assert_eq!(answer.headers()["sec-websocket-protocol"], "raworc.v0", "the token is not sent back");
    drop(answer);
    let answer = upgrade("raworc.v0, base64url.bearer.authorization.raworc.d3Jvbmc".into()).await.unwrap();
    assert_eq!(answer.status(), 401);
}

fn base64url(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bits: Vec<bool> = text.bytes().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1)).collect();
    let digit = |six: &[bool]| (0..6).fold(0, |sum, at| sum * 2 + usize::from(six.get(at).is_some_and(|bit| *bit)));
    bits.chunks(6).map(|six| char::from(DIGITS[digit(six)])).collect()
}

#[tokio::test]
async fn terminals_are_bounded() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let mut terminals = Vec::new();
    for _ in 0..16 {
        terminals.push(program(&server, &id, r#"["cat"]"#).await);
    }
    assert_eq!(refusal(&server, &id, &sized(80, 24)).await, (429, "busy".into()));
    let mut last = terminals.pop().unwrap();
    last.types("\x04").await;
    assert_eq!(last.status().await, 0);
    until_closed(&server, &id, 1).await;
    // An endless frame is no frame.
    let mut flooded = terminals.pop().unwrap();
    flooded.sender.bytes(vec![b'x'; 1 << 20]).await;
    assert!(matches!(flooded.rest().await.1, End::Closed(_)));
    let mut fresh = program(&server, &id, "echo served").await;
    fresh.until("served").await;
}

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

/// The command line on a terminal of its own.
struct OnTerminal {
    script: Child,
}

impl OnTerminal {
    fn start(server: &TestServer, arguments: &str) -> Self {
        // What the terminal is like before and after says whether it was restored.
        let inside =
            format!("stty rows 31 cols 101; stty -g > $BEFORE; {RAWORC} {arguments}; s=$?; stty -g > $AFTER; exit $s");
        let script = Command::new("script")
            .args(["-qfec", &inside, "/dev/null"])
            .env("RAWORC_URL", &server.url)
            .env("RAWORC_TOKEN", &server.token)
            .env("BEFORE", server.data_dir().join("before"))
            .env("AFTER", server.data_dir().join("after"))
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self { script }
    }

    fn types(&mut self, text: &str) {
        self.script.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn until(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let shown = String::from_utf8_lossy(&seen).into_owned();
            if shown.contains(text) {
                return shown;
            }
            match self.script.stdout.as_mut().unwrap().read(&mut buffer) {
                Ok(count) if count > 0 => seen.extend_from_slice(&buffer[..count]),
                other => panic!("{other:?} before {text:?}, after {shown:?}"),
            }
        }
    }

    fn status(mut self, server: &TestServer) -> Option<i32> {
        let mut rest = Vec::new();
        let _ = self.script.stdout.as_mut().unwrap().read_to_end(&mut rest);
        let status = self.script.wait().unwrap().code();
        let modes = |name: &str| std::fs::read_to_string(server.data_dir().join(name)).unwrap();
        assert_eq!(modes("before"), modes("after"), "the terminal is as it was");
        status
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_opens_detaches_attaches_and_restores_the_terminal() {
    let mut server = server_or_skip!();
    if !has(&["script"]) {
        return;
    }
    let id = server.session(json!({})).await;
    let mut shell = OnTerminal::start(&server, &format!("session shell {id}"));
    shell.types("stty size; echo $TERM-s''hown\r");
    assert!(shell.until("xterm-shown").contains("31 101"));
    // The server is gone for a moment.
    server.kill();
    shell.until("the connection is lost");
    let (url, port) = (server.url.clone(), server.url.rsplit(':').next().unwrap().to_owned());
    server.start_again_at(&port);
    assert_eq!(server.url, url);
    shell.until("xterm-shown");
    shell.types("echo ag''ain\r");
    shell.until("again\r\n");
    shell.types("\r~.");
    let seen = shell.until("--attach ");
    assert!(seen.contains("detached"), "{seen:?}");
    assert_eq!(shell.status(&server), Some(0));
    let terminal = server.get(&format!("/sessions/{id}/terminals")).await.1["items"][0]["id"].clone();
    let attach = format!("session shell {id} --attach {}", terminal.as_str().unwrap());
    let mut shell = OnTerminal::start(&server, &attach);
    shell.until("again");
    shell.types("exit 7\r");
    assert_eq!(shell.status(&server), Some(7));
    let mut command =
        OnTerminal::start(&server, &format!("session exec {id} -t -- sh -c 'tty -s && echo on-tty; exit 8'"));
    command.until("on-tty");
    assert_eq!(command.status(&server), Some(8));
    let script = format!("session exec {id} -t --env A=b --script 'echo $A-$(stty size)-shown'");
    let mut command = OnTerminal::start(&server, &script);
    command.until("b-31 101-shown");
    assert_eq!(command.status(&server), Some(0));
    // It is ended from outside.
    let mut shell = OnTerminal::start(&server, &format!("session shell {id}"));
    shell.types("echo rea''dy\r");
    shell.until("ready");
    assert_eq!(server.post(&format!("/sessions/{id}/pause"), json!({})).await.0, 200);
    let status = tokio::time::timeout(Duration::from_secs(60), async { shell.status(&server) }).await.unwrap();
    assert_ne!(status, Some(0));
}

#[tokio::test]
async fn a_terminal_that_nobody_comes_back_to_ends_after_its_minute_and_lets_the_session_rest() {
    let server = server_or_skip!();
    let id = server.session(json!({ "waiting_timeout_seconds": 1 })).await;
    let mut terminal = program(&server, &id, "echo begun; sleep 1000").await;
    terminal.until("begun").await;
    drop(terminal);
    let half = tokio::time::timeout(DETACHED_MAX / 2, async {
        eventually("it has ended", async || !of_kind(&server, &id, "terminal.closed").await.is_empty()).await;
    });
    assert!(half.await.is_err(), "it goes on for a minute");
    assert_eq!(server.get(&format!("/sessions/{id}")).await.1["state"], "READY");
    eventually("it ends after a minute", async || !of_kind(&server, &id, "terminal.closed").await.is_empty()).await;
    server.until(&id, |session| session["state"] == "IDLE").await;
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

/// A command's WebSocket over which nothing has been sent.
async fn raw_exec(server: &TestServer, id: &str) -> (Sender, Receiver) {
    client(server).connect_exec(id).await.unwrap()
}
