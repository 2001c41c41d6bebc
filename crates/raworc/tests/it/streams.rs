//! Event streams, as followed by `EventSource` in browsers, and content negotiation.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{PATIENCE, TestServer, eventually};
use crate::raw::{exchange, request};
use crate::server_or_skip;

/// A connection of an `EventSource` (HTML, section 9.2), which sends the last id with the same URL.
struct EventSource {
    url: String,
    last_event_id: String,
    retry: Option<u64>,
}

/// The result of a connection.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// It was closed after the wanted number of events.
    Cut,
    /// The server closed it, so an `EventSource` reconnects.
    Ended,
    /// The server rejected it with this status, so an `EventSource` does not reconnect.
    Closed(u16),
}

impl EventSource {
    fn new(url: String) -> Self {
        Self { url, last_event_id: String::new(), retry: None }
    }

    /// Connects and reads up to `count` events.
    fn connect(&mut self, server: &TestServer, count: usize) -> (Vec<(u64, Value)>, Outcome) {
        let mut stream = TcpStream::connect(server.url.trim_start_matches("http://")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let id = match self.last_event_id.as_str() {
            "" => String::new(),
            id => format!("last-event-id: {id}\r\n"),
        };
        // HTTP/1.0, so that the body comes as it is.
        let head = format!(
            "GET /api/v0{} HTTP/1.0\r\nhost: x\r\nauthorization: Bearer {}\r\naccept: text/event-stream\r\n\
             cache-control: no-store\r\n{id}\r\n",
            self.url, server.token
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let status: u16 = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        lines.by_ref().take_while(|line| !line.is_empty()).for_each(drop);
        if status != 200 {
            return (Vec::new(), Outcome::Closed(status));
        }
        let (mut events, mut id, mut data) = (Vec::new(), String::new(), String::new());
        while events.len() < count {
            let Some(line) = lines.next() else { return (events, Outcome::Ended) };
            match line.split_once(": ").unwrap_or((line.as_str(), "")) {
                ("id", value) => id = value.to_owned(),
                ("data", value) => data.push_str(value),
                ("retry", value) => self.retry = Some(value.parse().unwrap()),
                ("", _) if data.is_empty() => {}
                ("", "") => {
                    assert!(!id.is_empty(), "every event has an id");
                    self.last_event_id = std::mem::take(&mut id);
                    let event: Value = serde_json::from_str(&std::mem::take(&mut data)).unwrap();
                    assert_eq!(event["seq"].to_string(), self.last_event_id);
                    events.push((event["seq"].as_u64().unwrap(), event));
                }
                _ => {}
            }
        }
        (events, Outcome::Cut)
    }
}

#[tokio::test]
async fn an_event_source_that_connects_again_continues_exactly() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    server.output(&id, "for n in 1 2 3 4 5; do echo $n; sleep 0.02; done").await;
    let all: Vec<u64> = server.events(&id).await.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    let last = *all.last().unwrap();
    for (query, begin) in [("", 0), ("?after=0", 0), ("?after=2", 2), ("?after=1&limit=3", 1)] {
        for step in [1, 2, 3, all.len()] {
            let mut source = EventSource::new(format!("/sessions/{id}/events{query}"));
            let mut seen = Vec::new();
            while seen.last() != Some(&last) {
                let (events, outcome) = source.connect(&server, step.min((last - begin) as usize - seen.len()));
                assert_eq!(outcome, Outcome::Cut);
                seen.extend(events.into_iter().map(|(seq, _)| seq));
            }
            assert_eq!(seen, all[begin as usize..], "{query}, {step} at a time");
            assert!(source.retry.is_some());
        }
    }
    // The greater of the two counts, whichever it is.
    for (query, header, first) in [("?after=4", "2", 5), ("?after=2", "4", 5), ("?after=3", "", 4), ("", "3", 4)] {
        let mut source = EventSource::new(format!("/sessions/{id}/events{query}"));
        source.last_event_id = header.to_owned();
        assert_eq!(source.connect(&server, 1).0[0].0, first, "{query} {header:?}");
    }
}

#[tokio::test]
async fn a_stream_goes_on_over_a_restart_and_ends_with_its_session() {
    let mut server = server_or_skip!();
    let id = server.session(json!({})).await;
    let mut source = EventSource::new(format!("/sessions/{id}/events?after=0"));
    let (first, _) = source.connect(&server, 2);
    assert_eq!(first.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [1, 2]);
    server.stop();
    server.start_again();
    assert_eq!(server.output(&id, "echo again").await, "again\n");
    assert_eq!(server.delete(&format!("/sessions/{id}")).await.0, 200);
    let mut seen = vec![2];
    let mut outcome = Outcome::Cut;
    // It ends when all of it is told; what still comes, as the container ends, comes on the next connections.
    eventually("the browser is told not to come again", async || {
        let (events, ended) = source.connect(&server, usize::MAX);
        seen.extend(events.into_iter().map(|(seq, _)| seq));
        outcome = ended;
        outcome != Outcome::Ended
    })
    .await;
    assert_eq!(outcome, Outcome::Closed(204));
    assert_eq!(seen, (2..=seen.len() as u64 + 1).collect::<Vec<_>>(), "without a gap or a repeat");
    // The log stays readable.
    let (status, page) = server.get(&format!("/sessions/{id}/events?limit=500")).await;
    assert_eq!(status, 200);
    let kinds: Vec<&str> =
        page["items"].as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"session.deleted"), "{kinds:?}");
}

