//! The provider's key is in requests to the provider, and nowhere else.

use std::io;
use std::sync::{Arc, Mutex};

use raworc_core::models::ProviderKind;
use raworc_gateway::ports::ProviderKey;
use tracing_subscriber::fmt::MakeWriter;

use crate::world::{KEY, STREAM_HEAD, Step, World, answer, json, samples, send};

/// Keeps what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_a_provider_sends_back_goes_no_further() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(log.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let (half, rest) = KEY.split_at(7);
    let echo = format!("{{\"error\":{{\"message\":\"bad {KEY}\",\"code\":400}}}}");
    let header = format!("x-request-id: {KEY}\r\ncontent-type: application/json\r\n");
    let days: Vec<Vec<Step>> = vec![
        vec![answer(200, &header, &echo), Step::Close],
        vec![answer(400, &header, &echo), Step::Close],
        vec![answer(401, &header, &echo), Step::Close],
        vec![answer(500, &header, &echo), Step::Close],
        vec![answer(302, &format!("location: https://x.example/?key={KEY}\r\n"), ""), Step::Close],
        vec![answer(200, "", KEY), Step::Close],
        vec![send(KEY), Step::Close],
        vec![send(format!("HTTP/1.1 {KEY}\r\n\r\n")), Step::Close],
        vec![
            send(STREAM_HEAD),
            send(format!("data: {{\"x\":\"{half}")),
            send(format!("{rest}\"}}\n\ndata: {KEY}")),
            Step::Close,
        ],
        vec![send(STREAM_HEAD), send(format!("event: {KEY}\ndata: {echo}\n\n")), Step::Hang],
    ];
    for sample in samples() {
        for (number, day) in days.iter().enumerate() {
            for is_streaming in [false, true] {
                let world = World::new(sample.kind, day.clone());
                let (path, request) = sample.asking(is_streaming);
                let got = world.call(&path, &request).await;
                let told = format!("{:?} {}", got.headers, got.body);
                assert!(!told.contains(KEY), "day {number}, {path}: {told}");
                let record = world.record().await;
                let bytes = [&record.answer[..], &record.request[..]].concat();
                let recorded = format!("{record:?} {}", String::from_utf8_lossy(&bytes));
                assert!(!recorded.contains(KEY), "day {number}, {path}: {recorded}");
                let received = world.provider.request(0);
                assert!(received.head.contains(KEY), "the provider itself gets it");
                assert!(!received.line().contains(KEY), "but never in a URL");
            }
        }
    }
    let logged = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(logged.contains("stub"), "something was logged");
    assert!(!logged.contains(KEY), "{logged}");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_cannot_be_sent_is_not_told() {
    for key in ["sk-real-\n0123456789", "sk-real-\u{0}0123456789"] {
        let world = World::new(ProviderKind::Anthropic, vec![json(200, "{}")]);
        world.around.target.lock().unwrap().key = Some(ProviderKey(key.into()));
        let got = world.call("/v1/messages", r#"{"model":"m"}"#).await;
        assert_eq!(got.status.as_u16(), 502);
        assert!(!got.body.contains("sk-real") && !got.body.contains("012345"), "{}", got.body);
        assert_eq!(world.provider.attempts(), 0);
        assert!(!world.record().await.error.unwrap().contains("sk-real"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_provider_is_never_told_where_it_is() {
    // Neither host nor URL of a provider is in what programs get.
    for refused in [0, 100] {
        let world = World::new(ProviderKind::Openai, vec![Step::Close]);
        world.provider.refusing.store(refused, std::sync::atomic::Ordering::SeqCst);
        world.around.target.lock().unwrap().base_url = "http://secret-host.example/path?api-version=secret".into();
        let got = world.call("/v1/chat/completions", r#"{"model":"m"}"#).await;
        assert!(!got.body.contains("secret"), "{}", got.body);
        assert!(!world.record().await.error.unwrap().contains("secret"));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_probed_is_told_without_the_key() {
    let echo = format!("{{\"error\":{{\"message\":\"bad {KEY}\"}}}}");
    for (steps, expected) in [
        (vec![json(200, samples()[0].answer)], "ok"),
        (vec![json(401, &echo)], "it does not take the key (status 401)"),
        (vec![json(404, &echo)], "it has no model \"real-model\", or base_url leads elsewhere (status 404)"),
        (vec![json(429, &echo)], "it takes the key but allows no call now (status 429): bad [redacted]"),
        (vec![json(500, &echo)], "it answered with status 500: bad [redacted]"),
        (
            vec![answer(302, "", "")],
            "it redirects (status 302), which is not followed; an administrator has to correct its base_url",
        ),
        (vec![answer(200, "", "<html>")], "it sent no JSON"),
        (vec![Step::Hang], "nothing came within 20 seconds"),
        (vec![Step::Close], "it closed the connection without an answer"),
    ] {
        let world = World::new(ProviderKind::Openai, steps);
        let target = world.around.target.lock().unwrap().clone();
        let told = match world.gateway.probe(&target).await {
            Ok(report) => {
                assert_eq!(report.models, None);
                "ok".to_owned()
            }
            Err(error) => error.to_string(),
        };
        assert_eq!(told, expected);
    }
    let world = World::new(ProviderKind::Openai, vec![json(200, r#"{"data":[{"id":"a"},{"id":"b"}]}"#)]);
    let mut target = world.around.target.lock().unwrap().clone();
    target.model = String::new();
    assert_eq!(world.gateway.probe(&target).await.unwrap().models, Some(2));
    assert_eq!(world.provider.request(0).line(), "GET /v1/models HTTP/1.1");
    world.provider.refusing.store(1, std::sync::atomic::Ordering::SeqCst);
    let world = World::new(ProviderKind::Openai, vec![]);
    world.provider.refusing.store(1, std::sync::atomic::Ordering::SeqCst);
    let error = world.gateway.probe(&target).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no connection to base_url: its connection is refused");
}
