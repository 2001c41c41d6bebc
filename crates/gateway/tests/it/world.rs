//! The world of a test: a program, the gateway, and a provider that keeps to a script.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use raworc_core::ids::{ContainerId, SessionId};
use raworc_core::models::ProviderKind;
use raworc_gateway::ports::{Admission, Call, CallRecord, ListedModel, Ports, ProviderKey, Refusal, Target};
use raworc_gateway::{Client, Gateway, Socket, serve_connection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The key that nobody may see.
pub const KEY: &str = "sk-real-0123456789abcdef";
/// What a connection in memory holds.
const PIPE_BYTES: usize = 16 * 1024;
/// The time of a provider, unless a test says otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// What a provider does after it has read a request.
#[derive(Clone)]
pub enum Step {
    /// Sends bytes.
    Send(Bytes),
    /// Waits until the test opens the gate.
    Gate(Arc<Notify>),
    /// Waits.
    Sleep(Duration),
    /// Sends the bytes of a function, piece by piece, until none is left.
    Stream(Arc<dyn Fn(usize) -> Option<Bytes> + Send + Sync>),
    /// Waits until the other side closes, and says so.
    Hang,
    /// Closes.
    Close,
}

pub fn send(text: impl Into<Bytes>) -> Step {
    Step::Send(text.into())
}

/// An answer with a length.
pub fn answer(status: u16, headers: &str, body: &str) -> Step {
    let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    send(head + body)
}

/// JSON.
pub fn json(status: u16, body: &str) -> Step {
    answer(status, "content-type: application/json\r\n", body)
}

/// The head of a stream without a length.
pub const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// A stream that ends well at its end.
pub fn stream(events: &str) -> Vec<Step> {
    vec![send(STREAM_HEAD), send(events.to_owned()), Step::Close]
}

/// A request as the provider has read it.
#[derive(Clone, Debug)]
pub struct Received {
    /// All of it up to the body.
    pub head: String,
    pub body: Bytes,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap()
    }
}

type Script = dyn Fn(usize, &Received) -> Vec<Step> + Send + Sync;

/// A provider.
pub struct Provider {
    script: Box<Script>,
    /// Connections that are refused before any is accepted.
    pub refusing: AtomicUsize,
    pub received: Mutex<Vec<Received>>,
    pub connections: AtomicUsize,
    /// Connections that the gateway has closed while the provider was hanging or sending.
    pub closed: watch::Sender<usize>,
    /// Bytes that were taken from the provider.
    pub sent: AtomicUsize,
}

impl Provider {
    fn connect(self: &Arc<Self>) -> io::Result<DuplexStream> {
        let refusing = self.refusing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if refusing.is_ok() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        self.connections.fetch_add(1, Ordering::SeqCst);
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let provider = self.clone();
        tokio::spawn(async move { provider.serve(theirs).await });
        Ok(ours)
    }

    async fn serve(self: Arc<Self>, mut io: DuplexStream) {
        while let Some(received) = read_request(&mut io).await {
            let number = {
                let mut all = self.received.lock().unwrap();
                all.push(received.clone());
                all.len() - 1
            };
            for step in (self.script)(number, &received) {
                if !self.carry_out(step, &mut io).await {
                    return;
                }
            }
        }
    }

    /// Whether the connection goes on.
    async fn carry_out(&self, step: Step, io: &mut DuplexStream) -> bool {
        match step {
            Step::Send(bytes) => self.send(io, &bytes).await,
            Step::Gate(gate) => {
                let mut byte = [0];
                tokio::select! {
                    () = gate.notified() => true,
                    _ = io.read(&mut byte) => self.is_closed(),
                }
            }
            Step::Sleep(time) => {
                tokio::time::sleep(time).await;
                true
            }
            Step::Stream(piece) => {
                for number in 0.. {
                    let Some(piece) = piece(number) else { return true };
                    if !self.send(io, &piece).await {
                        return false;
                    }
                }
                true
            }
            Step::Hang => {
                let mut byte = [0];
                let _ = io.read(&mut byte).await;
                self.is_closed()
            }
            Step::Close => false,
        }
    }

    async fn send(&self, io: &mut DuplexStream, bytes: &[u8]) -> bool {
        if io.write_all(bytes).await.is_err() {
            return self.is_closed();
        }
        self.sent.fetch_add(bytes.len(), Ordering::SeqCst);
        true
    }