#[tokio::test]
async fn a_place_that_is_none_is_refused_and_one_to_come_is_waited_for() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let path = format!("/sessions/{id}/events");
    let token = format!("authorization: Bearer {}", server.token);
    for wrong in ["x", "-1", "+1", "1.0", "0x1", "1 2", "18446744073709551616", "99999", "größe"] {
        let header = format!("last-event-id: {wrong}");
        let headers = [token.as_str(), "accept: text/event-stream", header.as_str()];
        let answer = exchange(&server, &request("GET", path.as_bytes(), &headers, None));
        answer.must_be_problem(400, "invalid_request", wrong);
    }
    for wrong in ["x", "-1", "1.5", "18446744073709551616"] {
        let target = format!("{path}?after={wrong}");
        for accept in ["accept: text/event-stream", "accept: application/json"] {
            let answer = exchange(&server, &request("GET", target.as_bytes(), &[token.as_str(), accept], None));
            answer.must_be_problem(400, "invalid_request", wrong);
        }
    }
    // A page beyond the end is empty; as JSON, nobody resumes.
    let (status, page) = server.get(&format!("{path}?after=99999")).await;
    assert_eq!((status.as_u16(), page["items"].as_array().map(Vec::len)), (200, Some(0)), "{page}");
    let answer = server.request(Method::GET, &path).header("last-event-id", "x").send().await.unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn the_representation_is_the_one_that_is_wanted_most() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let (json, events) = ("application/json", "text/event-stream");
    for (accept, expected) in [
        (None, json),
        (Some("*/*"), json),
        (Some(events), events),
        (Some("text/html, application/json;q=0.9, text/event-stream;q=0.5, */*"), json),
        (Some("text/html, text/event-stream;q=0.9, application/json;q=0.5"), events),
        (Some("text/event-stream;q=0, */*"), json),
        (Some("application/json;q=0, */*;q=0.1"), events),
        (Some("text/event-streaming"), "problem"),
        (Some("image/png, text/html"), "problem"),
    ] {
        // Both calls that have more than one; what is pulled is from a registry that nobody is.
        for (method, path, body) in [
            (Method::GET, format!("/sessions/{id}/events"), None),
            (Method::POST, "/images".to_owned(), Some(json!({ "reference": "127.0.0.1:1/nothing" }))),
        ] {
            let mut request = server.request(method.clone(), &path);
            if let Some(accept) = accept {
                request = request.header("accept", accept);
            }
            if let Some(body) = &body {
                request = request.json(body);
            }
            let answer = request.send().await.unwrap();
            let content_type = answer.headers()["content-type"].to_str().unwrap().to_owned();
            let context = format!("{method} {path} {accept:?}: {} {content_type}", answer.status());
            match expected {
                "problem" => assert_eq!(answer.status(), 406, "{context}"),
                // What fails as JSON is a problem.
                "application/json" => assert!(content_type.ends_with("json"), "{context}"),
                _ => assert!(answer.status() == 200 && content_type.starts_with(expected), "{context}"),
            }
        }
    }
}
