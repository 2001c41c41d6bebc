//! Programs that speak another API than their provider: what holds within one dialect holds across them.

use std::sync::Arc;
use std::time::Duration;

use raworc_core::models::{ProviderKind, TokenUsage};
use raworc_gateway::ports::CallEnd;
use serde_json::Value;
use tokio::sync::Notify;

use crate::world::{Answer, KEY, STREAM_HEAD, Sample, Step, World, answer, json, piece, samples, send, stream};

/// A program of one dialect and the sample of its provider's.
struct Crossing {
    path: &'static str,
    request: &'static str,
    provider: Sample,
    /// The path at the provider.
    line: &'static str,
    /// Where the text of an answer is.
    text: &'static str,
    /// What only a complete stream has.
    end: &'static str,
}

const CHAT: &str = r#"{"model":"m","stream":STREAM,"messages":[{"role":"user","content":"hi"}]}"#;
const RESPONSES: &str = r#"{"model":"m","stream":STREAM,"input":"hi"}"#;
const MESSAGES: &str = r#"{"model":"m","stream":STREAM,"max_tokens":10,"messages":[{"role":"user","content":"hi"}]}"#;

fn crossings() -> Vec<Crossing> {
    let of = |number: usize| samples().swap_remove(number);
    let anthropic = "POST /v1/messages HTTP/1.1";
    vec![
        Crossing {
            path: "/v1/messages",
            request: MESSAGES,
            provider: of(0),
            line: "POST /v1/chat/completions HTTP/1.1",
            text: "/content/0/text",
            end: "message_stop",
        },
        Crossing {
            path: "/v1/chat/completions",
            request: CHAT,
            provider: of(2),
            line: anthropic,
            text: "/choices/0/message/content",
            end: "[DONE]",
        },
        Crossing {
            path: "/v1/responses",
            request: RESPONSES,
            provider: of(2),
            line: anthropic,
            text: "/output/0/content/0/text",
            end: "response.completed",
        },
    ]
}

impl Crossing {
    fn request(&self, is_streaming: bool) -> String {
        self.request.replace("STREAM", if is_streaming { "true" } else { "false" })
    }

    async fn call(&self, world: &World, is_streaming: bool) -> Answer {
        world.call(self.path, &self.request(is_streaming)).await
    }
}

/// The texts of the events of a stream, in any dialect, joined.
fn streamed_text(events: &str) -> String {
    let data = events.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    data.map(|data| {
        let event: Value = serde_json::from_str(data).unwrap();
        let texts = [&event["choices"][0]["delta"]["content"], &event["delta"]["text"], &event["delta"]];
        texts.iter().find_map(|text| text.as_str()).unwrap_or_default().to_owned()
    })
    .collect()
}

const USAGE: TokenUsage = TokenUsage { input_tokens: 3, output_tokens: 2, cached_tokens: 0 };

#[tokio::test(start_paused = true)]
async fn an_answer_comes_in_the_programs_dialect() {
    for crossing in crossings() {
        let world = World::new(crossing.provider.kind, vec![json(200, crossing.provider.answer)]);
        let got = crossing.call(&world, false).await;
        assert_eq!(got.status.as_u16(), 200, "{}", got.body);
        assert_eq!(got.json().pointer(crossing.text), Some(&Value::from("Hello")), "{}", got.body);
        assert_eq!(got.header("content-type"), "application/json");
        let received = world.provider.request(0);
        assert_eq!(received.line(), crossing.line);
        let asked: Value = serde_json::from_slice(&received.body).unwrap();
        assert_eq!(asked["model"], "real-model");
        let version = received.header("anthropic-version").is_some();
        assert_eq!(version, crossing.provider.kind == ProviderKind::Anthropic);
        let record = world.record().await;
        assert_eq!((record.end, record.usage), (CallEnd::Complete, Some(USAGE)));
        assert_eq!(record.request, received.body, "what the provider was sent");
        assert_eq!(record.answer, crossing.provider.answer, "what it answered");

        let world = World::new(crossing.provider.kind, stream(crossing.provider.events));
        let got = crossing.call(&world, true).await;
        assert_eq!(streamed_text(&got.body), "Hello", "{}", got.body);
        assert!(got.body.contains(crossing.end), "{}", got.body);
        assert!(got.header("content-type").starts_with("text/event-stream"));
        let record = world.record().await;
        assert_eq!((record.end, record.usage), (CallEnd::Complete, Some(USAGE)));
        world.nothing_more().await;
    }
}

