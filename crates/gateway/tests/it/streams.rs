//! Many streams, long ones, and programs that read slowly.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use raworc_core::models::ProviderKind;
use raworc_gateway::ports::CallEnd;

use crate::world::{STREAM_HEAD, Step, World, piece, send};

const CHAT: &str = "/v1/chat/completions";
const END: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";

fn event(stream: &str, number: usize) -> String {
    format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{stream}.{number} \"}}}}]}}\n\n")
}

#[tokio::test(start_paused = true)]
async fn two_hundred_at_once_lose_and_reorder_nothing() {
    const STREAMS: usize = 200;
    const EVENTS: usize = 50;
    let world = World::scripted(ProviderKind::Openai, |_, received| {
        let asked: serde_json::Value = serde_json::from_slice(&received.body).unwrap();
        let name = asked["user"].as_str().unwrap().to_owned();
        let piece = move |number| (number < EVENTS).then(|| Bytes::from(event(&name, number)));
        vec![send(STREAM_HEAD), Step::Stream(Arc::new(piece)), send(END), Step::Close]
    });
    let calls = (0..STREAMS).map(|number| {
        let world = &world;
        async move {
            let body = format!(r#"{{"model":"m","stream":true,"user":"s{number}","messages":[]}}"#);
            (number, world.call(CHAT, &body).await)
        }
    });
    for (number, got) in join_all(calls).await {
        let expected: String = (0..EVENTS).map(|at| event(&format!("s{number}"), at)).collect();
        assert_eq!(got.body, expected + END, "stream {number}");
    }
    for _ in 0..STREAMS {
        assert_eq!(world.record().await.end, CallEnd::Complete);
    }
    world.nothing_more().await;
}

#[tokio::test(start_paused = true)]
async fn who_reads_slowly_holds_the_provider_back() {
    const EVENTS: usize = 40_000;
    let line = event(&"x".repeat(200), 7);
    let total = line.len() * EVENTS;
    let bytes = Bytes::from(line);
    let piece = move |number| (number < EVENTS).then(|| bytes.clone());
    let world = World::new(
        ProviderKind::Openai,
        vec![send(STREAM_HEAD), Step::Stream(Arc::new(piece)), send(END), Step::Close],
    );
    let mut program = world.program().await;
    let mut response = program.post(CHAT, r#"{"model":"m","stream":true,"messages":[]}"#).await;
    let mut got = crate::world::piece(&mut response).await.unwrap().len();
    // A second in which nobody reads: whatever can move has moved.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let taken = world.provider.sent.load(Ordering::SeqCst);
    assert!(taken < 2 << 20, "{taken} bytes were taken of {total} while nobody read");
    while let Some(more) = self::piece(&mut response).await {
        got += more.len();
    }
    assert_eq!(got, total + END.len());
    let record = world.record().await;
    assert_eq!(record.end, CallEnd::Complete);
    assert_eq!(record.answer.len(), 1 << 20, "of a long answer, the beginning is kept");
}

#[tokio::test(start_paused = true)]
async fn who_never_reads_is_given_up() {
    let bytes = Bytes::from(event(&"x".repeat(1000), 7));
    let endless = Step::Stream(Arc::new(move |_| Some(bytes.clone())));
    let world = World::new(ProviderKind::Openai, vec![send(STREAM_HEAD), endless]);
    let mut program = world.connect();
    let request =
        "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 27\r\n\r\n{\"model\":\"m\",\"stream\":true}";
    tokio::io::AsyncWriteExt::write_all(&mut program, request.as_bytes()).await.unwrap();
    world.provider.until_closed(1).await;
    assert_eq!(world.record().await.end, CallEnd::ClientGone);
    drop(program);
}

#[tokio::test(start_paused = true)]
async fn a_silence_that_is_shorter_than_the_timeout_is_none() {
    let gates: Vec<Arc<tokio::sync::Notify>> = (0..3).map(|_| Arc::default()).collect();
    let mut steps = vec![send(STREAM_HEAD)];
    for (number, gate) in gates.iter().enumerate() {
        steps.extend([send(event("s", number)), Step::Gate(gate.clone())]);
    }
    steps.extend([send(END), Step::Close]);
    let world = World::new(ProviderKind::Openai, steps);
    let opening = async {
        for gate in &gates {
            tokio::time::sleep(crate::world::TIMEOUT - Duration::from_secs(1)).await;
            gate.notify_one();
        }
    };
    let (got, ()) = tokio::join!(world.call(CHAT, r#"{"model":"m","stream":true,"messages":[]}"#), opening);
    assert!(got.body.ends_with(END));
    assert_eq!(world.record().await.end, CallEnd::Complete);
}

#[tokio::test(start_paused = true)]
async fn who_sends_a_byte_now_and_then_for_ever_is_given_up() {
    for is_streaming in [true, false] {
        let head = if is_streaming { STREAM_HEAD } else { "HTTP/1.1 200 OK\r\n\r\n" };
        let mut steps = vec![send(head)];
        for _ in 0..4000 {
            steps.extend([send(": still here\n\n"), Step::Sleep(Duration::from_secs(1))]);
        }
        let world = World::new(ProviderKind::Openai, steps);
        let begun = tokio::time::Instant::now();
        let got = world.call(CHAT, &format!(r#"{{"model":"m","stream":{is_streaming},"messages":[]}}"#)).await;
        assert!(got.body.contains("provider_bad_answer"), "{}", got.body.len());
        assert!(begun.elapsed() <= Duration::from_secs(3700));
        let end = if is_streaming { CallEnd::Cut } else { CallEnd::Failed };
        assert_eq!(world.record().await.end, end);
        world.provider.until_closed(1).await;
    }
}