    fn is_closed(&self) -> bool {
        self.closed.send_modify(|closed| *closed += 1);
        false
    }

    pub fn attempts(&self) -> usize {
        self.received.lock().unwrap().len()
    }

    pub fn request(&self, number: usize) -> Received {
        self.received.lock().unwrap()[number].clone()
    }

    /// Waits until so many connections were closed by the gateway.
    pub async fn until_closed(&self, count: usize) {
        self.closed.subscribe().wait_for(|closed| *closed >= count).await.unwrap();
    }
}

async fn read_request(io: &mut DuplexStream) -> Option<Received> {
    let mut bytes = BytesMut::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if io.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes.split_to(end).to_vec()).unwrap();
    let mut received = Received { head, body: Bytes::new() };
    let length: usize = received.header("content-length").map_or(0, |length| length.parse().unwrap());
    while bytes.len() < length {
        if io.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    received.body = bytes.freeze();
    Some(received)
}

/// What the gateway asks of the program around it.
pub struct Around {
    /// How calls are admitted; none: as the target says.
    pub refusal: Mutex<Option<Refusal>>,
    pub target: Mutex<Target>,
    pub calls: Mutex<Vec<Call>>,
    /// The tokens of admitted calls, in order.
    pub tokens: Mutex<Vec<CancellationToken>>,
    /// Admission waits for it.
    pub gate: Mutex<Option<Arc<Notify>>>,
    records: mpsc::UnboundedSender<CallRecord>,
}

#[async_trait::async_trait]
impl Ports for Around {
    async fn models(&self, _: ContainerId) -> Vec<ListedModel> {
        vec![
            ListedModel { id: "gpt-4".into(), provider: "stub".into() },
            ListedModel { id: "stub/vendor/small".into(), provider: "stub".into() },
        ]
    }

    async fn admit(&self, call: &Call) -> Result<Admission, Refusal> {
        self.calls.lock().unwrap().push(call.clone());
        let gate = self.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.notified().await;
        }
        if let Some(refusal) = self.refusal.lock().unwrap().clone() {
            return Err(refusal);
        }
        let cancelled = CancellationToken::new();
        self.tokens.lock().unwrap().push(cancelled.clone());
        Ok(Admission { id: Uuid::new_v4(), target: self.target.lock().unwrap().clone(), cancelled })
    }

    async fn finished(&self, record: CallRecord) {
        self.records.send(record).unwrap();
    }
}

/// All of it.
pub struct World {
    pub gateway: Arc<Gateway>,
    pub provider: Arc<Provider>,
    pub around: Arc<Around>,
    records: tokio::sync::Mutex<VecDeque<CallRecord>>,
    recorded: tokio::sync::Mutex<mpsc::UnboundedReceiver<CallRecord>>,
}

impl World {
    /// A provider of a kind that does the same for every request.
    pub fn new(kind: ProviderKind, steps: Vec<Step>) -> Self {
        Self::scripted(kind, move |_, _| steps.clone())
    }

    /// A provider that does what a function says for each request, by its number.
    pub fn scripted(
        kind: ProviderKind,
        script: impl Fn(usize, &Received) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        let provider = Arc::new(Provider {
            script: Box::new(script),
            refusing: AtomicUsize::new(0),
            received: Mutex::default(),
            connections: AtomicUsize::new(0),
            closed: watch::Sender::new(0),
            sent: AtomicUsize::new(0),
        });
        let base_url = if kind == ProviderKind::Openai { "http://stub.example/v1" } else { "http://stub.example" };
        let target = Target {
            provider: "stub".into(),
            kind,
            base_url: base_url.into(),
            key: Some(ProviderKey(KEY.into())),
            model: "real-model".into(),
            max_output_tokens: Some(4096),
            timeout: TIMEOUT,
        };
        let (records, recorded) = mpsc::unbounded_channel();
        let around = Arc::new(Around {
            refusal: Mutex::default(),
            target: Mutex::new(target),
            calls: Mutex::default(),
            tokens: Mutex::default(),
            gate: Mutex::default(),
            records,
        });
        let dialled = provider.clone();
        let client = Client::with_dialer(move |_, _| {
            let connected = dialled.connect().map(Socket::new);
            Box::pin(async move { connected })
        });
        let gateway = Arc::new(Gateway::with_client(around.clone(), client.unwrap()));
        Self { gateway, provider, around, records: Default::default(), recorded: tokio::sync::Mutex::new(recorded) }
    }

