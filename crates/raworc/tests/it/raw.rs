//! Requests sent byte by byte, for malformed ones, and answers with all headers.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use serde_json::Value;

use crate::harness::{PATIENCE, TestServer};

/// A complete answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(other, _)| other == name).map_or("", |(_, value)| value)
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The fields at fault, of a problem.
    pub fn fields(&self) -> Vec<String> {
        let problem = self.json();
        let errors = problem["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().map(|error| error["field"].as_str().unwrap().to_owned()).collect()
    }

    /// Checks that this is a problem document as API.md promises it.
    pub fn must_be_problem(&self, status: u16, code: &str, context: &str) {
        let problem = self.json();
        assert_eq!((self.status, &problem["code"]), (status, &Value::from(code)), "{context}: {problem:#}");
        assert_eq!(self.header("content-type"), "application/problem+json", "{context}");
        assert_eq!(problem["status"], status, "{context}");
        for member in ["type", "title", "detail"] {
            let text = problem[member].as_str().unwrap_or_default();
            assert!(!text.is_empty(), "{context}: no {member}");
            assert!(!text.contains("sqlite") && !text.contains("src/"), "{context}: internal text: {text}");
        }
        match status {
            401 => assert_eq!(self.header("www-authenticate"), "Bearer", "{context}"),
            405 => assert_ne!(self.header("allow"), "", "{context}"),
            429 | 503 => assert_ne!(self.header("retry-after"), "", "{context}"),
            _ => {}
        }
    }
}

/// Sends exactly this, on a connection of its own, and reads until the server has answered and closed.
pub fn exchange(server: &TestServer, request: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(server.url.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // A server that has heard enough may answer and close before it has read everything.
    let _ = stream.write_all(request);
    parse(stream)
}

/// As [`exchange`], but the client closes its side first: the body ends before its time.
pub fn exchange_cut(server: &TestServer, request: &[u8]) {
    let mut stream = TcpStream::connect(server.url.trim_start_matches("http://")).unwrap();
    stream.write_all(request).unwrap();
    stream.shutdown(Shutdown::Both).unwrap();
}

fn parse(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no answer: {read:?} {:?}", String::from_utf8_lossy(&bytes)));
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let mut headers: Vec<(String, String)> = lines.filter_map(field).collect();
    let mut body = bytes.split_off(end + 4);
    if headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked") {
        let (whole, trailers) = unchunk(&body);
        headers.extend(String::from_utf8_lossy(trailers).lines().filter_map(field));
        body = whole;
    }
    Answer { status, headers, body }
}

fn field(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    Some((name.to_ascii_lowercase(), value.trim().to_owned()))
}

/// The body, and the trailers behind it.
fn unchunk(mut bytes: &[u8]) -> (Vec<u8>, &[u8]) {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap().trim(), 16).unwrap();
        let start = end + 2;
        if size == 0 {
            return (body, &bytes[start..]);
        }
        body.extend_from_slice(&bytes[start..start + size]);
        bytes = &bytes[start + size + 2..];
    }
    (body, b"")
}

/// A request to `target` (below `/api/v0`) as the administrator, with a JSON body unless `body` is empty.
pub fn send(server: &TestServer, method: &str, target: &str, headers: &[&str], body: &[u8]) -> Answer {
    let token = format!("authorization: Bearer {}", server.token);
    let mut all = vec![token.as_str()];
    if !headers.iter().any(|line| line.starts_with("content-type")) && !body.is_empty() {
        all.push("content-type: application/json");
    }
    all.extend_from_slice(headers);
    exchange(server, &request(method, target.as_bytes(), &all, Some(body)))
}

/// The bytes of a request; without a body, none is announced.
pub fn request(method: &str, target: &[u8], headers: &[&str], body: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = format!("{method} /api/v0").into_bytes();
    bytes.extend_from_slice(target);
    bytes.extend_from_slice(b" HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
    for line in headers.iter().filter(|line| !line.is_empty()) {
        bytes.extend_from_slice(line.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    if let Some(body) = body {
        bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
        bytes.extend_from_slice(body);
    } else {
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// A text in a path or query: everything but letters and digits encoded.
pub fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() || byte == b'-' {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}
