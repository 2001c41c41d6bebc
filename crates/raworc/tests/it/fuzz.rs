//! Random requests: each is answered as the OpenAPI document says.

use serde_json::{Value, json};

use crate::bad_input::{NO_SUCH_ID, still_session};
use crate::raw::{encoded, send};
use crate::server_or_skip;

/// xorshift64: the same numbers in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

#[tokio::test]
async fn whatever_is_sent_is_answered_as_the_document_says() {
    let server = server_or_skip!();
    let id = still_session(&server, "target").await;
    let (_, document) = server.get("/openapi.json").await;
    let mut numbers = Numbers(0x5eed_0000_0000_0001);
    let long = "x".repeat(5000);
    let segments =
        [id.as_str(), "target", "shell", "admin", "nobody", NO_SUCH_ID, "a\0", "größe 💥", "..", "a/b", "%", &long];
    let words =
        ["", "0", "-1", "1", "x", "true", "null", "READY", "done", "1e9", "9999999999999999999999", "a&b=c", "\0"];
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1),
        json!(1.5),
        json!(1e300),
        json!(u64::MAX),
        json!(""),
        json!("shell"),
        json!("exit 3"),
        json!("a\0b"),
        json!("\u{feff}\u{202e}💥"),
        json!(NO_SUCH_ID),
        json!([]),
        json!(["shell"]),
        json!([["x"]]),
        json!({}),
        json!({ "A": "x" }),
        json!({ "cpu": 1, "memory": "64Mi", "pids": 32 }),
        json!({ "timeout_seconds": 1 }),
    ];
    let mut operations: Vec<(String, String, Value)> = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let methods = item.as_object().unwrap().iter();
        operations.extend(methods.map(|(method, operation)| (path.clone(), method.to_uppercase(), operation.clone())));
    }
    assert!(operations.len() >= 38, "{}", operations.len());
    for round in 0..8 {
        for (path, method, operation) in &operations {
            let mut target = path.trim_start_matches("/api/v0").to_owned();
            while let Some((before, rest)) = target.clone().split_once('{') {
                let (_, after) = rest.split_once('}').unwrap();
                target = format!("{before}{}{after}", encoded(numbers.pick::<&str>(&segments)));
            }
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let (mut query, mut headers) = (Vec::new(), Vec::new());
            for parameter in &parameters {
                let (name, value) = (parameter["name"].as_str().unwrap(), *numbers.pick(&words));
                match parameter["in"].as_str().unwrap() {
                    "query" if numbers.below(2) == 0 => query.push(format!("{name}={}", encoded(value))),
                    "header" if numbers.below(2) == 0 && value != "\0" => headers.push(format!("{name}: {value}")),
                    _ => {}
                }
            }
            if !query.is_empty() {
                target = format!("{target}?{}", query.join("&"));
            }
            let body = body(&document, operation, &mut numbers, &values);
            let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
            let answer = send(&server, method, &target, &headers, body.as_bytes());
            let context = format!("round {round}: {method} {target} {headers:?} {body} → {}", answer.status);
            assert!(answer.status < 500, "{context}");
            assert!(operation["responses"][answer.status.to_string()].is_object(), "{context}: not documented");
            if answer.status >= 400 {
                answer.must_be_problem(answer.status, answer.json()["code"].as_str().unwrap(), &context);
            }
        }
    }
}

/// A body with this operation's fields and random values.
fn body(document: &Value, operation: &Value, numbers: &mut Numbers, values: &[Value]) -> String {
    let content = &operation["requestBody"]["content"]["application/json"];
    let Some(reference) = content["schema"]["$ref"].as_str() else {
        return String::new();
    };
    let schema = document.pointer(reference.trim_start_matches('#')).unwrap();
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let mut fields = serde_json::Map::new();
    for (name, _) in schema["properties"].as_object().unwrap() {
        let is_required = required.iter().any(|other| other == name);
        if is_required || numbers.below(4) == 0 {
            fields.insert(name.clone(), numbers.pick(values).clone());
        }
    }
    Value::Object(fields).to_string()
}