    /// A connection of a program to the gateway, byte by byte.
    pub fn connect(&self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        tokio::spawn(serve_connection(theirs, container(), self.gateway.clone()));
        ours
    }

    /// A program.
    pub async fn program(&self) -> Program {
        let (sender, connection) =
            hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(self.connect())).await.unwrap();
        let connection = tokio::spawn(async move { drop(connection.await) });
        Program { sender, connection }
    }

    /// One call, on a connection of its own, to its end.
    pub async fn call(&self, path: &str, body: &str) -> Answer {
        self.program().await.call(path, body).await
    }

    /// The record of the next call that has ended.
    pub async fn record(&self) -> CallRecord {
        if let Some(record) = self.records.lock().await.pop_front() {
            return record;
        }
        let record = self.recorded.lock().await.recv().await;
        record.unwrap()
    }

    /// Whether nothing more is recorded, even after a long time.
    pub async fn nothing_more(&self) {
        tokio::time::sleep(Duration::from_secs(600)).await;
        let more = self.recorded.lock().await.try_recv();
        assert!(more.is_err(), "recorded again: {more:?}");
    }
}

/// The container of the tests.
pub fn container() -> ContainerId {
    ContainerId { session: SessionId(Uuid::from_u128(7)), generation: 1 }
}

/// A program with a connection to the gateway.
pub struct Program {
    sender: SendRequest<Full<Bytes>>,
    connection: tokio::task::JoinHandle<()>,
}

impl Program {
    /// Sends a request.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Response<Incoming> {
        self.sender.ready().await.unwrap();
        let mut request = Request::builder().method(method).uri(path).header("host", "127.0.0.1");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body.to_owned())).unwrap();
        self.sender.send_request(request).await.unwrap()
    }

    /// Sends a call.
    pub async fn post(&mut self, path: &str, body: &str) -> Response<Incoming> {
        self.send(Method::POST, path, &[("authorization", "Bearer worthless")], body).await
    }

    /// Sends a call and reads its answer.
    pub async fn call(&mut self, path: &str, body: &str) -> Answer {
        Answer::read(self.post(path, body).await).await
    }

    /// Asks for something and reads the answer.
    pub async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Answer {
        Answer::read(self.send(Method::GET, path, headers, "").await).await
    }

    /// Goes away.
    pub fn leave(self) {
        self.connection.abort();
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
    /// Whether the body ended as HTTP says.
    pub is_whole: bool,
}

impl Answer {
    pub async fn read(response: Response<Incoming>) -> Self {
        let (head, mut body) = response.into_parts();
        let mut bytes = Vec::new();
        let mut is_whole = true;
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => bytes.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Err(_) => {
                    is_whole = false;
                    break;
                }
            }
        }
        let body = String::from_utf8(bytes).unwrap();
        Self { status: head.status, headers: head.headers, body, is_whole }
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// The next piece of a streamed answer.
pub async fn piece(response: &mut Response<Incoming>) -> Option<String> {
    let frame = response.body_mut().frame().await?.unwrap();
    Some(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap())
}

/// A request and a streamed answer of each dialect, with whom it is for.
pub struct Sample {
    pub kind: ProviderKind,
    pub path: &'static str,
    pub request: &'static str,
    pub answer: &'static str,
    pub events: &'static str,
    /// Where `events` is cut in the middle of an answer.
    pub cut: usize,
}

