//! Terminals, over WebSockets and from the command line.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use raworc_api::client::{Client, ClientError, Received, Receiver, Sender};
use raworc_api::terminal::{ClientFrame, Notice, OpenTerminal};
use raworc_core::limits::DETACHED_MAX;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{PATIENCE, RAWORC, TestServer, eventually};
use crate::server_or_skip;

/// A client of a terminal or command.
pub struct Attached {
    pub sender: Sender,
    pub receiver: Receiver,
    pub id: String,
}

/// How the connection ended.
#[derive(Debug)]
pub enum End {
    Notice(Box<Notice>),
    Closed(Option<u16>),
}

impl Attached {
    pub async fn types(&mut self, text: &str) {
        assert!(self.sender.bytes(text.as_bytes().to_vec()).await);
    }

    pub async fn received(&mut self) -> Result<Vec<u8>, End> {
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

    /// Reads until the output contains this.
    pub async fn until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            match self.received().await {
                Ok(bytes) => seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(end) => panic!("{end:?} before {text:?}, after {seen:?}"),
            }
        }
        seen
    }

    /// Reads until the end.
    pub async fn rest(mut self) -> (Vec<u8>, End) {
        let mut seen = Vec::new();
        loop {
            match self.received().await {
                Ok(bytes) => seen.extend(bytes),
                Err(end) => return (seen, end),
            }
        }
    }

    pub async fn status(self) -> i32 {
        match self.rest().await {
            (_, End::Notice(notice)) => notice.exit_code.unwrap_or_else(|| panic!("{notice:?}")),
            (seen, end) => panic!("{end:?} after {:?}", String::from_utf8_lossy(&seen)),
        }
    }
}

pub fn client(server: &TestServer) -> Client {
    Client::new(&server.url, &server.token).unwrap()
}

pub fn sized(columns: u16, rows: u16) -> OpenTerminal {
    OpenTerminal { columns: Some(columns), rows: Some(rows), ..OpenTerminal::default() }
}

pub async fn try_open(server: &TestServer, session: &str, query: &OpenTerminal) -> Result<Attached, ClientError> {
    let (sender, receiver) = client(server).open_terminal(session, query).await?;
    Ok(Attached { sender, receiver, id: String::new() })
}

pub async fn open(server: &TestServer, session: &str, query: &OpenTerminal) -> Attached {
    try_open(server, session, query).await.unwrap()
}

/// Opens a terminal with this program.
pub async fn program(server: &TestServer, session: &str, command: &str) -> Attached {
    open(server, session, &OpenTerminal { command: Some(command.to_owned()), ..sized(80, 24) }).await
}

pub async fn refusal(server: &TestServer, session: &str, query: &OpenTerminal) -> (u16, String) {
    match try_open(server, session, query).await {
        Err(ClientError::Problem(problem)) => (problem.status, problem.code.as_str().to_owned()),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was opened"),
    }
}

pub async fn of_kind(server: &TestServer, id: &str, kind: &str) -> Vec<Value> {
    server.events(id).await.into_iter().filter(|event| event["type"] == kind).collect()
}

pub async fn until_closed(server: &TestServer, id: &str, count: usize) -> Vec<Value> {
    eventually("its end is in the log", async || of_kind(server, id, "terminal.closed").await.len() >= count).await;
    of_kind(server, id, "terminal.closed").await
}

/// Whether programs are installed; prints SKIPPED otherwise.
pub fn has(programs: &[&str]) -> bool {
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

/// The command line in a terminal of its own.
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
