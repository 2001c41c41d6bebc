//! Following events against a server that answers each connection from a script.

use std::sync::{Arc, Mutex};

use raworc_core::ids::SessionId;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

fn sse(seq: u64) -> String {
    let id: SessionId = "0192f1d2-0000-7000-8000-000000000000".parse().unwrap();
    let event = Event {
        seq,
        session_id: id,
        kind: "message.delta".into(),
        at: jiff_time(),
        actor: "system".into(),
        generation: 1,
        data: serde_json::Map::new(),
    };
    format!("id: {seq}\nevent: message.delta\ndata: {}\n\n", serde_json::to_string(&event).unwrap())
}

fn jiff_time() -> jiff::Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

/// Answers one connection after the other; says what each asked for: path and `Last-Event-ID`.
async fn scripted(answers: Vec<String>) -> (Client, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&asked);
    tokio::spawn(async move {
        for answer in answers {
            let (socket, _) = listener.accept().await.unwrap();
            let mut socket = BufReader::new(socket);
            let (mut line, mut seen) = (String::new(), String::new());
            while socket.read_line(&mut line).await.unwrap() > 2 {
                if line.starts_with("GET ") {
                    seen.push_str(line.split(' ').nth(1).unwrap());
                } else if line.to_lowercase().starts_with("last-event-id") {
                    seen.push_str(&format!(" {}", line.trim().to_lowercase()));
                }
                line.clear();
            }
            record.lock().unwrap().push(seen);
            socket.get_mut().write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (Client::new(&url, "secret").unwrap(), asked)
}

async fn seqs(stream: &mut Follow, count: usize) -> Vec<u64> {
    stream.take(count).map(|event| event.unwrap().seq).collect().await
}

#[tokio::test]
async fn a_broken_stream_goes_on_where_it_broke() {
    let half = sse(3);
    let (client, asked) = scripted(vec![
        format!("{OK}: hello\n\n{}{}{}", sse(1), sse(2), &half[..half.len() / 2]),
        "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".into(),
    ])
    .await;
    let mut stream = client.follow("my session", 0);
    assert_eq!(seqs(&mut stream, 2).await, [1, 2]);
    // A 503 that is not a problem document did not come from Raworc.
    let error = stream.next().await.unwrap().unwrap_err();
    assert!(matches!(error, ClientError::Protocol(_)), "{error:?}");
    let asked = asked.lock().unwrap().clone();
    assert_eq!(
        asked,
        ["/api/v0/sessions/my%20session/events?after=0", "/api/v0/sessions/my%20session/events last-event-id: 2"]
    );
}

#[tokio::test]
async fn nothing_is_repeated_or_left_out() {
    let (client, asked) = scripted(vec![
        // One that was seen before, then a gap.
        format!("{OK}{}{}{}", sse(4), sse(5), sse(7)),
        format!("{OK}{}{}{}", sse(5), sse(6), sse(7)),
    ])
    .await;
    let mut stream = client.follow("s", 4);
    assert_eq!(seqs(&mut stream, 3).await, [5, 6, 7]);
    assert_eq!(asked.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_busy_server_is_asked_again() {
    let body = serde_json::to_string(&crate::problem::Problem::new(Code::Unavailable, "away")).unwrap();
    let away = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let (client, asked) = scripted(vec![format!("{OK}{}", sse(1)), away, format!("{OK}{}", sse(2))]).await;
    assert_eq!(seqs(&mut client.follow("s", 0), 2).await, [1, 2]);
    assert_eq!(asked.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn a_refusal_at_the_start_is_told_at_once() {
    let body = serde_json::to_string(&crate::problem::Problem::new(Code::NotFound, "no such session")).unwrap();
    let (client, _) = scripted(vec![format!(
        "HTTP/1.1 404 Not Found\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )])
    .await;
    let error = client.follow("s", 0).next().await.unwrap().unwrap_err();
    assert_eq!(error.problem().map(|p| p.code), Some(Code::NotFound));
}

#[tokio::test]
async fn nobody_there() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = Client::new(&url, "secret").unwrap();
    let error = client.follow("s", 0).next().await.unwrap().unwrap_err();
    assert!(matches!(&error, ClientError::Unreachable { url: at, .. } if *at == url), "{error:?}");
    assert!(matches!(client.health().await.unwrap_err(), ClientError::Unreachable { .. }));
}

#[tokio::test]
async fn a_log_that_is_over_ends_the_stream() {
    let over = "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n".to_owned();
    let (client, asked) = scripted(vec![format!("{OK}{}", sse(1)), over]).await;
    let all: Vec<u64> = client.follow("s", 0).map(|event| event.unwrap().seq).collect().await;
    assert_eq!((all, asked.lock().unwrap().len()), (vec![1], 2));
}
