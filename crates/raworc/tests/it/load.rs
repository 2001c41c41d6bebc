//! Many and hostile clients: slow requests, unread answers, large amounts.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::accounts::member;
use crate::harness::{PATIENCE, TestServer, can_run_containers, eventually};
use crate::raw::{exchange, request};
use crate::server_or_skip;

fn connect(server: &TestServer) -> TcpStream {
    let stream = TcpStream::connect(server.url.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A connection with a sent request.
fn sent(server: &TestServer, text: &str) -> TcpStream {
    let mut stream = connect(server);
    // It may be closed already, in favour of a newer one.
    let _ = stream.write_all(text.as_bytes());
    stream
}

/// A GET whose answer is not read.
fn unread(server: &TestServer, token: &str, path: &str, accept: &str) -> TcpStream {
    let head =
        format!("GET /api/v0{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\naccept: {accept}\r\n\r\n");
    sent(server, &head)
}

/// Number of open sockets of the server.
fn sockets(server: &TestServer) -> usize {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().flatten();
    let links = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
}

/// Reads until the peer closes the connection.
fn is_closed(mut stream: TcpStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
    }
}

#[tokio::test]
async fn connections_without_a_token_stop_nobody() {
    if !can_run_containers() {
        return;
    }
    let server = TestServer::start(&["--connections", "64", "--client-timeout-seconds", "3600"]);
    let token = member(&server, "alice").await;
    let kinds: [(&str, String); 6] = [
        ("nothing at all", String::new()),
        ("half a line", "GET /api/v0/he".into()),
        ("half a head", "GET /api/v0/health HTTP/1.1\r\nhost: x\r\n".into()),
        ("half a body", "POST /api/v0/sessions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n{".into()),
        ("a connection kept alive", "GET /api/v0/version HTTP/1.1\r\nhost: x\r\n\r\n".into()),
        ("answers not read", "GET /api/v0/openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(200)),
    ];
    for (what, text) in kinds {
        let attackers: Vec<TcpStream> = (0..320).map(|_| sent(&server, &text)).collect();
        let authorization = format!("authorization: Bearer {token}");
        let answer = exchange(&server, &request("GET", b"/me", &[&authorization], None));
        assert_eq!((answer.status, &answer.json()["name"]), (200, &json!("alice")), "{what}");
        let name = json!({ "name": what });
        let created = server.request_as(&token, Method::POST, "/sessions").json(&name).send().await.unwrap();
        assert_eq!(created.status(), 201, "{what}");
        let id = created.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned();
        server.until(&id, |session| session["state"] == "READY").await;
        assert_eq!(server.output(&id, "echo works").await, "works\n", "{what}");
        assert_eq!(server.delete(&format!("/sessions/{id}")).await.0, 200, "{what}");
        drop(attackers);
    }
}

#[tokio::test]
async fn who_keeps_the_server_waiting_is_given_up() {
    if !can_run_containers() {
        return;
    }
    let server = TestServer::start(&["--client-timeout-seconds", "1"]);
    let id = server.session(json!({})).await;
    let big = vec![b'x'; 64 << 20];
    let put = server.request(Method::PUT, &format!("/sessions/{id}/files/big")).body(big);
    assert_eq!(put.send().await.unwrap().status(), 201);
    for text in ["", "GET", "GET /api/v0/health HTTP/1.1\r\nhost: x\r\nx: "] {
        assert!(is_closed(sent(&server, text)), "{text:?}");
    }
    // Byte by byte, which is always something new.
    let mut slow = connect(&server);
    let began = std::time::Instant::now();
    while slow.write_all(b"G").is_ok() {
        assert!(began.elapsed() < PATIENCE, "a head of a byte now and then has no end");
        std::thread::sleep(Duration::from_millis(20));
    }
    let before = sockets(&server);
    let token = server.token.clone();
    let readers: Vec<TcpStream> =
        (0..4).map(|_| unread(&server, &token, &format!("/sessions/{id}/files/big"), "*/*")).collect();
    eventually("the answers have begun", async || sockets(&server) >= before + 4).await;
    eventually("those who read nothing are closed", async || sockets(&server) <= before).await;
    drop(readers);
    // One that waits for what takes its time is not.
    let exec = json!({ "command": "sleep 4; echo done", "timeout_seconds": 30 });
    let (status, result) = server.post(&format!("/sessions/{id}/exec"), exec).await;
    assert_eq!((status, result["stdout"].as_str()), (StatusCode::OK, Some("done\n")), "{result}");
}

/// A cgroup with a memory limit, removed on drop.
struct MemoryLimit {
    path: PathBuf,
}

impl MemoryLimit {
    fn of(pid: i32, bytes: u64) -> Option<Self> {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let (root, is_v2) = if v1.is_dir() { (v1, false) } else { (Path::new("/sys/fs/cgroup"), true) };
        let limit = Self { path: root.join(format!("raworc-test-{pid}")) };
        fs::create_dir(&limit.path).ok()?;
        let maximum = if is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
        fs::write(limit.path.join(maximum), bytes.to_string()).ok()?;
        let _ = fs::write(limit.path.join("memory.swap.max"), "0");
        let _ = fs::write(limit.path.join("memory.memsw.limit_in_bytes"), bytes.to_string());
        fs::write(limit.path.join("cgroup.procs"), pid.to_string()).ok()?;
        Some(limit)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // What is left in it goes back to where it came from.
        let processes = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        let parent = self.path.parent().unwrap().join("cgroup.procs");
        processes.lines().for_each(|pid| drop(fs::write(&parent, pid)));
        let _ = fs::remove_dir(&self.path);
    }
}

/// Number and size of messages in the attack: control characters, which take six bytes each in JSON.
const MESSAGES: usize = 24;
const FILL: &str = "head -c 1048576 /dev/zero | tr '\\0' '\\1'";

#[tokio::test]
async fn the_memory_of_the_server_is_bounded() {
    let server = server_or_skip!();
    let Some(limit) = MemoryLimit::of(server.pid(), 256 << 20) else {
        let _ = writeln!(std::io::stderr(), "SKIPPED: no cgroup with a limit of memory can be made here");
        return;
    };
    let (mallory, alice) = (member(&server, "mallory").await, member(&server, "alice").await);
    let as_mallory = |method, path: &str| server.request_as(&mallory, method, path);
    let created = as_mallory(Method::POST, "/sessions").json(&json!({ "metadata": {} })).send().await.unwrap();
    let id = created.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned();
    let mut reply = String::new();
    for _ in 0..MESSAGES {
        let sent = as_mallory(Method::POST, &format!("/sessions/{id}/messages?wait_seconds=60"));
        let sent = sent.json(&json!({ "content": FILL })).send().await.unwrap();
        assert_eq!(sent.status(), 200, "{}", server.log());
        let message: Value = sent.json().await.unwrap();
        assert_eq!(message["reply"]["content"].as_str().unwrap().len(), 1 << 20, "{}", message["status"]);
        message["reply"]["id"].as_str().unwrap().clone_into(&mut reply);
    }
    let (json, events) = ("application/json", "text/event-stream");
    let attacks = [
        (format!("/sessions/{id}/messages?limit=500"), json, 60),
        (format!("/sessions/{id}/messages/{reply}"), json, 60),
        (format!("/sessions/{id}/events?limit=500"), json, 60),
        (format!("/sessions/{id}/events"), events, 100),
    ];
    let before = sockets(&server);
    let mut attackers = Vec::new();
    for (path, accept, count) in &attacks {
        attackers.extend((0..*count).map(|_| unread(&server, &mallory, path, accept)));
        // Others are answered meanwhile.
        for path in ["/me", "/sessions", "/agents"] {
            let answer = server.request_as(&alice, Method::GET, path).send();
            let answer = tokio::time::timeout(PATIENCE, answer).await.expect("others are answered").unwrap();
            assert_eq!(answer.status(), 200, "{path}");
            answer.bytes().await.unwrap();
        }
    }
    drop(attackers);
    eventually("the connections are gone", async || sockets(&server) <= before + 1).await;
    eventually("there is room again", async || {
        let answer = as_mallory(Method::GET, &format!("/sessions/{id}/messages?limit=500")).send().await.unwrap();
        let status = answer.status();
        assert!(status == 200 || status == 429 || status == 503, "{status}");
        status == 200 && answer.bytes().await.is_ok()
    })
    .await;
    assert!(server.log().lines().all(|line| !line.contains("panicked")), "{}", server.log());
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    eprintln!("the server's own memory: {}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default());
    drop(limit);
}

#[tokio::test]
async fn a_page_is_bounded_by_its_bytes_and_leads_on() {
    let server = server_or_skip!();
    let long = "\u{1}".repeat(400_000);
    let id =
        server.session(json!({ "waiting_timeout_seconds": 600, "metadata": { "long": "x".repeat(60_000) } })).await;
    let path = format!("/sessions/{id}/messages");
    // Paused, they only wait.
    assert_eq!(server.post(&format!("/sessions/{id}/pause"), json!({})).await.0, 200);
    for n in 0..8 {
        let content = format!("{n}{long}");
        assert_eq!(server.post(&path, json!({ "content": content })).await.0, 201);
    }
    for n in 0..30 {
        let metadata = json!({ "long": "\u{1}".repeat(9_000), "n": n });
        let (status, answer) = server.post("/sessions", json!({ "name": format!("n{n}"), "metadata": metadata })).await;
        assert_eq!(status, 201, "{answer}");
    }
    // Every page is short, and all that is there is in one of them, once and in order.
    for (what, first, rows_min) in [
        ("messages", format!("/sessions/{id}/messages?limit=500"), 8),
        ("events", format!("/sessions/{id}/events?limit=500"), 8),
        ("sessions", "/sessions?limit=500".to_owned(), 31),
    ] {
        let (mut seen, mut pages, mut next) = (Vec::new(), 0, String::new());
        loop {
            let answer = server.request(Method::GET, &format!("{first}{next}")).send().await.unwrap();
            assert_eq!(answer.status(), 200, "{what}");
            let bytes = answer.bytes().await.unwrap();
            assert!(bytes.len() < 8 << 20, "{what}: a page of {} bytes", bytes.len());
            let page: Value = serde_json::from_slice(&bytes).unwrap();
            let items = page["items"].as_array().unwrap();
            assert!(!items.is_empty(), "{what}");
            seen.extend(items.iter().map(|item| format!("{}{}", item["seq"], item["name"])));
            pages += 1;
            let Some(cursor) = page["next_cursor"].as_str() else { break };
            let parameter = if what == "events" { "after" } else { "cursor" };
            next = format!("&{parameter}={cursor}");
        }
        let mut once = seen.clone();
        once.sort_unstable();
        once.dedup();
        assert!(pages > 1 && seen.len() >= rows_min && once.len() == seen.len(), "{what}: {pages} pages, {seen:?}");
    }
}

#[tokio::test]
async fn bodies_that_come_slowly_take_no_more_than_their_room() {
    let server = server_or_skip!();
    let (mallory, alice) = (member(&server, "mallory").await, member(&server, "alice").await);
    let head = format!(
        "POST /api/v0/sessions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {mallory}\r\n\
         content-type: application/json\r\ncontent-length: 4000000\r\n\r\n{{"
    );
    // Five such bodies are more than one account may send at the same time.
    let attackers: Vec<TcpStream> = (0..5).map(|_| sent(&server, &head)).collect();
    let mut refused = attackers.iter().rev().map(|stream| {
        let mut start = [0; 12];
        let mut stream = stream;
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.read_exact(&mut start).is_ok_and(|()| start == *b"HTTP/1.1 429")
    });
    assert!(refused.any(|is| is), "one of them is refused");
    let long = json!({ "starting_prompt": "#".repeat(1_000_000) });
    let created = server.request_as(&alice, Method::POST, "/sessions").json(&long).send().await.unwrap();
    assert_eq!(created.status(), 201, "others send theirs");
    drop(attackers);
    let again = server.request_as(&mallory, Method::POST, "/sessions").json(&long).send().await.unwrap();
    assert_eq!(again.status(), 201, "and so does the account, when there is room again");
}
