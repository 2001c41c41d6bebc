//! Closing an account, revoking or expiring a token, and deleting a session immediately end everything that is open.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::accounts::{call, member};
use crate::harness::{PATIENCE, TestServer, can_run_containers, eventually};

/// How soon everything must end; it would otherwise last at least a minute.
const SOON: Duration = Duration::from_secs(15);

/// What is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    TokenRevoked,
    TokenExpired,
    AccountClosed,
    SessionDeleted,
    ServerStopped,
}

/// An open request.
struct Way {
    name: &'static str,
    head: String,
    body: Vec<u8>,
    /// Size in bytes of the answer, or of the announced body.
    length: usize,
}

fn ways(id: &str, message: &str, registry: &str) -> Vec<Way> {
    let way = |name, head: String, body: Vec<u8>, length| Way { name, head, body, length };
    let json = |name, path: String, accept: &str, body: Value| {
        let body = body.to_string().into_bytes();
        let length = body.len();
        way(
            name,
            format!("POST /api/v0{path} HTTP/1.1\r\ncontent-type: application/json\r\naccept: {accept}\r\n"),
            body,
            length,
        )
    };
    let get = |name, path: String, accept: &str| {
        way(name, format!("GET /api/v0{path} HTTP/1.1\r\naccept: {accept}\r\n"), Vec::new(), 0)
    };
    let upgraded = |name, path: String, body: Vec<u8>| {
        let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                       sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        way(name, format!("GET /api/v0{path} HTTP/1.1\r\n{upgrade}"), body, 0)
    };
    let upload = |name, head: String| way(name, head, begun_archive(), 10 << 20);
    let (plain, stream) = ("application/json", "text/event-stream");
    vec![
        get("a stream of events", format!("/sessions/{id}/events"), stream),
        get("a wait for a message", format!("/sessions/{id}/messages/{message}?wait_seconds=300"), plain),
        json(
            "a message waited for",
            format!("/sessions/{id}/messages?wait_seconds=300"),
            plain,
            json!({ "content": "sleep 300" }),
        ),
        json(
            "a command",
            format!("/sessions/{id}/exec"),
            plain,
            json!({ "command": "sleep 300", "timeout_seconds": 300 }),
        ),
        upgraded("a terminal", format!("/sessions/{id}/terminal?command=sleep%20300"), Vec::new()),
        upgraded(
            "an attached command",
            format!("/sessions/{id}/exec"),
            frame(r#"{"start": {"command": "sleep 300"}}"#),
        ),
        upload("an upload", format!("PUT /api/v0/sessions/{id}/files/up HTTP/1.1\r\n")),
        get("a download", format!("/sessions/{id}/files/big"), "*/*"),
        json(
            "a push",
            format!("/sessions/{id}/checkpoints/now/push"),
            plain,
            json!({ "reference": format!("{registry}/x:1") }),
        ),
        json(
            "a push that is told",
            format!("/sessions/{id}/checkpoints/now/push"),
            stream,
            json!({ "reference": format!("{registry}/x:2") }),
        ),
        json("a pull", "/images".into(), plain, json!({ "reference": format!("{registry}/y:1") })),
        json("a pull that is told", "/images".into(), stream, json!({ "reference": format!("{registry}/y:2") })),
        upload("an import", "POST /api/v0/images/import HTTP/1.1\r\ncontent-type: application/octet-stream\r\n".into()),
    ]
}

/// A WebSocket text frame of a client, with mask zero.
fn frame(text: &str) -> Vec<u8> {
    [&[0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0], text.as_bytes()].concat()
}

/// The number of such events in the log.
fn count(page: &Value, kind: &str) -> usize {
    page["items"].as_array().unwrap().iter().filter(|event| event["type"] == kind).count()
}

/// The beginning of an archive with a large file.
fn begun_archive() -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_path("blob").unwrap();
    header.set_size(9 << 20);
    header.set_mode(0o644);
    header.set_cksum();
    [header.as_bytes().as_slice(), &vec![b'x'; 100_000]].concat()
}

/// Whether it concerns the session.
fn is_of_session(way: &Way) -> bool {
    way.head.contains("/sessions/")
}

fn open(server: &TestServer, token: &str, way: &Way) -> TcpStream {
    let mut stream = TcpStream::connect(server.url.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let rest = if way.head.starts_with("GET") { String::new() } else { format!("content-length: {}\r\n", way.length) };
    let close = if way.head.contains("upgrade") { "" } else { "connection: close\r\n" };
    let head = format!("{}host: x\r\n{close}authorization: Bearer {token}\r\n{rest}\r\n", way.head);
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&way.body).unwrap();
    stream
}

/// Reads to the end, which must come soon; returns the number of bytes.
fn ends(mut stream: TcpStream, name: &str, end: End) -> Vec<u8> {
    let began = Instant::now();
    let mut all = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        assert!(
            began.elapsed() < SOON,
            "{name} goes on after {end:?}: {:?}",
            String::from_utf8_lossy(&all[..all.len().min(300)])
        );
        match stream.read(&mut buffer) {
            Ok(0) => return all,
            Ok(length) => all.extend_from_slice(&buffer[..length]),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                panic!("{name} goes on after {end:?}: {:?}", String::from_utf8_lossy(&all[..all.len().min(300)]));
            }
            Err(_) => return all,
        }
    }
}

