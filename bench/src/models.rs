//! Calls of models from inside of a session, beside the same calls of the same provider from outside; and what a step of an agent costs.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::report::{Report, Samples};
use crate::server::Server;

/// Bytes of a long answer, in events of [`EVENT_BYTES`].
const LONG_BYTES: usize = 16 << 20;
const EVENT_BYTES: usize = 4096;
/// Long answers that are measured.
const LONG_ROUNDS: usize = 5;
/// Steps of an agent, in each of which it uses a tool.
const STEPS: usize = 50;

/// A provider that answers at once. A model named `long` answers with a long stream; `steps` calls a tool so many times; others say a word.
struct Stub {
    url: String,
    task: JoinHandle<()>,
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Stub {
    async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/v1", listener.local_addr()?);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
        Ok(Self { url, task })
    }
}

async fn serve(stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let head = head.to_lowercase();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            .await?;
        for event in answer(&body) {
            stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await?;
        }
        stream.write_all(b"0\r\n\r\n").await?;
    }
}

/// The events of an answer.
fn answer(request: &Value) -> Vec<String> {
    let chunk = |delta: Value, reason: Value| {
        format!("data: {}\n\n", json!({ "choices": [{ "index": 0, "delta": delta, "finish_reason": reason }] }))
    };
    let results =
        request["messages"].as_array().map_or(0, |all| all.iter().filter(|message| message["role"] == "tool").count());
    let mut events = match request["model"].as_str() {
        Some("long") => {
            vec![chunk(json!({ "content": "x".repeat(EVENT_BYTES) }), Value::Null); LONG_BYTES / EVENT_BYTES]
        }
        Some("steps") if results < STEPS => {
            let call = json!({ "index": 0, "id": "c", "type": "function", "function": { "name": "list_files", "arguments": "{}" } });
            return vec![chunk(json!({ "tool_calls": [call] }), json!("tool_calls")), "data: [DONE]\n\n".to_owned()];
        }
        _ => vec![chunk(json!({ "content": "word" }), Value::Null)],
    };
    events.extend([chunk(json!({}), json!("stop")), "data: [DONE]\n\n".to_owned()]);
    events
}

/// A script that calls a model so many times over one connection, and writes a figure of curl's of each.
fn script(url: &str, model: &str, (rounds, figure): (usize, &str)) -> String {
    let body = json!({ "model": model, "stream": true, "messages": [{ "role": "user", "content": "a word" }] });
    let urls = vec![format!("-o /dev/null {url}/chat/completions"); rounds].join(" ");
    format!("curl -sS -w '%{{{figure}}}\\n' -H 'content-type: application/json' -d '{body}' {urls}")
}

fn seconds(output: &str) -> anyhow::Result<Vec<f64>> {
    output.lines().map(|line| line.parse().with_context(|| format!("not a time: {line:?}"))).collect()
}

/// Runs a script on this machine.
async fn outside(script: String) -> anyhow::Result<Vec<f64>> {
    let output = tokio::task::spawn_blocking(move || Command::new("sh").args(["-c", &script]).output()).await??;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    seconds(&String::from_utf8_lossy(&output.stdout))
}

/// Runs it in a session.
async fn inside(server: &Server, id: &str, script: &str) -> anyhow::Result<Vec<f64>> {
    let ran = server.http().await?.post(&format!("/sessions/{id}/exec"), &json!({ "command": script })).await?;
    ensure!(ran["exit_code"] == 0, "{ran}");
    seconds(ran["stdout"].as_str().unwrap_or_default())
}

/// Measures the first byte of short answers, the throughput of long ones, and the steps of an agent.
pub async fn measure(server: &Server, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let stub = Stub::start().await?;
    let mut http = server.http().await?;
    http.post("/providers", &json!({ "name": "stub", "kind": "openai", "base_url": stub.url })).await?;
    let id = server.session(&json!({ "resources": { "cpu": 2.0 } })).await?;
    let (mut direct, mut through) = (Samples::default(), Samples::default());
    let (mut direct_long, mut through_long) = (Samples::default(), Samples::default());
    // Turn by turn, so that what else the machine does meets both.
    for round in 0..LONG_ROUNDS {
        let short = (rounds / LONG_ROUNDS + 2, "time_starttransfer");
        let samples = [
            (outside(script(&stub.url, "any", short)).await?, &mut direct),
            (inside(server, &id, &script("$OPENAI_BASE_URL", "stub/any", short)).await?, &mut through),
        ];
        for (times, samples) in samples {
            // The first ones make the connections.
            times.into_iter().skip(2).for_each(|time| samples.push(Duration::from_secs_f64(time)));
        }
        let long = (1, "time_total");
        let samples = [
            (outside(script(&stub.url, "long", long)).await?, &mut direct_long),
            (inside(server, &id, &script("$OPENAI_BASE_URL", "stub/long", long)).await?, &mut through_long),
        ];
        for (times, samples) in samples.into_iter().filter(|_| round > 0) {
            times.into_iter().for_each(|time| samples.push(Duration::from_secs_f64(time)));
        }
    }
    let added = through.quantile(0.5).saturating_sub(direct.quantile(0.5));
    let slower = through_long.quantile(0.5).as_secs_f64() / direct_long.quantile(0.5).as_secs_f64();
    report.times("a model's first byte, asked directly", direct);
    report.times("raworc: a model's first byte, asked from a session", through);
    report.times("16 MiB of a model's answer, directly", direct_long);
    report.times("raworc: 16 MiB of a model's answer, in a session", through_long);
    report.figure("the gateway adds to the first byte", added.as_secs_f64() * 1e3, "ms");
    report.figure("a long answer through the gateway, beside directly", slower, "times");
    server.delete(&id).await?;
    steps(server, report).await
}

/// An agent that uses a tool in each of its steps: what a step takes besides the model and the tool.
async fn steps(server: &Server, report: &mut Report) -> anyhow::Result<()> {
    let mut http = server.http().await?;
    http.post("/agents", &json!({ "name": "stepper", "runtime": "model", "model": "stub/steps" })).await?;
    let id = server.session(&json!({ "agent_ids": ["stepper"] })).await?;
    let ended = http.post(&format!("/sessions/{id}/messages?wait_seconds=120"), &json!({ "content": "go" })).await?;
    ensure!(ended["status"] == "done", "{ended}");
    let total = ended["reply"]["usage"]["duration_seconds"].as_f64().context("no duration")?;
    let page = http.get(&format!("/sessions/{id}/events?limit=500")).await?;
    let elsewhere: f64 = page["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|event| event["type"] == "model.called" || event["type"] == "tool.finished")
        .filter_map(|event| event["data"]["duration_seconds"].as_f64())
        .sum();
    report.figure("a step of an agent, besides model and tool", (total - elsewhere) / STEPS as f64 * 1e3, "ms");
    report.figure("a step of an agent, all in all", total / STEPS as f64 * 1e3, "ms");
    server.delete(&id).await
}
