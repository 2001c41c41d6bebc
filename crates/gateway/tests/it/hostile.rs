//! Programs that try what a connection takes.

use std::time::Duration;

use http::StatusCode;
use raworc_core::models::ProviderKind;
use raworc_gateway::ports::CallEnd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use crate::world::{World, json, samples};

/// Sends bytes and reads until the gateway closes.
async fn raw(world: &World, bytes: &[u8]) -> String {
    let mut io = world.connect();
    // The gateway may close before it has read everything.
    let _ = io.write_all(bytes).await;
    let mut got = Vec::new();
    let _ = io.read_to_end(&mut got).await;
    String::from_utf8_lossy(&got).into_owned()
}

fn world() -> World {
    World::new(ProviderKind::Openai, vec![json(200, samples()[0].answer)])
}

#[tokio::test(start_paused = true)]
async fn no_request_is_smuggled() {
    let inner = "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}";
    for headers in [
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        "content-length: 5\r\ncontent-length: 90\r\n",
        "content-length: 5, 90\r\n",
        "content-length: +5\r\n",
        "content-length: -1\r\n",
        "content-length: 0x5\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding : chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
        " x: y\r\n",
        "x: a\0b\r\n",
        "x\r\n",
    ] {
        let world = world();
        let bytes = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n{headers}\r\n0\r\n\r\n{inner}");
        let got = raw(&world, bytes.as_bytes()).await;
        // At most one request is seen, and a second one in its body never.
        let answers = got.matches("HTTP/1.1 ").count();
        assert!(answers <= 1, "{headers:?}: {got}");
        assert!(world.around.calls.lock().unwrap().len() <= 1, "{headers:?}");
        assert!(world.provider.attempts() == 0 || !got.contains("HTTP/1.1 400"), "{headers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn other_hosts_are_told_why_not() {
    for line in [
        "CONNECT api.example:443 HTTP/1.1",
        "CONNECT 127.0.0.1:22 HTTP/1.1",
        concat!("GET http:", "//169.254.169.254/latest/meta-data HTTP/1.1"),
        "GET http://api.example/v1/models HTTP/1.1",
        "POST https://127.0.0.1/v1/chat/completions HTTP/1.1",
    ] {
        let got = raw(&world(), format!("{line}\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes()).await;
        assert!(got.starts_with("HTTP/1.1 403"), "{line}: {got}");
        assert!(got.contains("not available here"), "{line}: {got}");
    }
    let own = raw(&world(), b"GET http://127.0.0.1:9/v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(own.starts_with("HTTP/1.1 200"), "{own}");
}

#[tokio::test(start_paused = true)]
async fn heads_are_bounded_in_size_number_and_time() {
    let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(100 * 1024));
    let many: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    let many = format!("GET / HTTP/1.1\r\n{many}\r\n");
    let uri = format!("GET /{} HTTP/1.1\r\n\r\n", "y".repeat(100 * 1024));
    for bytes in [long, many, uri] {
        let got = raw(&world(), bytes.as_bytes()).await;
        assert!(got.starts_with("HTTP/1.1 4") && !got.contains("HTTP/1.1 200"), "{got}");
    }
    // Nothing, a head that does not end, and nothing after an answer: each is given up.
    for bytes in ["", "GET / HTTP/1.1\r\nhost", "GET / HTTP/1.1\r\nhost: a\r\n\r\n"] {
        let begun = Instant::now();
        let got = raw(&world(), bytes.as_bytes()).await;
        assert!(begun.elapsed() <= Duration::from_secs(80), "{bytes:?}");
        assert_eq!(got.contains("200 OK"), bytes.ends_with("\r\n\r\n"));
    }
}

#[tokio::test(start_paused = true)]
async fn bodies_are_bounded_in_size_and_time() {
    let world = world();
    let head = "POST /v1/messages HTTP/1.1\r\nhost: a\r\nconnection: close\r\n";
    let got = raw(&world, format!("{head}content-length: 40000000\r\n\r\n").as_bytes()).await;
    assert!(got.starts_with("HTTP/1.1 413") && got.contains("\"type\":\"error\""), "{got}");
    let mut chunked = format!("{head}transfer-encoding: chunked\r\n\r\n").into_bytes();
    let chunk = [b"100000\r\n".as_slice(), &vec![b' '; 1 << 20], b"\r\n"].concat();
    for _ in 0..33 {
        chunked.extend_from_slice(&chunk);
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let got = raw(&world, &chunked).await;
    assert!(got.starts_with("HTTP/1.1 413"), "{got}");
    let begun = Instant::now();
    let got = raw(&world, format!("{head}content-length: 10\r\n\r\n{{").as_bytes()).await;
    assert!(got.starts_with("HTTP/1.1 408"), "{got}");
    assert!(begun.elapsed() < Duration::from_secs(60));
    let got = raw(&world, format!("{head}content-length: 2\r\ncontent-encoding: gzip\r\n\r\n{{}}").as_bytes()).await;
    assert!(got.starts_with("HTTP/1.1 415"), "{got}");
    assert!(world.around.calls.lock().unwrap().is_empty(), "none was a call");
}

#[tokio::test(start_paused = true)]
async fn large_bodies_at_once_do_not_take_all_memory() {
    let world = world();
    let mut open = Vec::new();
    let head = "POST /v1/messages HTTP/1.1\r\nhost: a\r\ncontent-length: 30000000\r\n\r\n{";
    for _ in 0..2 {
        let mut io = world.connect();
        io.write_all(head.as_bytes()).await.unwrap();
        open.push(io);
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    let got = raw(&world, head.replace("host", "connection: close\r\nhost").as_bytes()).await;
    assert!(got.starts_with("HTTP/1.1 503") && got.contains("retry-after: 1"), "{got}");
    drop(open);
    tokio::time::sleep(Duration::from_millis(1)).await;
    let small = "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 13\r\n\r\n{\"model\":\"m\"}";
    assert!(raw(&world, small.as_bytes()).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test(start_paused = true)]
async fn nonsense_is_told_in_the_dialect_and_reaches_nobody() {
    for sample in samples() {
        for body in
            ["", "{", "[]", "null", "\"x\"", "{\"model\":1}", "{\"model\":\"a\",\"model\":\"b\"}", "{} {}", "\u{0}"]
        {
            let world = World::new(sample.kind, vec![]);
            let (path, _) = sample.asking(false);
            if sample.kind == ProviderKind::Gemini && body.contains("model") {
                continue; // Gemini has its model in the path.
            }
            let got = world.call(&path, body).await;
            assert_eq!(got.status, StatusCode::BAD_REQUEST, "{path} {body:?}: {}", got.body);
            assert!(got.json()["error"]["message"].is_string());
            assert_eq!(world.provider.attempts(), 0);
            assert!(world.around.calls.lock().unwrap().is_empty());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_model_cannot_lead_elsewhere() {
    let world = World::new(ProviderKind::Gemini, vec![json(200, "{}")]);
    world.around.target.lock().unwrap().model = "../../x?key=y#z\r\nhost: evil".into();
    world.call("/v1beta/models/..%2F..%2Fx:generateContent", "{}").await;
    let received = world.provider.request(0);
    assert_eq!(
        received.line(),
        "POST /v1beta/models/../../x%3Fkey%3Dy%23z%0D%0Ahost%3A%20evil:generateContent HTTP/1.1"
    );
    assert_eq!(world.record().await.end, CallEnd::Complete);
}

#[tokio::test(start_paused = true)]
async fn a_second_request_waits_for_the_first() {
    let world = world();
    let one = "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 13\r\n\r\n{\"model\":\"m\"}";
    let last = one.replace("host", "connection: close\r\nhost");
    let got = raw(&world, format!("{one}{one}{last}").as_bytes()).await;
    assert_eq!(got.matches("HTTP/1.1 200").count(), 3);
    for _ in 0..3 {
        assert_eq!(world.record().await.end, CallEnd::Complete);
    }
}
