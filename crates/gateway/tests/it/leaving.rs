//! Programs that go away, and calls that are cancelled: the provider's connection ends at once, and the end is recorded once.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use raworc_core::models::ProviderKind;
use raworc_gateway::ports::CallEnd;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::world::{STREAM_HEAD, Step, World, answer, container, piece, samples, send};

async fn until<T>(condition: impl Fn() -> Option<T>) -> T {
    loop {
        if let Some(done) = condition() {
            return done;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_program_that_goes_away_ends_the_providers_connection() {
    for sample in samples() {
        for is_streaming in [false, true] {
            let steps = match is_streaming {
                true => vec![send(STREAM_HEAD), send(&sample.events[..sample.cut]), Step::Hang],
                false => vec![Step::Hang],
            };
            let world = World::new(sample.kind, steps);
            let mut program = world.program().await;
            let (path, request) = sample.asking(is_streaming);
            let begun = Instant::now();
            if is_streaming {
                let mut response = program.post(&path, &request).await;
                piece(&mut response).await.unwrap();
                program.leave();
            } else {
                let asked = program.post(&path, &request);
                tokio::select! {
                    _ = asked => panic!("answered"),
                    () = until(|| (world.provider.attempts() > 0).then_some(())) => {}
                }
                program.leave();
            }
            world.provider.until_closed(1).await;
            assert!(begun.elapsed() < Duration::from_secs(1), "{path}: at once, and not after a timeout");
            assert_eq!(world.record().await.end, CallEnd::ClientGone, "{path}");
            world.nothing_more().await;
            assert_eq!(world.provider.attempts(), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_program_that_goes_away_between_attempts_is_not_tried_for() {
    let world = World::new(ProviderKind::Openai, vec![answer(429, "retry-after: 50\r\n", "{}")]);
    let mut program = world.program().await;
    tokio::select! {
        _ = program.post("/v1/chat/completions", r#"{"model":"m"}"#) => panic!("answered"),
        () = until(|| (world.provider.attempts() > 0).then_some(())) => {}
    }
    program.leave();
    assert_eq!(world.record().await.end, CallEnd::ClientGone);
    world.nothing_more().await;
    assert_eq!(world.provider.attempts(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_program_that_goes_away_before_it_is_decided_on() {
    let world = World::new(ProviderKind::Openai, vec![Step::Hang]);
    let gate = Arc::new(Notify::new());
    *world.around.gate.lock().unwrap() = Some(gate.clone());
    let mut program = world.program().await;
    tokio::select! {
        _ = program.post("/v1/chat/completions", r#"{"model":"m"}"#) => panic!("answered"),
        () = until(|| (!world.around.calls.lock().unwrap().is_empty()).then_some(())) => {}
    }
    program.leave();
    tokio::time::sleep(Duration::from_secs(1)).await;
    gate.notify_one();
    // It was admitted after all: so its end is recorded.
    assert_eq!(world.record().await.end, CallEnd::ClientGone);
    world.nothing_more().await;
    assert_eq!(world.provider.attempts(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_dropped_records_its_call() {
    let world = World::new(ProviderKind::Openai, vec![Step::Hang]);
    let (ours, theirs) = tokio::io::duplex(1024);
    let serving = tokio::spawn(raworc_gateway::serve_connection(theirs, container(), world.gateway.clone()));
    let mut ours = ours;
    let request = "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 13\r\n\r\n{\"model\":\"m\"}";
    tokio::io::AsyncWriteExt::write_all(&mut ours, request.as_bytes()).await.unwrap();
    until(|| (world.provider.attempts() > 0).then_some(())).await;
    serving.abort();
    world.provider.until_closed(1).await;
    assert_eq!(world.record().await.end, CallEnd::ClientGone);
    world.nothing_more().await;
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_call_ends_at_once_and_says_so() {
    for sample in samples() {
        for is_streaming in [false, true] {
            let steps = match is_streaming {
                true => vec![send(STREAM_HEAD), send(&sample.events[..sample.cut]), Step::Hang],
                false => vec![Step::Hang],
            };
            let world = World::new(sample.kind, steps);
            let mut program = world.program().await;
            let (path, request) = sample.asking(is_streaming);
            let begun = Instant::now();
            let cancelling = async {
                until(|| (world.provider.attempts() > 0).then_some(())).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
                world.around.tokens.lock().unwrap()[0].cancel();
            };
            let (got, ()) = tokio::join!(program.call(&path, &request), cancelling);
            assert!(begun.elapsed() < Duration::from_secs(1));
            world.provider.until_closed(1).await;
            assert!(got.body.contains("cancelled"), "{path}: {}", got.body);
            assert!(got.is_whole);
            let status = if is_streaming { 200 } else { 499 };
            assert_eq!(got.status.as_u16(), status);
            assert_eq!(world.record().await.end, CallEnd::Cancelled);
            world.nothing_more().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_cancelled_between_attempts_is_not_tried_again() {
    let world = World::new(ProviderKind::Openai, vec![answer(503, "retry-after: 30\r\n", "{}")]);
    let mut program = world.program().await;
    let cancelling = async {
        until(|| (world.provider.attempts() > 0).then_some(())).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.around.tokens.lock().unwrap()[0].cancel();
    };
    let begun = Instant::now();
    let (got, ()) = tokio::join!(program.call("/v1/chat/completions", r#"{"model":"m"}"#), cancelling);
    assert_eq!(got.status, StatusCode::from_u16(499).unwrap());
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!((world.record().await.end, world.provider.attempts()), (CallEnd::Cancelled, 1));
}

#[tokio::test(start_paused = true)]
async fn a_cancel_ends_the_providers_connection_even_if_the_program_reads_nothing() {
    let event = bytes::Bytes::from(format!("data: {{\"x\":\"{}\"}}\n\n", "y".repeat(1000)));
    let endless = Step::Stream(Arc::new(move |_| Some(event.clone())));
    let world = World::new(ProviderKind::Openai, vec![send(STREAM_HEAD), endless]);
    let mut program = world.program().await;
    let response = program.post("/v1/chat/completions", r#"{"model":"m","stream":true}"#).await;
    // Whatever can move has moved; from here on everything waits for the program.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    world.around.tokens.lock().unwrap()[0].cancel();
    world.provider.until_closed(1).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    let got = crate::world::Answer::read(response).await;
    assert!(got.body.contains("cancelled"));
    assert_eq!(world.record().await.end, CallEnd::Cancelled);
    world.nothing_more().await;
}
