//! What passes between program and provider, and how.

use std::sync::Arc;

use http::StatusCode;
use raworc_core::models::{ProviderKind, TokenUsage};
use raworc_gateway::dialect::Dialect;
use raworc_gateway::ports::{CallEnd, Operation, Refusal};
use serde_json::{Value, json as value};
use tokio::sync::Notify;

use crate::world::{KEY, STREAM_HEAD, Step, World, answer, json, piece, samples, send, stream};

#[tokio::test(start_paused = true)]
async fn in_the_same_dialect_every_byte_passes() {
    for sample in samples() {
        for is_streaming in [false, true] {
            let (path, request) = sample.asking(is_streaming);
            let steps = if is_streaming { stream(sample.events) } else { vec![json(200, sample.answer)] };
            let world = World::new(sample.kind, steps);
            let got = world.call(&path, &request).await;
            assert_eq!(got.status, StatusCode::OK, "{path}: {}", got.body);
            let expected = if is_streaming { sample.events } else { sample.answer };
            assert_eq!(got.body, expected, "{path}");
            assert!(got.is_whole);
            let received = world.provider.request(0);
            let model = |name: &str| {
                request.replace("\"gpt-4\"", &format!("{name:?}")).replace("\"claude\"", &format!("{name:?}"))
            };
            assert_eq!(received.body, model("real-model"), "{path}");
            let record = world.record().await;
            assert_eq!((record.end, record.attempts, record.error), (CallEnd::Complete, 1, None), "{path}");
            assert_eq!(
                record.usage,
                Some(TokenUsage { input_tokens: 3, output_tokens: 2, cached_tokens: 0 }),
                "{path}"
            );
            assert_eq!(record.request, received.body);
            assert_eq!(record.answer, expected);
            assert_eq!(record.status, Some(StatusCode::OK));
            assert!(record.first_byte.is_some());
            world.nothing_more().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn paths_keys_and_headers() {
    for (kind, path, line, key) in [
        (ProviderKind::Openai, "/chat/completions", "POST /v1/chat/completions HTTP/1.1", "authorization"),
        (ProviderKind::Openai, "/v1/responses", "POST /v1/responses HTTP/1.1", "authorization"),
        (ProviderKind::Anthropic, "/v1/messages?beta=true&key=x", "POST /v1/messages?beta=true HTTP/1.1", "x-api-key"),
        (ProviderKind::Anthropic, "/messages/count_tokens", "POST /v1/messages/count_tokens HTTP/1.1", "x-api-key"),
        (
            ProviderKind::Gemini,
            "/v1beta/models/g:generateContent?key=worthless",
            "POST /v1beta/models/real-model:generateContent HTTP/1.1",
            "x-goog-api-key",
        ),
    ] {
        let answered = answer(
            200,
            "content-type: application/json\r\nset-cookie: a=b\r\nx-request-id: r1\r\nserver: secret\r\n",
            "{\"input_tokens\": 1}",
        );
        let world = World::new(kind, vec![answered]);
        let headers = [
            ("authorization", "Bearer worthless"),
            ("cookie", "a=b"),
            ("anthropic-beta", "a,b"),
            ("x-forwarded-for", "10.0.0.1"),
        ];
        let got = world.program().await.send(http::Method::POST, path, &headers, "{\"model\":\"m\"}").await;
        let got = crate::world::Answer::read(got).await;
        assert_eq!(got.header("x-request-id"), "r1");
        assert_eq!(got.header("content-type"), "application/json");
        assert!(!got.headers.contains_key("set-cookie") && !got.headers.contains_key("server"));
        let received = world.provider.request(0);
        assert_eq!(received.line(), line);
        assert_eq!(received.header("host"), Some("stub.example"));
        assert!(received.header(key).unwrap().ends_with(KEY), "{path}");
        assert_eq!(received.header("anthropic-beta"), Some("a,b"));
        let head = received.head.to_ascii_lowercase();
        assert!(!head.contains("worthless") && !head.contains("cookie") && !head.contains("10.0.0.1"), "{head}");
        let call = world.around.calls.lock().unwrap()[0].clone();
        assert_eq!(call.key.as_deref(), Some("worthless"));
        let is_count = path.contains("count_tokens");
        assert_eq!(call.operation == Operation::CountTokens, is_count);
        let record = world.record().await;
        assert_eq!(record.end, CallEnd::Complete);
        assert!(!is_count || (record.error.is_none() && record.usage.is_none()), "{record:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn usage_that_only_the_gateway_asked_for_is_not_passed_on() {
    let sample = &samples()[0];
    let world = World::new(ProviderKind::Openai, stream(sample.events));
    let got = world.call("/v1/chat/completions", r#"{"model":"m","stream":true,"messages":[]}"#).await;
    let asked: Value = serde_json::from_slice(&world.provider.request(0).body).unwrap();
    assert_eq!(asked["stream_options"]["include_usage"], true);
    let usage = sample.events.split_inclusive("\n\n").find(|event| event.contains("usage")).unwrap();
    assert_eq!(got.body, sample.events.replace(usage, ""));
    assert_eq!(world.record().await.usage.unwrap().input_tokens, 3);
}

#[tokio::test(start_paused = true)]
async fn each_event_passes_at_once() {
    for sample in samples() {
        let gate = Arc::new(Notify::new());
        let (first, second) = sample.events.split_at(sample.cut);
        let steps = vec![send(STREAM_HEAD), send(first), Step::Gate(gate.clone()), send(second), Step::Close];
        let world = World::new(sample.kind, steps);
        let (path, request) = sample.asking(true);
        let mut program = world.program().await;
        let mut response = program.post(&path, &request).await;
        let mut got = String::new();
        while got.len() < first.len() {
            got.push_str(&piece(&mut response).await.unwrap());
        }
        assert_eq!(got, first, "all of it is here before anything more is sent");
        gate.notify_one();
        while let Some(more) = piece(&mut response).await {
            got.push_str(&more);
        }
        assert_eq!(got, sample.events);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_in_the_dialect() {
    for sample in samples() {
        let world = World::new(sample.kind, vec![]);
        *world.around.refusal.lock().unwrap() = Some(Refusal {
            status: StatusCode::TOO_MANY_REQUESTS,
            code: "budget_exceeded",
            message: "the budget is used up".into(),
            retry_after: Some(std::time::Duration::from_millis(1500)),
        });
        let (path, request) = sample.asking(true);
        let got = world.call(&path, &request).await;
        assert_eq!((got.status.as_u16(), got.header("retry-after")), (429, "2"));
        assert_eq!(got.json()["error"]["message"], "the budget is used up", "{path}");
        world.nothing_more().await;
        assert_eq!(world.provider.attempts(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn models_are_listed_in_the_form_of_who_asks() {
    let world = World::new(ProviderKind::Openai, vec![]);
    let mut program = world.program().await;
    let anthropic = [("anthropic-version", "2023-06-01")];
    let openai = program.get("/v1/models", &[]).await.json();
    assert_eq!(openai["object"], "list");
    assert_eq!(openai["data"][0], value!({"id": "gpt-4", "object": "model", "created": 0, "owned_by": "stub"}));
    let messages = program.get("/v1/models", &anthropic).await.json();
    assert_eq!(messages["data"][1]["type"], "model");
    assert_eq!((&messages["has_more"], &messages["first_id"]), (&value!(false), &value!("gpt-4")));
    let gemini = program.get("/v1beta/models", &[]).await.json();
    assert_eq!(gemini["models"][0]["name"], "models/gpt-4");
    for path in ["/v1/models/gpt-4", "/models/gpt-4"] {
        assert_eq!(program.get(path, &[]).await.json()["id"], "gpt-4");
    }
    assert_eq!(program.get("/v1/models/vendor%2Fsmall", &[]).await.json()["id"], "stub/vendor/small");
    let none = program.get("/v1/models/none", &anthropic).await;
    assert_eq!((none.status.as_u16(), &none.json()["type"]), (404, &value!("error")));
    assert_eq!(program.get("/", &[]).await.status, StatusCode::OK);
    let nowhere = program.get("/v1/files", &[]).await;
    assert_eq!(nowhere.status, StatusCode::NOT_FOUND);
    assert_eq!(nowhere.json()["error"]["code"], "not_found");
}

#[tokio::test(start_paused = true)]
async fn tokens_are_estimated_where_nobody_counts_them() {
    let world = World::new(ProviderKind::Openai, vec![]);
    let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{}"}}]}}"#, "x".repeat(400));
    let got = world.call("/v1/messages/count_tokens", &body).await;
    assert_eq!(got.json()["input_tokens"], body.len().div_ceil(4));
    assert_eq!(world.provider.attempts(), 0);
    assert_eq!(world.record().await.end, CallEnd::Complete);
}

#[tokio::test(start_paused = true)]
async fn what_a_provider_cannot_be_asked_is_refused() {
    for (kind, path) in [
        (ProviderKind::Gemini, "/v1/chat/completions"),
        (ProviderKind::Gemini, "/v1/messages"),
        (ProviderKind::Openai, "/v1beta/models/g:generateContent"),
        (ProviderKind::Replay, "/v1beta/models/g:streamGenerateContent"),
    ] {
        let world = World::new(kind, vec![]);
        let got = world.call(path, r#"{"model":"m"}"#).await;
        assert_eq!(got.status, StatusCode::BAD_REQUEST, "{path}");
        assert_eq!(world.record().await.end, CallEnd::Failed);
    }
}

#[tokio::test(start_paused = true)]
async fn connections_are_used_again() {
    let world = World::new(ProviderKind::Openai, vec![json(200, samples()[0].answer)]);
    let mut program = world.program().await;
    for _ in 0..20 {
        let got = program.call("/v1/chat/completions", r#"{"model":"m","messages":[]}"#).await;
        assert_eq!(got.status, StatusCode::OK);
        assert_eq!(world.record().await.end, CallEnd::Complete);
    }
    assert_eq!(world.provider.connections.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn the_program_around_calls_like_a_program_inside() {
    use http_body_util::BodyExt as _;
    let sample = &samples()[0];
    let world = World::new(sample.kind, stream(sample.events));
    let body = sample.asking(true).1;
    let response = world.gateway.call(crate::world::container(), "turn-7", body.into()).await;
    let got = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(got, sample.events);
    let call = world.around.calls.lock().unwrap()[0].clone();
    assert_eq!((call.key.as_deref(), call.dialect), (Some("turn-7"), Dialect::ChatCompletions));
    assert_eq!(world.record().await.end, CallEnd::Complete);
    // Dropped, it ends.
    let world = World::new(sample.kind, vec![send(STREAM_HEAD), send(&sample.events[..sample.cut]), Step::Hang]);
    let response = world.gateway.call(crate::world::container(), "k", sample.asking(true).1.into()).await;
    drop(response);
    world.provider.until_closed(1).await;
    assert_eq!(world.record().await.end, CallEnd::ClientGone);
}
