//! Registries that are slow, wrong or hostile.

use std::fs;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use raworc_oci::{Digest, Error, Image, Layout, Options, Reference, Registry};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::registries::{image, quick, quiet, registry};
use crate::support::able;

/// A server that gives `answer` to each request and closes the connection; records all heads.
async fn liar(
    answer: impl Fn(&str) -> String + Send + 'static,
) -> (std::net::SocketAddr, std::sync::Arc<Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heads = std::sync::Arc::new(Mutex::new(Vec::new()));
    let seen = std::sync::Arc::clone(&heads);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let head = head_of(&mut stream).await;
            let _ = stream.write_all(answer(&head).as_bytes()).await;
            seen.lock().unwrap().push(head);
        }
    });
    (address, heads)
}

/// The head of a request, as far as it comes.
async fn head_of(stream: &mut tokio::net::TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { break };
        head.push(byte);
    }
    String::from_utf8_lossy(&head).into_owned()
}

fn respond(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

#[tokio::test]
async fn credentials_go_to_the_registry_and_its_server_of_tokens_only() {
    let layout = tempfile::tempdir().unwrap();
    let layout = Layout::open(layout.path()).unwrap();
    let (elsewhere, elsewhere_heads) = liar(|_| respond("200 OK", "", "{}")).await;
    let (tokens, token_heads) = liar(|_| respond("200 OK", "", r#"{"token": "a-token"}"#)).await;
    let (address, heads) = liar(move |head| {
        if head.to_lowercase().contains("authorization: bearer a-token") {
            respond("307 Temporary Redirect", &format!("Location: http://{elsewhere}/blob\r\n"), "")
        } else {
            let challenge =
                format!("WWW-Authenticate: Bearer realm=\"http://{tokens}/token\",service=\"s\",scope=\"x y\"\r\n");
            respond("401 Unauthorized", &challenge, "")
        }
    })
    .await;
    let outcome = registry(address, "image", Some("secret")).pull(&layout, &quiet).await;
    assert!(matches!(outcome, Err(Error::BadImage(_))), "{outcome:?}");
    assert_eq!(heads.lock().unwrap().len(), 2);
    assert!(!heads.lock().unwrap()[0].to_lowercase().contains("authorization"), "nothing is shown unasked");
    let token_heads = token_heads.lock().unwrap();
    assert!(token_heads[0].starts_with("GET /token?service=s&scope=x+y HTTP"), "{token_heads:?}");
    assert!(token_heads[0].to_lowercase().contains("authorization: basic dxnlcjpzzwnyzxq="), "{token_heads:?}");
    let elsewhere_heads = elsewhere_heads.lock().unwrap();
    assert_eq!(elsewhere_heads.len(), 1);
    assert!(!elsewhere_heads[0].to_lowercase().contains("authorization"), "{elsewhere_heads:?}");
}

#[tokio::test]
async fn a_busy_registry_is_asked_again_when_it_says_and_not_for_ever() {
    let scratch = tempfile::tempdir().unwrap();
    let layout = Layout::open(scratch.path()).unwrap();
    let (address, heads) = liar(|_| respond("429 Too Many Requests", "Retry-After: 1\r\n", "")).await;
    let reference: Reference = format!("{address}/image").parse().unwrap();
    let began = Instant::now();
    let outcome = Registry::new(reference, None, Options { tries: 2, ..quick() }).unwrap().pull(&layout, &quiet).await;
    assert!(matches!(outcome, Err(Error::Unreachable { tries: 2, .. })), "{outcome:?}");
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(heads.lock().unwrap().len(), 2);
    let (address, heads) =
        liar(|_| respond("400 Bad Request", "", r#"{"errors":[{"code":"NO","message":"never\u0007"}]}"#)).await;
    let outcome = registry(address, "image", None).pull(&layout, &quiet).await;
    assert!(matches!(&outcome, Err(Error::Refused { status: 400, why }) if why.ends_with("NO: never ")), "{outcome:?}");
    assert_eq!(heads.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_registry_that_lies_is_found_out() {
    let scratch = tempfile::tempdir().unwrap();
    let layout = Layout::open(scratch.path()).unwrap();
    let other = Digest::of(b"other");
    let endless = format!("{{\"a\": \"{}\"}}", "x".repeat(5 << 20));
    let config = |size: u64| {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{other}","size":{size}}},"layers":[]}}"#
        )
    };
    let small = config(5);
    let large = config(5 << 30);
    for (name, body) in [("endless", endless), ("other", "{}".into()), ("small", small), ("large", large)] {
        let (address, _) =
            liar(
                move |head| {
                    if head.contains("/blobs/") { respond("200 OK", "", "0ther") } else { respond("200 OK", "", &body) }
                },
            )
            .await;
        let reference = if name == "other" { format!("image@{other}") } else { "image".into() };
        let outcome = registry(address, &reference, None).pull(&layout, &quiet).await;
        match name {
            "endless" | "large" => assert!(matches!(outcome, Err(Error::TooLarge(_))), "{name}: {outcome:?}"),
            _ => assert!(matches!(outcome, Err(Error::Damaged { digest }) if digest == other), "{name}: {outcome:?}"),
        }
    }
    assert_eq!(layout.size(&other).unwrap(), None);
}

#[tokio::test]
async fn a_registry_that_does_not_stop_is_cut_off() {
    let scratch = tempfile::tempdir().unwrap();
    let layout = Layout::open(scratch.path()).unwrap();
    let digest = Digest::of(b"other");
    let body = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":5}},"layers":[]}}"#
    );
    // Without a length, an answer ends with its connection.
    let (address, _) = liar(move |head| {
        if head.contains("/blobs/") {
            format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nother{}", "x".repeat(100))
        } else {
            respond("200 OK", "", &body)
        }
    })
    .await;
    let outcome = registry(address, "image", None).pull(&layout, &quiet).await;
    assert!(matches!(outcome, Err(Error::TooLarge(_))), "{outcome:?}");
    assert_eq!(layout.size(&digest).unwrap(), None);
}

/// A registry that follows the specification, for one upload. It breaks the connection of each chunk but the last
/// after `most` bytes. Returns the data, and how many bytes came in.
async fn by_the_book(most: usize) -> (std::net::SocketAddr, std::sync::Arc<Mutex<(Vec<u8>, usize)>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let state = std::sync::Arc::new(Mutex::new((Vec::new(), 0)));
    let shared = std::sync::Arc::clone(&state);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let head = head_of(&mut stream).await.to_lowercase();
            let field =
                |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
            let length: usize = field("content-length:").and_then(|value| value.parse().ok()).unwrap_or(0);
            let is_blob = head.starts_with("put /up");
            let mut body = vec![0; if head.starts_with("patch") { length.min(most) } else { length }];
            if stream.read_exact(&mut body).await.is_err() {
                continue;
            }
            let (has, answer) = {
                let mut state = shared.lock().unwrap();
                state.1 += body.len();
                if head.starts_with("patch") {
                    let range = format!("{}-{}", state.0.len(), state.0.len() + length - 1);
                    assert_eq!(field("content-range:"), Some(range), "it goes on where we said");
                }
                if head.starts_with("patch") || is_blob {
                    state.0.extend_from_slice(&body);
                }
                (state.0.len(), body.len() == length)
            };
            let range = format!("Location: /up\r\nRange: 0-{}\r\n", has.max(1) - 1);
            let status = match head.split(' ').next().unwrap() {
                "head" => "404 Not Found",
                "post" | "patch" => "202 Accepted",
                "get" => "204 No Content",
                _ => "201 Created",
            };
            if answer {
                let _ = stream.write_all(respond(status, &range, "").as_bytes()).await;
            }
        }
    });
    (address, state)
}

#[tokio::test]
async fn an_upload_goes_on_where_the_registry_says() {
    if !able(&[]) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (layout, manifest) = image(scratch.path(), 5 << 20);
    // One blob, so that all that comes is of it: the rest is small, and goes to the same place in the end.
    let image = Image::load(&layout, &manifest.digest).unwrap();
    let large = Image { layers: vec![image.layers[1].clone()], ..Image::default() }.store(&layout).unwrap();
    let size = usize::try_from(image.layers[1].blob.size).unwrap();
    let (address, state) = by_the_book(700_000).await;
    registry(address, "image", None).push(&layout, &large.digest, &quiet).await.unwrap();
    let state = state.lock().unwrap();
    assert!(
        state.0[..size] == fs::read(layout.path(&image.layers[1].blob.digest)).unwrap(),
        "what arrived is what was sent"
    );
    assert!(state.1 < size + 10_000, "nothing was sent twice: {} for {size}", state.1);
}

#[tokio::test]
async fn a_registry_that_never_has_more_is_given_up() {
    if !able(&[]) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (layout, manifest) = image(scratch.path(), 5 << 20);
    let (address, _) = liar(|head| match head.split(' ').next() {
        Some("POST" | "PATCH") => respond("202 Accepted", "Location: /up\r\nRange: 0-0\r\n", ""),
        _ => respond("404 Not Found", "", ""),
    })
    .await;
    let image = Image::load(&layout, &manifest.digest).unwrap();
    let large = Image { layers: vec![image.layers[1].clone()], ..Image::default() }.store(&layout).unwrap();
    let outcome = registry(address, "image", None).push(&layout, &large.digest, &quiet).await;
    assert!(matches!(outcome, Err(Error::Unreachable { .. })), "{outcome:?}");
}
