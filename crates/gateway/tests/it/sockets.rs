//! The client's own connections: real sockets, on this machine.

use std::sync::Arc;
use std::time::Duration;

use raworc_core::models::ProviderKind;
use raworc_gateway::Gateway;
use raworc_gateway::ports::Target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::world::{World, samples};

/// A provider that gives one answer on each connection, whatever is asked.
async fn listener(answer: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = [0; 4096];
            let _ = stream.read(&mut bytes).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    port
}

fn target(base_url: String) -> (Arc<Gateway>, Target) {
    let world = World::new(ProviderKind::Openai, vec![]);
    let mut target = world.around.target.lock().unwrap().clone();
    target.base_url = base_url;
    target.timeout = Duration::from_secs(20);
    (Arc::new(Gateway::new(world.around.clone()).unwrap()), target)
}

#[tokio::test]
async fn a_provider_by_its_address_and_by_its_name() {
    let body = samples()[0].answer;
    let port = listener(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await;
    for host in ["127.0.0.1", "localhost"] {
        let (gateway, target) = target(format!("http://{host}:{port}/v1"));
        let report = gateway.probe(&target).await.unwrap();
        assert!(report.duration < Duration::from_secs(20));
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_connection_is_told_apart() {
    let plain = listener("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n".into()).await;
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    for (base_url, expected) in [
        (format!("https://127.0.0.1:{plain}"), "TLS fails: "),
        (format!("http://127.0.0.1:{nobody}"), "there is no connection to base_url: its connection is refused"),
        (concat!("http:", "//no-such-name.invalid").into(), "the host of base_url has no address"),
        ("not a url".into(), "it has a base_url that cannot be used"),
    ] {
        let (gateway, target) = target(base_url);
        let error = gateway.probe(&target).await.unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}