/// A registry that accepts connections and never answers.
fn silent_registry() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept() {
            held.push(stream);
        }
    });
    address
}

async fn lent(server: &TestServer, account: &str, body: Value) -> (String, String) {
    let (status, answer) = server.post(&format!("/accounts/{account}/tokens"), body).await;
    assert_eq!(status, 201, "{answer}");
    (answer["id"].as_str().unwrap().to_owned(), answer["token"].as_str().unwrap().to_owned())
}

async fn try_it(server: &mut TestServer, number: usize, end: End) {
    let (account, registry) = (format!("a{number}"), silent_registry());
    let own = member(server, &account).await;
    let expires = if end == End::TokenExpired {
        json!({ "name": "lent", "expires_in_seconds": 6 })
    } else {
        json!({ "name": "lent" })
    };
    let (status, session) = call(server, &own, "POST", "/sessions", Some(json!({}))).await;
    assert_eq!(status, 201, "{session}");
    let id = session["id"].as_str().unwrap().to_owned();
    server.until(&id, |session| session["state"] == "READY").await;
    let big = server.request(Method::PUT, &format!("/sessions/{id}/files/big")).body(vec![b'x'; 48 << 20]);
    assert_eq!(big.send().await.unwrap().status(), 201);
    let message = json!({ "content": "sleep 300" });
    let (status, message) = call(server, &own, "POST", &format!("/sessions/{id}/messages"), Some(message)).await;
    assert_eq!(status, 201, "{message}");
    server.until(&id, |session| session["state"] == "BUSY").await;
    let (token_id, token) = lent(server, &account, expires).await;
    let ways = ways(&id, message["id"].as_str().unwrap(), &registry);
    let opened: Vec<(&Way, TcpStream)> = ways
        .iter()
        .filter(|way| end != End::SessionDeleted || is_of_session(way))
        .map(|way| (way, open(server, &token, way)))
        .collect();
    // All are under way when the command is.
    let log = format!("/sessions/{id}/events?limit=500");
    eventually("the commands have begun", async || {
        let (_, page) = server.get(&log).await;
        count(&page, "exec.started") == 2 && count(&page, "terminal.opened") == 1
    })
    .await;
    for (_, stream) in opened.iter().filter(|(way, _)| way.head.contains("upgrade")) {
        assert_ne!(stream.peek(&mut [0]).unwrap(), 0, "it is open");
    }
    match end {
        End::TokenRevoked => {
            // With the token itself, which hears that it worked.
            let path = format!("/accounts/{account}/tokens/{token_id}");
            assert_eq!(call(server, &token, "DELETE", &path, None).await.0, 204);
        }
        // It comes by itself.
        End::TokenExpired => {}
        End::AccountClosed => assert_eq!(server.delete(&format!("/accounts/{account}")).await.0, 204),
        End::SessionDeleted => assert_eq!(server.delete(&format!("/sessions/{id}")).await.0, 200),
        End::ServerStopped => server.stop(),
    }
    let ended: Vec<(&str, Vec<u8>)> =
        opened.into_iter().map(|(way, stream)| (way.name, ends(stream, way.name, end))).collect();
    for (name, answer) in &ended {
        assert!(answer.len() < 48 << 20, "{name} was whole after {end:?}");
        let head = String::from_utf8_lossy(&answer[..answer.len().min(12)]).into_owned();
        let begun = ["a stream of events", "a download", "a terminal", "an attached command"];
        let is_begun = begun.contains(name) || name.ends_with("told");
        if matches!(end, End::TokenRevoked | End::TokenExpired | End::AccountClosed) && !is_begun {
            assert_eq!(head, "HTTP/1.1 401", "{name} after {end:?}");
        }
    }
    if end == End::ServerStopped {
        server.start_again();
    }
    // The commands have ended, too, and the log says so. A terminal waits for the next server.
    eventually("the ends of the commands are in the log", async || {
        let (_, page) = server.get(&log).await;
        let terminals = usize::from(end != End::ServerStopped);
        count(&page, "exec.finished") == 2 && count(&page, "terminal.closed") == terminals
    })
    .await;
    // Nobody's file is there.
    assert_ne!(server.get(&format!("/sessions/{id}/files/up")).await.0, 200, "half a file after {end:?}");
    server.delete(&format!("/sessions/{id}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_revoked_expired_closed_or_deleted_ends_at_once_in_every_open_way() {
    if !can_run_containers() {
        return;
    }
    let mut server = TestServer::start(&["--registry-allow", "127.0.0.1"]);
    let ends = [End::TokenRevoked, End::TokenExpired, End::AccountClosed, End::SessionDeleted, End::ServerStopped];
    for (number, end) in ends.into_iter().enumerate() {
        tokio::time::timeout(PATIENCE, try_it(&mut server, number, end))
            .await
            .unwrap_or_else(|_| panic!("{end:?} takes too long"));
    }
}
