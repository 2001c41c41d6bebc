//! Providers that fail, each in its way.

use std::sync::atomic::Ordering;
use std::time::Duration;

use http::StatusCode;
use raworc_core::models::ProviderKind;
use raworc_gateway::ports::{CallEnd, CallRecord};
use tokio::time::Instant;

use crate::world::{Answer, STREAM_HEAD, Sample, Step, TIMEOUT, World, answer, json, samples, send, stream};

const CHAT: &str = "/v1/chat/completions";
const PLAIN: &str = r#"{"model":"m","messages":[]}"#;
const STREAMED: &str = r#"{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":true}}"#;

fn good() -> Step {
    json(200, samples()[0].answer)
}

async fn called(world: &World, body: &str) -> (Answer, CallRecord) {
    (world.call(CHAT, body).await, world.record().await)
}

/// An error of the gateway's own names the provider and its code, in the dialect.
fn assert_told(got: &Answer, status: u16, code: &str) {
    assert_eq!(got.status.as_u16(), status, "{}", got.body);
    let error = &got.json()["error"];
    assert_eq!(error["code"], code, "{}", got.body);
    assert!(error["message"].as_str().unwrap().contains("stub"), "{}", got.body);
}

#[tokio::test(start_paused = true)]
async fn one_that_hangs_before_its_answer() {
    for steps in [vec![Step::Hang], vec![send("HTTP/1.1 200 OK\r\n"), Step::Hang], vec![send(STREAM_HEAD), Step::Hang]]
    {
        let world = World::new(ProviderKind::Openai, steps);
        let begun = Instant::now();
        let (got, record) = called(&world, STREAMED).await;
        assert_told(&got, 504, "provider_timeout");
        assert_eq!((record.end, record.attempts), (CallEnd::Failed, 1));
        assert!(begun.elapsed() >= TIMEOUT && begun.elapsed() < TIMEOUT + Duration::from_secs(1));
        world.provider.until_closed(1).await;
        world.nothing_more().await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_hangs_within_its_answer() {
    let world =
        World::new(ProviderKind::Openai, vec![send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"), Step::Hang]);
    let (got, record) = called(&world, PLAIN).await;
    assert_told(&got, 504, "provider_timeout");
    assert_eq!(record.end, CallEnd::Failed);
    world.provider.until_closed(1).await;
}

fn cut_after(sample: &Sample, more: &'static str, then: Step) -> World {
    World::new(sample.kind, vec![send(STREAM_HEAD), send(&sample.events[..sample.cut]), send(more), then])
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_off_ends_with_an_error_in_its_dialect() {
    for sample in samples() {
        let (path, request) = sample.asking(true);
        for (more, then, code) in [
            ("", Step::Close, "provider_cut"),
            ("data: {\"half\": ", Step::Close, "provider_cut"),
            ("data: {\"half\": \"\\", Step::Hang, "provider_timeout"),
        ] {
            let world = cut_after(&sample, more, then);
            let got = world.call(&path, &request).await;
            let passed = &sample.events[..sample.cut];
            let rest = got.body.strip_prefix(passed).unwrap_or_else(|| panic!("{path}: {}", got.body));
            // One more event, which is the error, and nothing that says the answer is complete.
            let data = rest.trim().lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
            let told: serde_json::Value = serde_json::from_str(data).unwrap();
            assert!(data.contains("stub"), "{path}: {rest}");
            assert!(told["error"].is_object() || told["type"] == "error", "{path}: {rest}");
            assert_eq!(rest.trim().matches("data: ").count(), 1, "{path}: {rest}");
            assert!(!got.body.contains("[DONE]") && !got.body.contains("half"), "{path}: {}", got.body);
            assert!(rest.ends_with("\n\n"));
            let record = world.record().await;
            assert_eq!((record.end, record.attempts), (CallEnd::Cut, 1), "{path}: it is not asked again");
            assert!(record.error.unwrap().contains("stub"), "{path} {code}");
            world.nothing_more().await;
            assert_eq!(world.provider.attempts(), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_chunked_stream_that_loses_its_connection() {
    let events = samples()[0].events;
    let whole = format!("{:x}\r\n{events}\r\n", events.len());
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let world =
        World::new(ProviderKind::Openai, vec![send(head), send(whole[..whole.len() - 80].to_owned()), Step::Close]);
    let (got, record) = called(&world, STREAMED).await;
    assert_eq!(record.end, CallEnd::Cut);
    assert!(got.body.contains("provider_cut") && !got.body.contains("[DONE]"), "{}", got.body);
}

#[tokio::test(start_paused = true)]
async fn one_that_closes_without_or_within_an_answer_is_asked_again() {
    for first in [
        vec![Step::Close],
        vec![send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"), Step::Close],
        vec![
            send("HTTP/1.1 200 OK\r\ncontent-length: 50\r\ncontent-type: application/json\r\n\r\n{\"a\":"),
            Step::Close,
        ],
        vec![answer(200, "content-type: application/json\r\n", "<html>"), Step::Close],
        vec![send("nonsense\r\n\r\n"), Step::Close],
        vec![answer(500, "", "oops"), Step::Close],
        vec![json(529, r#"{"type":"error","error":{"type":"overloaded_error","message":"x"}}"#), Step::Close],
        vec![json(408, "{}"), Step::Close],
    ] {
        let steps = first.clone();
        let world = World::scripted(ProviderKind::Openai, move |n, _| if n < 2 { steps.clone() } else { vec![good()] });
        let (got, record) = called(&world, PLAIN).await;
        assert_eq!(got.body, samples()[0].answer);
        assert_eq!((record.end, record.attempts), (CallEnd::Complete, 3));
        let (one, two) = (world.provider.request(0), world.provider.request(2));
        assert_eq!((one.head, one.body), (two.head, two.body), "each attempt is the same");

        let steps = first.clone();
        let world = World::scripted(ProviderKind::Openai, move |_, _| steps.clone());
        let (got, record) = called(&world, PLAIN).await;
        assert!(got.status.is_server_error() || got.status == StatusCode::REQUEST_TIMEOUT, "{}", got.body);
        assert!(got.json().is_object());
        assert!(record.attempts >= 4 && record.error.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_closes_after_its_headers_is_asked_again() {
    let events = samples()[0].events;
    let world = World::scripted(ProviderKind::Openai, move |n, _| match n {
        0 => vec![send(STREAM_HEAD), Step::Close],
        _ => stream(events),
    });
    let (got, record) = called(&world, STREAMED).await;
    assert_eq!(got.body, events);
    assert_eq!((record.end, record.attempts), (CallEnd::Complete, 2));
}

#[tokio::test(start_paused = true)]
async fn one_that_cannot_be_reached() {
    let world = World::new(ProviderKind::Openai, vec![good()]);
    world.provider.refusing.store(2, Ordering::SeqCst);
    let (got, record) = called(&world, PLAIN).await;
    assert_eq!((got.status, record.attempts), (StatusCode::OK, 3));

    let world = World::new(ProviderKind::Openai, vec![good()]);
    world.provider.refusing.store(100, Ordering::SeqCst);
    let (got, record) = called(&world, PLAIN).await;
    assert_told(&got, 502, "provider_unreachable");
    assert_eq!((record.end, record.attempts, record.status), (CallEnd::Failed, 4, None));
}

#[tokio::test(start_paused = true)]
async fn a_minute_of_429_is_outlasted() {
    for headers in ["", "retry-after: 5\r\n", "retry-after-ms: 2500\r\n", "retry-after: 60\r\n"] {
        let begun = Instant::now();
        let world = World::scripted(ProviderKind::Openai, move |_, _| {
            let is_over = begun.elapsed() >= Duration::from_secs(60);
            if is_over { vec![good()] } else { vec![answer(429, headers, "{\"error\":{}}")] }
        });
        let (got, record) = called(&world, PLAIN).await;
        assert_eq!(got.status, StatusCode::OK, "{headers}");
        assert_eq!(record.end, CallEnd::Complete);
        assert!(record.attempts <= 20 && begun.elapsed() < Duration::from_secs(100), "{headers}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_says_when_is_not_asked_before() {
    let world = World::scripted(ProviderKind::Openai, |n, _| match n {
        0 => vec![answer(429, "retry-after: 30\r\n", "{}")],
        _ => vec![good()],
    });
    let begun = Instant::now();
    called(&world, PLAIN).await;
    assert!(begun.elapsed() >= Duration::from_secs(30) && begun.elapsed() < Duration::from_secs(32));
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_lasts_is_told_as_it_is() {
    let body = r#"{"error":{"message":"quota","type":"insufficient_quota"}}"#;
    let limited = answer(429, "retry-after: 3600\r\ncontent-type: application/json\r\n", body);
    let world = World::new(ProviderKind::Openai, vec![limited]);
    let begun = Instant::now();
    let (got, record) = called(&world, PLAIN).await;
    assert_eq!((got.status.as_u16(), got.body.as_str(), got.header("retry-after")), (429, body, "3600"));
    assert_eq!((record.end, record.attempts), (CallEnd::Complete, 1));
    assert!(record.error.unwrap().contains("quota"));
    assert!(begun.elapsed() < Duration::from_secs(1), "nobody waits for an hour");
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_the_request_is_told_as_it_is() {
    for status in [400, 403, 404, 413, 422] {
        for sample in samples() {
            let body = r#"{"error":{"message":"max_tokens: too large","odd":1},"type":"error"}"#;
            let world = World::new(sample.kind, vec![json(status, body)]);
            let (path, request) = sample.asking(status % 2 == 0);
            let got = world.call(&path, &request).await;
            assert_eq!((got.status.as_u16(), got.body.as_str()), (status, body));
            let record = world.record().await;
            assert_eq!((record.attempts, record.status.unwrap().as_u16()), (1, status));
            assert!(record.error.unwrap().contains("max_tokens"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_refused_is_the_administrators_matter() {
    for sample in samples() {
        let body = r#"{"error":{"message":"Incorrect API key provided: sk-real-****cdef"}}"#;
        let world = World::new(sample.kind, vec![json(401, body)]);
        let (path, request) = sample.asking(true);
        let got = world.call(&path, &request).await;
        assert_eq!(got.status.as_u16(), 401);
        assert!(!got.body.contains("sk-real") && !got.body.contains("cdef"), "{}", got.body);
        assert!(got.body.contains("administrator"));
        assert_eq!(world.provider.attempts(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn redirects_are_not_followed() {
    for status in [301, 302, 307, 308] {
        let world = World::new(ProviderKind::Openai, vec![answer(status, "location: http://evil.example/\r\n", "")]);
        let (got, record) = called(&world, PLAIN).await;
        assert_told(&got, 502, "provider_redirects");
        assert!(!got.body.contains("evil") && !got.headers.contains_key("location"));
        assert_eq!((record.end, world.provider.attempts()), (CallEnd::Failed, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_megabyte_without_a_newline() {
    let long = "x".repeat(1024 * 1024);
    let world = World::new(ProviderKind::Openai, vec![send(STREAM_HEAD), send(long.clone()), Step::Close]);
    let (got, record) = called(&world, STREAMED).await;
    assert_eq!(record.end, CallEnd::Cut);
    assert!(got.body.contains("\n\ndata: {\"error\""), "what follows is an event of its own");
    assert!(record.answer.len() <= 1024 * 1024);
    // In an answer that is no stream.
    let world = World::new(ProviderKind::Openai, vec![answer(200, "", &long), Step::Close]);
    let (got, record) = called(&world, PLAIN).await;
    assert_told(&got, 502, "provider_bad_answer");
    assert_eq!(record.end, CallEnd::Failed);
}

#[tokio::test(start_paused = true)]
async fn an_endless_answer_is_not_kept() {
    let piece = bytes::Bytes::from(vec![b' '; 256 * 1024]);
    for (status, bytes_max) in [(200, 33 << 20), (400, 2 << 20)] {
        let (piece, head) = (piece.clone(), format!("HTTP/1.1 {status} x\r\n\r\n"));
        let endless = Step::Stream(std::sync::Arc::new(move |_| Some(piece.clone())));
        let world = World::new(ProviderKind::Openai, vec![send(head), endless]);
        let (got, record) = called(&world, PLAIN).await;
        assert_told(&got, 502, "provider_bad_answer");
        assert_eq!(record.end, CallEnd::Failed);
        assert!(world.provider.sent.load(Ordering::SeqCst) < bytes_max);
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_inside_a_200() {
    for sample in samples() {
        let (path, request) = sample.asking(false);
        for (inside, status) in [
            (r#"{"error":{"code":503,"message":"busy"}}"#, 503),
            (r#"{"type":"error","error":{"type":"overloaded_error","message":"busy"}}"#, 0),
        ] {
            let world = World::new(sample.kind, vec![json(200, inside)]);
            let got = world.call(&path, &request).await;
            assert!(got.status.is_server_error(), "{path}: {}", got.status);
            assert!(status == 0 || got.status.as_u16() == status);
            assert_eq!(got.body, inside);
            assert!(world.record().await.error.unwrap().contains("busy"));
        }
        // A stream that was asked for, and an error that comes in its place.
        let (path, request) = sample.asking(true);
        let world = World::new(sample.kind, vec![json(200, r#"{"error":{"code":503,"message":"busy"}}"#)]);
        let got = world.call(&path, &request).await;
        assert_eq!(got.status.as_u16(), 503, "{path}");
    }
    let event = "data: {\"error\":{\"code\":503,\"message\":\"busy\"}}\n\n";
    let world = World::new(ProviderKind::Openai, stream(event));
    let (got, record) = called(&world, STREAMED).await;
    assert!(got.body.starts_with(event));
    assert!(record.error.is_some());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_compressed_all_the_same() {
    let world = World::new(ProviderKind::Openai, vec![answer(200, "content-encoding: gzip\r\n", "\x1f"), Step::Close]);
    let (got, _) = called(&world, PLAIN).await;
    assert_told(&got, 502, "provider_bad_answer");
}

#[tokio::test(start_paused = true)]
async fn an_error_that_is_no_json_is_told_in_the_dialect() {
    let world = World::new(
        ProviderKind::Openai,
        vec![answer(404, "content-type: text/html\r\n", "<html>nginx 10.0.0.1</html>")],
    );
    let (got, _) = called(&world, PLAIN).await;
    assert_told(&got, 404, "provider_error");
    assert_eq!(got.header("content-type"), "application/json");
    assert!(!got.body.contains("nginx"));
}