#[tokio::test(start_paused = true)]
async fn each_delta_crosses_at_once() {
    for crossing in crossings() {
        let gate = Arc::new(Notify::new());
        let (first, second) = crossing.provider.events.split_at(crossing.provider.cut);
        let steps = vec![send(STREAM_HEAD), send(first), Step::Gate(gate.clone()), send(second), Step::Close];
        let world = World::new(crossing.provider.kind, steps);
        let mut program = world.program().await;
        let mut response = program.post(crossing.path, &crossing.request(true)).await;
        let mut got = String::new();
        while !streamed_text(&got).contains("Hel") {
            got.push_str(&piece(&mut response).await.unwrap());
        }
        gate.notify_one();
        while let Some(more) = piece(&mut response).await {
            got.push_str(&more);
        }
        assert_eq!(streamed_text(&got), "Hello");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_off_is_never_told_as_complete() {
    for crossing in crossings() {
        let cut = &crossing.provider.events[..crossing.provider.cut];
        for (more, then) in [("", Step::Close), ("data: {\"half", Step::Close), ("", Step::Hang)] {
            let world = World::new(crossing.provider.kind, vec![send(STREAM_HEAD), send(cut), send(more), then]);
            let got = crossing.call(&world, true).await;
            assert!(got.body.contains("Hel"), "{}", got.body);
            assert!(!got.body.contains(crossing.end), "{}: {}", crossing.path, got.body);
            let last = got.body.trim().rsplit("data: ").next().unwrap();
            let told: Value = serde_json::from_str(last).unwrap();
            let is_error = told["error"].is_object() || told["type"] == "error" || told["type"] == "response.failed";
            assert!(is_error, "{}: {last}", crossing.path);
            let record = world.record().await;
            assert_eq!((record.end, world.provider.attempts()), (CallEnd::Cut, 1));
            world.nothing_more().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn errors_cross_with_their_status_and_what_they_say() {
    for crossing in crossings() {
        for is_streaming in [false, true] {
            for status in [400, 404, 413, 429, 529] {
                let body = r#"{"type":"error","error":{"type":"some_error","message":"too much of it"}}"#;
                let headers = "content-type: application/json\r\nretry-after: 3600\r\nx-request-id: r1\r\n";
                let world = World::new(crossing.provider.kind, vec![answer(status, headers, body)]);
                let got = crossing.call(&world, is_streaming).await;
                assert_eq!(got.status.as_u16(), status, "{}", got.body);
                assert_eq!((got.header("retry-after"), got.header("x-request-id")), ("3600", "r1"));
                let message = got.json()["error"]["message"].as_str().unwrap().to_owned();
                assert!(message.contains("too much of it"), "{message}");
                assert_eq!(world.record().await.end, CallEnd::Complete);
            }
            let world =
                World::new(crossing.provider.kind, vec![json(200, r#"{"error":{"code":503,"message":"busy"}}"#)]);
            let got = crossing.call(&world, is_streaming).await;
            assert_eq!(got.status.as_u16(), 503, "{}", got.body);
            assert!(got.body.contains("busy"));
            let world = World::new(crossing.provider.kind, vec![json(200, "[1]")]);
            let got = crossing.call(&world, false).await;
            assert!(got.status.is_server_error(), "{}", got.body);
            assert!(got.json()["error"].is_object());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_leaves_and_what_is_cancelled_ends_the_providers_connection() {
    for crossing in crossings() {
        let cut = &crossing.provider.events[..crossing.provider.cut];
        let world = World::new(crossing.provider.kind, vec![send(STREAM_HEAD), send(cut), Step::Hang]);
        let mut program = world.program().await;
        let mut response = program.post(crossing.path, &crossing.request(true)).await;
        piece(&mut response).await.unwrap();
        program.leave();
        world.provider.until_closed(1).await;
        assert_eq!(world.record().await.end, CallEnd::ClientGone);

        let world = World::new(crossing.provider.kind, vec![send(STREAM_HEAD), send(cut), Step::Hang]);
        let cancelling = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            world.around.tokens.lock().unwrap()[0].cancel();
        };
        let (got, ()) = tokio::join!(crossing.call(&world, true), cancelling);
        assert!(got.body.contains("cancelled") && !got.body.contains(crossing.end), "{}", got.body);
        world.provider.until_closed(1).await;
        assert_eq!(world.record().await.end, CallEnd::Cancelled);
        world.nothing_more().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_key_does_not_cross() {
    for crossing in crossings() {
        let echo = format!("{{\"error\":{{\"message\":\"bad {KEY}\"}}}}");
        for steps in [
            vec![json(400, &echo), Step::Close],
            vec![json(200, &echo), Step::Close],
            vec![send(STREAM_HEAD), send(crossing.provider.events.replace("Hel", KEY)), Step::Close],
        ] {
            let world = World::new(crossing.provider.kind, steps);
            let got = crossing.call(&world, true).await;
            assert!(!format!("{got:?}").contains(KEY), "{}", got.body);
            assert!(got.body.contains("[redacted]"), "{}", got.body);
            assert!(!format!("{:?}", world.record().await).contains(KEY));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_recording_answers_in_every_dialect() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.jsonl");
    let line = r#"{"match":{"user":"hi"},"answer":{"text":"Hello","usage":{"input_tokens":3,"output_tokens":2}}}"#;
    std::fs::write(&path, line).unwrap();
    for crossing in crossings() {
        for is_streaming in [false, true] {
            let world = World::new(ProviderKind::Replay, vec![]);
            world.around.target.lock().unwrap().base_url = path.to_str().unwrap().into();
            let got = crossing.call(&world, is_streaming).await;
            if is_streaming {
                assert_eq!(streamed_text(&got.body), "Hello", "{}", got.body);
                assert!(got.body.contains(crossing.end));
            } else {
                assert_eq!(got.json().pointer(crossing.text), Some(&Value::from("Hello")), "{}", got.body);
            }
            let record = world.record().await;
            assert_eq!(record.end, CallEnd::Complete, "{}", crossing.path);
            assert_eq!(record.usage, Some(USAGE));
            let unknown = world.call(crossing.path, &crossing.request(is_streaming).replace("hi", "ho")).await;
            assert_eq!(unknown.status.as_u16(), 404);
            assert!(unknown.body.contains("user \\\"ho\\\""), "{}", unknown.body);
        }
    }
}