/// One for each dialect.
pub fn samples() -> Vec<Sample> {
    let sample = |kind, path, request, answer, events: &'static str| {
        let cut = events.find("Hel").unwrap();
        let cut = cut + events[cut..].find("\n\n").unwrap() + 2;
        Sample { kind, path, request, answer, events, cut }
    };
    vec![
        sample(
            ProviderKind::Openai,
            "/v1/chat/completions",
            r#"{"model": "gpt-4", "stream":STREAM, "stream_options": {"include_usage":true}, "messages":[{"role":"user","content":"hi \u00e4"}], "unknown": {"b":1,"a":[ ]}}"#,
            r#"{"id":"c1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2},"odd": 1.50}"#,
            concat!(
                "data: {\"id\":\"c1\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"Hel\"}}]}\n\n",
                ": keep-alive\n\n",
                "data: {\"id\":\"c1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"lo\"},\"odd\":1.50}]}\n\n",
                "data: {\"id\":\"c1\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
                "data: {\"id\":\"c1\",\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\n",
                "data: [DONE]\n\n"
            ),
        ),
        sample(
            ProviderKind::Openai,
            "/v1/responses",
            r#"{"model":"gpt-4","stream":STREAM,"input":"hi","client_metadata":{"x":"y"}}"#,
            r#"{"id":"r1","object":"response","status":"completed","output":[{"type":"message","id":"m1","role":"assistant","status":"completed","content":[{"type":"output_text","text":"Hello","annotations":[]}]}],"usage":{"input_tokens":3,"output_tokens":2,"total_tokens":5}}"#,
            concat!(
                "event: response.created\ndata: {\"type\":\"response.created\",\"sequence_number\":0,\"response\":{\"id\":\"r1\",\"status\":\"in_progress\",\"output\":[]}}\n\n",
                "event: response.output_item.added\ndata: {\"type\":\"response.output_item.added\",\"sequence_number\":1,\"output_index\":0,\"item\":{\"type\":\"message\",\"id\":\"m1\",\"role\":\"assistant\",\"content\":[]}}\n\n",
                "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"sequence_number\":2,\"item_id\":\"m1\",\"output_index\":0,\"content_index\":0,\"delta\":\"Hel\"}\n\n",
                "event: response.odd\ndata: {\"type\":\"response.odd\",\"sequence_number\":3}\n\n",
                "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"sequence_number\":4,\"item_id\":\"m1\",\"output_index\":0,\"content_index\":0,\"delta\":\"lo\"}\n\n",
                "event: response.completed\ndata: {\"type\":\"response.completed\",\"sequence_number\":5,\"response\":{\"id\":\"r1\",\"status\":\"completed\",\"output\":[{\"type\":\"message\",\"id\":\"m1\",\"role\":\"assistant\",\"content\":[{\"type\":\"output_text\",\"text\":\"Hello\"}]}],\"usage\":{\"input_tokens\":3,\"output_tokens\":2,\"total_tokens\":5}}}\n\n"
            ),
        ),
        sample(
            ProviderKind::Anthropic,
            "/v1/messages?beta=true",
            r#"{"model":"claude","stream":STREAM,"max_tokens":10,"messages":[{"role":"user","content":"hi"}],"context_management":{"edits":[]},"safeguards":1}"#,
            r#"{"id":"m1","type":"message","role":"assistant","content":[{"type":"text","text":"Hello"}],"stop_reason":"end_turn","usage":{"input_tokens":3,"output_tokens":2}}"#,
            concat!(
                "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m1\",\"type\":\"message\",\"role\":\"assistant\",\"content\":[],\"usage\":{\"input_tokens\":3,\"output_tokens\":1}}}\n\n",
                "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n",
                "event: ping\ndata: {\"type\":\"ping\"}\n\n",
                "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"Hel\"}}\n\n",
                "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"lo\"}}\n\n",
                "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n",
                "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":2}}\n\n",
                "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
            ),
        ),
        sample(
            ProviderKind::Gemini,
            "/v1beta/models/gemini-x:ACTION",
            r#"{"contents":[{"role":"user","parts":[{"text":"hi"}]}],"odd":[1]}"#,
            r#"{"candidates":[{"content":{"role":"model","parts":[{"text":"Hello"}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":2,"totalTokenCount":5}}"#,
            concat!(
                "data: {\"candidates\":[{\"content\":{\"role\":\"model\",\"parts\":[{\"text\":\"Hel\"}]}}]}\r\n\r\n\n\n",
                "data: {\"candidates\":[{\"content\":{\"role\":\"model\",\"parts\":[{\"text\":\"lo\"}]},\"finishReason\":\"STOP\"}],\"usageMetadata\":{\"promptTokenCount\":3,\"candidatesTokenCount\":2,\"totalTokenCount\":5}}\r\n\r\n"
            ),
        ),
    ]
}

impl Sample {
    /// Path and body of a call.
    pub fn asking(&self, is_streaming: bool) -> (String, String) {
        let action = if is_streaming { "streamGenerateContent?alt=sse" } else { "generateContent" };
        let stream = if is_streaming { "true" } else { "false" };
        (self.path.replace("ACTION", action), self.request.replace("STREAM", stream))
    }
}
